"""Large weights behind a Transpose are turned when they are read."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from exact import check
from support import model_from_text, op_types

from converter.core.tensors import chunks
from passes import FoldConstants
from passes.rewriting.turned import TurnedTensor

WIDE = np.random.default_rng(2).standard_normal((520, 600)).astype(np.float32)


def build(body: str, weight: np.ndarray = WIDE) -> ir.Model:
    model = model_from_text(f"g (float[N,600] x) => (float y) {{ {body} }}", w=weight)
    model.graph.outputs[0].shape = None
    return model


def test_turns_lazily() -> None:
    model = build("t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t)")
    outcome = check(FoldConstants(), model, tolerance=1e-5)  # MatMul sums in another order
    assert outcome.counts["weights_turned"] == 1
    assert op_types(model) == ["MatMul"]
    weight = model.graph.node(0).inputs[1].const_value
    assert isinstance(weight, TurnedTensor)
    np.testing.assert_array_equal(weight.numpy(), WIDE.T)
    flat = np.concatenate([chunk for _, chunk in chunks(weight)])
    np.testing.assert_array_equal(flat, WIDE.T.reshape(-1))
    assert weight.tobytes() == WIDE.T.tobytes()


def test_twice() -> None:
    cube = WIDE.reshape(8, 65, 600)
    text = (
        "g (float[600,2,65] z) => (float y) { t = Transpose <perm = [2, 0, 1]> (w)"
        " u = Transpose <perm = [0, 2, 1]> (t) y = MatMul (z, u) }"
    )
    model = model_from_text(text, w=cube)
    model.graph.outputs[0].shape = None
    outcome = check(FoldConstants(), model, tolerance=1e-5)
    assert outcome.counts["weights_turned"] == 2
    assert op_types(model) == ["MatMul"]
    weight = model.graph.node(0).inputs[1].const_value
    np.testing.assert_array_equal(weight.numpy(), cube.transpose(2, 1, 0))
    assert not isinstance(weight.source, TurnedTensor)


@pytest.mark.parametrize(
    "body",
    [
        "t = Transpose (w) a = MatMul (x, t) y = Gemm (a, w)",  # a copy would be bigger
        "y = Transpose (w)",  # nothing reads it but the caller
    ],
)
def test_leaves(body: str) -> None:
    model = build(body)
    outcome = check(FoldConstants(), model, tolerance=1e-5)
    assert "weights_turned" not in outcome.counts
