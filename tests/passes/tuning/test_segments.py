"""A model that runs in pieces gives what it gives in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import support

from converter.core.context import RunSettings
from passes.tuning.segments import Pieces
from passes.tuning.store import Budget, Store

RNG = np.random.default_rng(3)


def weights(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def branching() -> ir.Model:
    """Two branches, a constant that is computed, a sub-graph that reads from outside."""
    return support.model_from_text(
        """branching (float[N,4] x) => (float[N,4] y, float[4] k) {
            a = MatMul (x, w)
            b = Relu (a)
            k = Add (one, one)
            c = MatMul (b, w)
            d = Mul (c, k)
            s = ReduceSum <keepdims = 0> (d)
            t = Greater (s, zero)
            e = If (t) <then_branch = then () => (float[N,4] p) { p = Add (d, a) },
                        else_branch = other () => (float[N,4] q) { q = Sub (d, a) }>
            f = MatMul (e, w)
            y = Add (f, b)
        }""",
        w=weights(4, 4),
        one=np.ones(4, np.float32),
        zero=np.float32(0),
    )


def node(model: ir.Model, output: str) -> ir.Node:
    return next(n for n in model.graph if n.outputs[0].name == output)


def pieces(model: ir.Model, stops: list[str], folder: Path, sizes: tuple[int, ...]) -> Pieces:
    feeds = [{"x": weights(size, 4)} for size in sizes]
    found = Pieces(model, [node(model, s) for s in stops], feeds, RunSettings(), folder)
    found.feeds = feeds  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("stops", [[], ["c"], ["a", "f"], ["b", "c", "d", "e", "y"]])
@pytest.mark.parametrize("sizes", [(2, 2), (3, 1)])
def test_pieces_give_the_outputs_of_the_whole(
    stops: list[str], sizes: tuple[int, ...], tmp_path: Path
) -> None:
    model = branching()
    walk = pieces(model, stops, tmp_path, sizes)
    for _ in stops:
        walk.advance()
    walk.finish()
    for i, feed in enumerate(walk.feeds):  # type: ignore[attr-defined]
        expected = support.run(model, feed)
        assert np.array_equal(walk.values["y"][i], expected["y"])
        assert np.array_equal(walk.values["k"][i], expected["k"])


def test_only_what_is_read_later_is_kept(tmp_path: Path) -> None:
    model = branching()
    walk = pieces(model, ["c", "f"], tmp_path, (2,))
    walk.advance()
    assert "a" in walk.values, "the branch reads it"
    assert "b" in walk.values
    assert "x" not in walk.values
    walk.advance()
    assert "a" not in walk.values
    assert "e" in walk.values


def test_quantized_values_are_kept_as_integers(tmp_path: Path) -> None:
    model = support.model_from_text(
        """quantized (float[N,4] x) => (float[N,4] y) {
            q = QuantizeLinear (x, step, zero)
            d = DequantizeLinear (q, step, zero)
            a = MatMul (d, w)
            y = Add (a, d)
        }""",
        w=weights(4, 4),
        step=np.float32(0.5),
        zero=np.uint8(3),
    )
    walk = pieces(model, ["a"], tmp_path, (2,))
    walk.advance()
    (found,) = walk.arrays(node(model, "d").outputs[0])
    assert found[0].dtype == np.uint8
    assert found[1:] == (0.5, 3)
    walk.finish()
    expected = support.run(model, walk.feeds[0])  # type: ignore[attr-defined]
    assert np.array_equal(walk.values["y"][0], expected["y"])


def test_what_does_not_fit_in_memory_lies_in_files(tmp_path: Path) -> None:
    budget = Budget(most=100)
    store, other = Store(tmp_path, budget), Store(tmp_path, budget)
    small, large = weights(4), weights(100)
    store.append("a", small)
    store.append("a", large)
    assert len(list(tmp_path.iterdir())) == 1
    assert np.array_equal(store["a"][1], large)
    store.drop("a")
    assert not list(tmp_path.iterdir())
    store.append("b", weights(25))
    assert not list(tmp_path.iterdir())
    other.append("c", small)
    assert len(list(tmp_path.iterdir())) == 1, "the budget is shared"
