"""Weights and biases as integers."""

from __future__ import annotations

import numpy as np
import pytest

from passes.affine.scale import (
    bias_scales,
    largest,
    quantize_bias,
    quantize_weight,
    weight_scales,
)

WEIGHT = np.random.default_rng(0).standard_normal((5, 4, 3)).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1, 2, None])
def test_rounding_error_is_at_most_half_a_step(axis: int | None) -> None:
    scales = weight_scales(largest(WEIGHT, axis))
    integers = quantize_weight(WEIGHT, scales, axis)
    shape = [-1 if i == axis else 1 for i in range(3)]
    step = scales.reshape(shape) if axis is not None else scales
    assert integers.dtype == np.int8
    assert np.abs(integers).max() == 127
    assert (np.abs(integers * step - WEIGHT) <= step * 0.5001).all()


def test_order_of_channels_is_kept() -> None:
    weight = np.array([[1.0, 2.0], [10.0, 20.0]], np.float32)
    assert largest(weight, 0).tolist() == [2.0, 20.0]
    assert largest(weight, 1).tolist() == [10.0, 20.0]
    assert largest(weight, None) == 20.0


def test_blocks_do_not_change_the_result() -> None:
    weight = np.random.default_rng(1).standard_normal((2100, 1024)).astype(np.float32)
    scales = weight_scales(largest(weight, 0))
    expected = np.rint(weight / scales[:, None]).clip(-127, 127).astype(np.int8)
    assert (quantize_weight(weight, scales, 0) == expected).all()


def test_zeros_stay_zero_and_the_weight_is_not_written_to() -> None:
    weight = WEIGHT.copy()
    weight[weight < 0.5] = 0.0
    before = weight.copy()
    weight.flags.writeable = False
    scales = weight_scales(largest(weight, 0))
    integers = quantize_weight(weight, scales, 0)
    assert (integers[weight == 0.0] == 0).all()
    assert (weight == before).all()


def test_dead_channels_and_tensors_get_a_safe_scale() -> None:
    weight = np.zeros((2, 3), np.float32)
    assert weight_scales(largest(weight, 0)).tolist() == [1.0, 1.0]
    tiny = weight_scales(np.array([1e-45, 0.0]))
    assert (tiny > 0).all()
    assert np.isfinite(1 / tiny).all()


def test_bias_never_overflows_and_keeps_its_value() -> None:
    weight = np.array([[1.0], [1e-12], [0.0]], np.float32)
    bias = np.array([0.5, 0.5, -7.0], np.float32)
    scales = weight_scales(largest(weight, 0), bias, 0.01)
    steps = bias_scales(scales, 0.01)
    integers = quantize_bias(bias, steps)
    assert integers.dtype == np.int32
    assert np.abs(integers.astype(np.int64)).max() <= 2**30 + 128
    np.testing.assert_allclose(integers * steps.astype(np.float64), bias, rtol=1e-4, atol=1e-4)


def test_per_tensor_scale_suits_the_largest_bias() -> None:
    bias = np.array([1.0, 1e9], np.float32)
    scale = weight_scales(largest(np.full((2, 2), 1e-6, np.float32), None), bias, 0.01)
    assert scale.shape == ()
    assert (
        np.abs(quantize_bias(bias, bias_scales(scale, 0.01)).astype(np.int64)).max() <= 2**30 + 128
    )


def test_nan_shows_in_the_magnitude() -> None:
    weight = np.array([[1.0, np.nan], [1.0, 2.0]], np.float32)
    assert np.isnan(largest(weight, 0)).tolist() == [True, False]
