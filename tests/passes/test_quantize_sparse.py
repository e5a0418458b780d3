"""Weights with many zeros: grids on which zero is zero, and no more scales than they need."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support import model_from_text, run

from converter.core.context import Context
from passes.quantize_weights import QuantizeWeights

CONV = "g (float[N,32,6,6] x) => (float[N,64,4,4] y) { y = Conv(x, W) }"


def sparse(density: float) -> tuple[ir.Model, np.ndarray]:
    rng = np.random.default_rng(0)
    array = rng.standard_normal((64, 32, 3, 3)).astype(np.float32)
    array[rng.random(array.shape) > density] = 0.0
    return model_from_text(CONV, W=array), array


def decoded(model: ir.Model) -> np.ndarray:
    """Read the weight off the convolution: one input channel and tap at a time."""
    x = np.zeros((32 * 9, 32, 6, 6), np.float32)
    for i in range(32 * 9):
        channel, row, column = np.unravel_index(i, (32, 3, 3))
        x[i, channel, row, column] = 1.0
    return run(model, {"x": x})["y"][:, :, 0, 0].T.reshape(64, 32, 3, 3)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.5])
def test_zeros_stay_and_scales_are_few(bits: int, density: float) -> None:
    model, array = sparse(density)
    assert QuantizeWeights(bits=bits).apply(model, Context()).modified
    constants = model.graph.initializers
    assert not any("zero_point" in name for name in constants)
    (scales,) = (v.const_value for n, v in constants.items() if n.endswith("_scale"))
    assert scales is not None
    assert scales.size <= 64 * max(1, 32 * 9 * density / 16)
    made = decoded(model)
    assert (made[array == 0.0] == 0.0).all()
    error = np.abs(made - array).max() / np.abs(array).max()
    # the grid with the least squared error cuts off the largest weights a little
    assert error < (0.03 if bits == 8 else 0.2)


@pytest.mark.parametrize(("density", "kept"), [(0.98, True), (0.9, False)])
def test_dense_weights_keep_blocks_and_zero_points(density: float, kept: bool) -> None:
    """Those of a pruned model count as sparse: ``pack`` would not find their integers."""
    model, _ = sparse(density)
    QuantizeWeights(bits=8).apply(model, Context())
    assert any("zero_point" in name for name in model.graph.initializers) == kept


def test_a_block_that_was_asked_for_stays() -> None:
    model, _ = sparse(0.2)
    QuantizeWeights(bits=8, block=16).apply(model, Context())
    (scales,) = (v for n, v in model.graph.initializers.items() if n.endswith("_scale"))
    assert scales.const_value.size == 64 * 32 * 9 // 16
