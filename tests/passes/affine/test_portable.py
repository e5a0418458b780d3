"""The emulated 16-bit sums of processors without VNNI, and 7-bit weights against them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from samples import context_for
from support import model_from_text

from converter.core import graph as g
from converter.core.select import Selection
from converter.measure.saturation import SAFE_MAGNITUDE, overflowing
from passes.affine.observed import Choice, Observed
from passes.affine.portable import Sums
from passes.quantize import Quantize


def slow(rows: np.ndarray, weights: np.ndarray) -> float:
    """The same figure, one product after the other."""
    hits = 0
    for row in rows.astype(int):
        for weight in weights.astype(int):
            products = [*(row * weight), 0]
            sums = [products[k] + products[k + 1] for k in range(0, len(row), 2)]
            hits += any(not -32768 < s <= 32767 for s in sums)
    return hits / (len(rows) * len(weights))


@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_every_pair_is_looked_at(width: int) -> None:
    rng = np.random.default_rng(width)
    rows = rng.integers(100, 256, (9, width)).astype(np.uint8)
    weights = rng.integers(-127, 128, (6, width)).astype(np.int8)
    assert overflowing(rows, weights) == pytest.approx(slow(rows, weights))


def test_seven_bits_cannot_saturate() -> None:
    rows = np.full((1, 8), 255, np.uint8)
    assert overflowing(rows, np.full((1, 8), SAFE_MAGNITUDE, np.int8)) == 0.0
    assert overflowing(rows, np.full((1, 8), -SAFE_MAGNITUDE, np.int8)) == 0.0
    assert overflowing(rows, np.full((1, 8), SAFE_MAGNITUDE + 1, np.int8)) == 1.0


def test_nothing_to_multiply() -> None:
    assert overflowing(np.zeros((0, 4), np.uint8), np.ones((2, 4), np.int8)) == 0.0


def net(body: str, shape: str, **constants: np.ndarray) -> ir.Model:
    given = {name: array.astype(np.float32) for name, array in constants.items()}
    return model_from_text(f"g (float[{shape}] x) => (float y) {{ {body} \n}}", opset=17, **given)


def found(model: ir.Model, feeds: list[dict[str, np.ndarray]]) -> dict[str, float]:
    context = context_for(model, feeds)
    observed = Observed(model, Selection(), context, Choice(everything=True))
    plan = observed.plan()
    sums = Sums(model, plan, observed.numbers(plan), per_channel=True)
    return {g.label(u.node).split()[0]: s for u, s in sums.saturating(context).items()}


LOUD = np.concatenate([np.ones((1, 4)), np.ones((1, 4))]).astype(np.float32)


@pytest.mark.parametrize("transposed", [0, 1])
def test_neighbours_in_a_product_of_matrices(transposed: int) -> None:
    weight = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.1, 0.1]])
    body = f"y = Gemm <transB = {transposed}> (x, w)"
    model = net(body, "2,4", w=weight if transposed else weight.T)
    # Only the first channel has two large weights in one pair.
    assert found(model, [{"x": LOUD}]) == {"y": pytest.approx(1 / 3)}


@pytest.mark.parametrize(
    ("where", "share"), [((0, 1), 1.0), ((0, 2), 0.0), ((1, 2), 0.0), ((2, 3), 1.0)]
)
def test_neighbours_in_a_convolution_are_channels(where: tuple[int, int], share: float) -> None:
    weight = np.zeros((1, 4, 1, 2))
    weight[0, list(where), 0, 0] = 1.0
    model = net("y = Conv (x, w)", "1,4,3,3", w=weight)
    seen = found(model, [{"x": np.ones((1, 4, 3, 3), np.float32)}])
    assert seen.get("y", 0.0) == share


def test_groups_have_sums_of_their_own() -> None:
    weight = np.zeros((4, 3, 1, 1))
    weight[1, :2] = 1.0  # second channel of the first group
    weight[2, 1:] = 1.0  # first channel of the second group: not one pair
    model = net("y = Conv <group = 2> (x, w)", "1,6,2,2", w=weight)
    assert found(model, [{"x": np.ones((1, 6, 2, 2), np.float32)}]) == {"y": 0.25}


def test_depthwise_convolutions_are_not_affected() -> None:
    model = net("y = Conv <group = 4> (x, w)", "1,4,5,5", w=np.ones((4, 1, 3, 3)))
    assert found(model, [{"x": np.ones((1, 4, 5, 5), np.float32)}]) == {}


def quantized(model: ir.Model, feeds: list[Any], **given: Any) -> tuple[dict[str, int], str]:
    settings: dict[str, Any] = {"method": "minmax", "speed": "max", **given}
    outcome = Quantize(**settings).apply(model, context_for(model, feeds))
    sizes = {}
    for name, value in model.graph.initializers.items():
        array = value.const_value.numpy()
        if array.dtype == np.int8 and array.ndim > 1:
            sizes[name] = int(np.abs(array).max())
    return sizes, " ".join(outcome.notes)


def two_layers() -> ir.Model:
    quiet = np.eye(4) * 0.9
    return net(
        "a = MatMul (x, loud)\ny = MatMul (a, quiet)", "2,4", loud=np.ones((4, 4)), quiet=quiet
    )


def test_only_layers_that_saturate_get_seven_bits() -> None:
    sizes, notes = quantized(two_layers(), [{"x": LOUD}] * 4, portable=True)
    assert sorted(sizes.values()) == [SAFE_MAGNITUDE, 127]
    assert sizes["loud_quantized"] == SAFE_MAGNITUDE
    assert "1 layer (most: " in notes
    assert "7-bit weights" in notes
    assert found(two_layers(), [{"x": LOUD}]).keys() == {"a"}


def test_eight_bits_are_the_default() -> None:
    sizes, notes = quantized(two_layers(), [{"x": LOUD}] * 4)
    assert set(sizes.values()) == {127}
    assert "VNNI" not in notes


def test_auto_tells_and_advises() -> None:
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.uniform(0.5, 1.0, (2, 4)).astype(np.float32)} for _ in range(16)]
    _, notes = quantized(two_layers(), feeds, method="auto")
    assert "portable=true avoids that with 7-bit weights" in notes


def test_a_model_that_is_safe_is_said_to_be() -> None:
    model = net("y = MatMul (x, w)", "2,4", w=np.eye(4))
    _, notes = quantized(model, [{"x": LOUD}] * 4, portable=True)
    assert "no sum saturates" in notes
