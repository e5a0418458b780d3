"""freeze: inputs with a default value become constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import support

from converter.core.context import Context
from passes.freeze import Freeze
from passes.fuse import Fuse


def model() -> ir.Model:
    made = support.model_from_text(
        """g (float[2,4] x, float[4,3] w, float[3] b) => (float[2,3] y) {
            h = MatMul (x, w)
            y = Add (h, b)
        }""",
        w=np.arange(12, dtype=np.float32).reshape(4, 3),
        b=np.float32([1, 2, 3]),
    )
    assert [v.name for v in made.graph.inputs] == ["x", "w", "b"]
    return made


def names(made: ir.Model) -> list[str | None]:
    return [v.name for v in made.graph.inputs]


def test_defaults_become_constants() -> None:
    made = model()
    feed = {"x": np.ones((2, 4), np.float32)}
    before = support.run(made, feed)
    outcome = Freeze().apply(made, Context())
    assert outcome.modified
    assert outcome.counts == {"inputs_frozen": 2}
    assert names(made) == ["x"]
    assert set(made.graph.initializers) == {"w", "b"}
    np.testing.assert_array_equal(support.run(made, feed)["y"], before["y"])


def test_fuse_points_to_it() -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.random(3, np.float32) + 1 for name in "smbv"}
    made = support.model_from_text(
        """g (float[1,2,4,4] x, float[3,2,1,1] w) => (float[1,3,4,4] y) {
            c = Conv (x, w)
            y = BatchNormalization (c, s, b, m, v)
        }""",
        w=rng.standard_normal((3, 2, 1, 1)).astype(np.float32),
        **arrays,
    )
    outcome = Fuse().apply(made, Context())
    assert not outcome.modified
    assert "freeze before it" in outcome.skipped[0].reason
    Freeze().apply(made, Context())
    assert Fuse().apply(made, Context()).counts == {"batch_norms_fused": 1}


def test_inputs_are_chosen_by_name() -> None:
    made = model()
    outcome = Freeze(exclude=("b*",)).apply(made, Context())
    assert names(made) == ["x", "b"]
    assert [(s.subject, s.reason) for s in outcome.skipped] == [("b", "not selected")]


def test_an_input_without_default_stays() -> None:
    made = model()
    outcome = Freeze(include=("x",)).apply(made, Context())
    assert not outcome.modified
    assert names(made) == ["x", "w", "b"]


def test_a_default_that_is_an_output_stays_an_input() -> None:
    made = support.model_from_text(
        "g (float[2] x, float[2] w) => (float[2] y, float[2] w) { y = Add (x, w) }",
        w=np.float32([1, 2]),
    )
    outcome = Freeze().apply(made, Context())
    assert not outcome.modified
    assert outcome.skipped[0].reason == "it is an output too"
