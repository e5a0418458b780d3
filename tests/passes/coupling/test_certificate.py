"""A cut that is not what its masked original says is found, put back and reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from exact import InProcess
from support import model_from_text

from converter.core.context import Batch, Context
from converter.coupling.couple import couple
from converter.coupling.shapes import observe_shapes
from converter.errors import ModelError
from passes.coupling import certificate
from passes.coupling.agreement import TOLERANCE, difference_of, tolerance_of
from passes.coupling.certificate import certified_cut
from passes.coupling.settle import settle


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


CHAIN = """g (float[N,3,6,6] x) => (float[N,2,6,6] y) {
    h = Conv(x, a) i = Relu(h) j = Conv(i, b) k = Relu(j) l = Conv(k, c) m = Relu(l)
    y = Conv(m, d) }"""


def chain(dtype: type = np.float32) -> ir.Model:
    text = CHAIN.replace("float", "float16") if dtype is np.float16 else CHAIN
    shapes = {"a": (4, 3, 1, 1), "b": (6, 4, 1, 1), "c": (8, 6, 1, 1), "d": (2, 8, 1, 1)}
    weights = {name: np.abs(draw(*shape)) for name, shape in shapes.items()}  # nothing dies
    return model_from_text(text, **{name: array.astype(dtype) for name, array in weights.items()})


def halves(model: ir.Model, context: Context) -> tuple[dict, np.ndarray]:
    shapes = observe_shapes(model, context)
    coupling = couple(model, shapes)
    alive = coupling.all_alive()
    for component in coupling.components:
        alive[component.atoms[::2]] = False
    return dict(shapes), alive


class Counting(InProcess):
    """Remembers the feeds it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def run(self, model: ir.Model, feeds: Any, outputs: Any = None) -> Any:
        self.shapes |= {feed["x"].shape for feed in feeds}
        return super().run(model, feeds, outputs)


def test_a_right_cut_goes_through() -> None:
    model, services = chain(), Counting()
    context = Context(services=services)
    shapes, alive = halves(model, context)
    result = certified_cut(model, shapes, alive, context)
    np.testing.assert_array_equal(result.alive, alive)
    assert result.refused == ()
    assert result.difference <= TOLERANCE
    assert services.shapes == {(1, 3, 6, 6), (3, 3, 6, 6)}
    assert model.graph.initializers["b"].shape.numpy() == (3, 2, 1, 1)


def test_real_samples_are_used() -> None:
    class Data:
        samples, synthetic, description = 5, False, "five"

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Any:
            return iter([Batch({"x": draw(5, 3, 6, 6)}, None, 5)])

    model, services = chain(), Counting()
    context = Context(dataset=Data(), services=services)
    shapes, alive = halves(model, context)
    assert certified_cut(model, shapes, alive, context).feeds == 3
    assert (2, 3, 6, 6) in services.shapes


@pytest.mark.parametrize("wrong", ["a", "b", "c"])
def test_a_wrong_component_is_put_back(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = certificate.cut

    def broken(model: ir.Model, coupling: Any, alive: np.ndarray) -> Any:
        """Turn the rows around where they are fewer."""
        kept = right(model, coupling, alive)
        if wrong in kept and kept[wrong][0] is not None:
            value = model.graph.initializers[wrong]
            value.const_value = ir.tensor(value.const_value.numpy()[::-1].copy(), name=wrong)
        return kept

    monkeypatch.setattr(certificate, "cut", broken)
    model, context = chain(), Context(services=InProcess())
    shapes, alive = halves(model, context)
    result = certified_cut(model, shapes, alive, context)
    (refused,) = result.refused
    assert refused.size == {"a": 2, "b": 3, "c": 4}[wrong]
    assert "differs by" in refused.reason
    assert len(model.graph.initializers[wrong].const_value.numpy()) == 2 * refused.size
    others = {"a": 4, "b": 6, "c": 8}
    del others[wrong]
    for name, size in others.items():
        assert len(model.graph.initializers[name].const_value.numpy()) == size // 2


def test_a_model_that_does_not_run_is_left_alone() -> None:
    class Failing(InProcess):
        def run(self, model: ir.Model, feeds: Any, outputs: Any = None) -> Any:
            raise ModelError("no")

    model, context = chain(), Context(services=Failing())
    shapes, alive = halves(model, context)
    result = certified_cut(model, shapes, alive, context)
    assert result.alive.all()
    assert len(result.refused) == 3
    assert "runs on no input" in result.refused[0].reason
    assert model.graph.initializers["b"].shape.numpy() == (6, 4, 1, 1)


def test_an_axis_keeps_its_first_index() -> None:
    model, context = chain(), Context(services=InProcess())
    shapes, alive = halves(model, context)
    result = certified_cut(model, shapes, np.zeros_like(alive), context)
    assert np.count_nonzero(result.alive) == 3
    assert model.graph.initializers["c"].shape.numpy() == (1, 1, 1, 1)


def test_blocks_keep_equal_numbers() -> None:
    model = model_from_text(
        "g (float[N,3,6,6] x) => (float[N,2,6,6] y) "
        "{ h = Conv(x, a) i = Relu(h) j = Conv<group=2>(i, b) k = Relu(j) y = Conv(k, c) }",
        a=draw(4, 3, 1, 1), b=draw(8, 2, 1, 1), c=draw(2, 8, 1, 1),
    )  # fmt: skip
    coupling = couple(model, observe_shapes(model, Context()))
    (component,) = (c for c in coupling.components if c.blocks is not None)
    alive = coupling.all_alive()
    alive[component.atoms[:3]] = False
    settled = settle(coupling, alive)
    counts = [np.count_nonzero(settled[component.atoms[component.blocks == b]]) for b in (0, 1)]
    assert counts == [4, 4]
    alive[component.atoms[4:6]] = False
    settled = settle(coupling, alive)
    counts = [np.count_nonzero(settled[component.atoms[component.blocks == b]]) for b in (0, 1)]
    assert counts == [2, 2]


def test_differences_are_shares_of_the_largest_number() -> None:
    one = {"y": np.array([100.0, 1.0]), "n": np.arange(1000)}
    assert difference_of(one, {"y": np.array([100.0, 2.0]), "n": np.arange(1000)}) == 0.01
    tie = np.arange(1000)
    tie[5] = 4
    assert difference_of(one, {**one, "n": tie}) == 0.0
    assert difference_of(one, {**one, "n": tie[::-1]}) == np.inf
    assert difference_of(one, {**one, "y": np.array([100.0, np.nan])}) == np.inf
    assert difference_of(one, {**one, "y": np.zeros(3)}) == np.inf
    assert difference_of({"y": [{1: 0.5}]}, {"y": [{1: 0.25}]}) == 0.5


def test_coarse_numbers_differ_more() -> None:
    assert tolerance_of(chain()) == TOLERANCE
    assert tolerance_of(chain(np.float16)) == pytest.approx(1e-2)
