"""Choosing weights by score and setting them to zero."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from converter.core import graph as g
from converter.core.context import Context
from converter.core.select import Selection
from converter.core.tensors import MappedTensor
from passes.allocation.order import Cut
from passes.sparsity import criteria, masks, simple
from passes.sparsity.layers import MARK, find
from passes.sparsity.patterns import parse
from passes.sparsity.problem import Problem
from tests.support import model_from_text


def problem(weights, *, share=0.5, criterion="magnitude", pattern="unstructured"):
    """Layers one behind the other that all have eight inputs and outputs, or as many as given."""
    body = " ".join(f"h{i + 1} = MatMul(h{i}, w{i})" for i in range(len(weights)))
    kind = {"float16": "float16", "float64": "double"}.get(str(weights[0].dtype), "float")
    model = model_from_text(
        f"g ({kind}[N,{weights[0].shape[0]}] h0) => ({kind}[N,M] h{len(weights)}) {{ {body} }}",
        **{f"w{i}": weight for i, weight in enumerate(weights)},
    )
    layers, _ = find(model, Selection((), ()))
    context = Context()
    scores = criteria.scores(criterion, layers, model, context)
    return Problem(
        model, layers, share, context, criterion, parse(pattern), "none", scores, build=None
    )


def random(shape, seed=0, kind=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(kind)


def test_streamed_and_masked_choices_are_the_same() -> None:
    given = problem([random((8, 8)), random((8, 8), 1)])
    zeros = np.array([20, 50])
    for index, cut in enumerate(masks.choose(given, zeros)):
        layer = given.layers[index]
        assert isinstance(cut, Cut)
        mask = masks.mask_of(layer, given.scores(index), int(zeros[index]), parse("unstructured"))
        np.testing.assert_array_equal(MappedTensor(layer.tensor, cut).numpy() == 0, mask)


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_zeros_that_are_there_go_first(criterion, kind) -> None:
    weight = random((8, 8), kind=kind)
    weight[3] = 0
    given = problem([weight.copy()], criterion=criterion)
    for count in (0, 5, 8):
        assert masks.choose(given, np.array([count])) == [None]
    assert masks.assign(given.layers[0], masks.choose(given, np.array([20]))[0])
    after = given.layers[0].tensor.numpy()
    assert after.dtype == kind
    assert np.count_nonzero(after == 0) == 20
    assert not after[3].any()
    kept = after != 0
    np.testing.assert_array_equal(after[kept], weight[kept])


def test_random_depends_on_seed_and_name_alone() -> None:
    weights = [random((8, 8)), random((8, 8))]
    first = masks.choose(problem(weights, criterion="random"), np.array([32, 32]))
    again = masks.choose(problem(weights, criterion="random"), np.array([32, 32]))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (first[0] != first[1]).any()


@pytest.mark.parametrize("start", [0, 1, 7, 8, 13])
def test_a_mask_does_not_depend_on_chunks(start) -> None:
    flat = random(100)
    gone = np.random.default_rng(1).random(100) < 0.5
    mask = masks.Mask(np.packbits(gone))
    expected = np.where(gone, 0, flat)[start : start + 31]
    np.testing.assert_array_equal(mask(flat[start : start + 31], start), expected)


@pytest.mark.parametrize("large", [True, False])
def test_assigned_tensors_are_marked_and_the_old_ones_stay(large) -> None:
    weight = random((256, 300) if large else (8, 8))
    given = problem([weight.copy()], pattern="1x4")
    layer = given.layers[0]
    old = layer.tensor
    (mask,) = masks.choose(given, simple.local(given).zeros)
    assert masks.assign(layer, mask)
    assert isinstance(layer.tensor, MappedTensor) == large
    assert layer.value.meta[MARK]
    np.testing.assert_array_equal(old.numpy(), weight)
    np.testing.assert_array_equal(g.constant_array(layer.value), np.where(mask, 0, weight))


def test_constants_of_nodes_are_replaced() -> None:
    model = model_from_text(
        "g (float[N,2] x) => (y) { w = Constant<value = float[2,2] {1,2,3,4}>() y = MatMul(x, w) }"
    )
    layers, _ = find(model, Selection((), ()))
    assert masks.assign(layers[0], np.array([[True, False], [False, True]]))
    assert g.constant_array(model.graph[1].inputs[1]).tolist() == [[0, 2], [3, 0]]
    assert not masks.assign(layers[0], None)


def test_bfloat16() -> None:
    tensor = ir.tensor(random((8, 8)), dtype=ir.DataType.FLOAT)
    given = problem([tensor.numpy()], criterion="random")
    layer = given.layers[0]
    import ml_dtypes

    layer.tensor = ir.tensor(tensor.numpy().astype(ml_dtypes.bfloat16))
    (mask,) = masks.choose(given, np.array([30]))
    assert masks.assign(layer, mask)
    assert layer.tensor.dtype == ir.DataType.BFLOAT16
    assert np.count_nonzero(layer.tensor.numpy() == 0) == 30
