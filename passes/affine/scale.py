"""From constants to scales and integers: weights per channel, biases on two grids' product."""

from __future__ import annotations

import numpy as np

from passes.affine.grid import INT8_SYMMETRIC, SMALLEST_SCALE, Array

_BLOCK_ELEMENTS = 1 << 20
_BIAS_STEPS = float(2**30)
"""Largest bias in steps: the other half of int32 is left to the sum of products."""


def largest(weight: Array, axis: int | None) -> Array:
    """Return the largest magnitude of each slice along ``axis``, or of the whole tensor.

    Args:
        weight: float32, any shape.
        axis: The channels' axis, not negative; None: one figure for the tensor.

    Returns:
        float64 (channels,), or shape () when ``axis`` is None. NaN where the weight holds NaN.
    """
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    if weight.size == 0:
        return np.zeros(() if axis is None else weight.shape[axis])
    # Two reductions instead of abs(): no copy of the weight.
    high = np.asarray(weight.max(axis=others), np.float64)
    low = np.asarray(weight.min(axis=others), np.float64)
    return np.maximum(high, -low)


def weight_scales(magnitude: Array, bias: Array | None = None, input_scale: float = 1.0) -> Array:
    """Return the symmetric scale of each channel.

    A bias is stored in steps of ``input_scale * scale``; where it would need more than 2^30 of
    them, as in channels whose weights are almost zero, the scale is raised until it fits.

    Args:
        magnitude: Largest magnitudes as of :func:`largest`.
        bias: Bias of the channels, or None.
        input_scale: Scale of the input that the weight is multiplied with.

    Returns:
        float32 of ``magnitude``'s shape, all above zero.
    """
    scales = np.maximum(magnitude, 0.0) / INT8_SYMMETRIC.high
    if bias is not None and bias.size:
        need = np.abs(bias.astype(np.float64)) / (input_scale * _BIAS_STEPS)
        scales = np.maximum(scales, need if magnitude.ndim else need.max())
    # A channel of zeros: any scale is exact.
    scales = np.where(scales == 0.0, 1.0, np.maximum(scales, SMALLEST_SCALE))
    return np.asarray(scales, np.float32)


def quantize_weight(weight: Array, scales: Array, axis: int | None) -> Array:
    """Round a weight to int8, block by block, so that no float copy of it is made.

    Args:
        weight: float32 of at least one axis; not written to.
        scales: As of :func:`weight_scales`.
        axis: Axis of the scales, or None.

    Returns:
        int8 in -127..127 of the weight's shape. Zeros stay exactly zero.
    """
    out = np.empty(weight.shape, np.int8)
    rows = max(1, _BLOCK_ELEMENTS // max(1, weight.size // max(1, weight.shape[0])))
    step = scales
    if axis is not None:
        step = scales.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    for start in range(0, weight.shape[0], rows):
        block = slice(start, start + rows)
        out[block] = _rounded(weight[block], step[block] if axis == 0 else step)
    return out


def _rounded(block: Array, step: Array) -> Array:
    steps = block / step
    np.rint(steps, out=steps)
    np.clip(steps, INT8_SYMMETRIC.low, INT8_SYMMETRIC.high, out=steps)
    return steps.astype(np.int8)


def bias_scales(weight_scale: Array, input_scale: float) -> Array:
    """Return the step of the bias: float32 (channels,) or shape ()."""
    return np.asarray(weight_scale * np.float32(input_scale), np.float32)


def quantize_bias(bias: Array, scales: Array) -> Array:
    """Round a bias to int32 steps; :func:`weight_scales` made sure that it fits.

    Args:
        bias: float32 (channels,).
        scales: As of :func:`bias_scales`.

    Returns:
        int32 (channels,).
    """
    steps = np.rint(bias.astype(np.float64) / scales.astype(np.float64))
    return np.clip(steps, -_BIAS_STEPS * 1.5, _BIAS_STEPS * 1.5).astype(np.int32)
