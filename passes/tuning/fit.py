"""Integers, scales and bias of one layer from the moments of its inputs, in closed form.

The weight is first replaced by the least-squares target: the weights that make, from the inputs
that the quantized model really delivers, what the float layer makes of its own. Rounding follows
with error feedback (GPTQ) for the same quadratic error; what is left of the mean of every output
channel goes into the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from passes.affine.grid import SMALLEST_SCALE
from passes.affine.scale import weight_scales
from passes.rounding.gptq import gptq
from passes.tuning.layer import Layer, Moments

Array = np.ndarray[Any, Any]
Rounding = Literal["nearest", "gptq"]
Correction = Literal["none", "float", "student"]


@dataclass(frozen=True)
class Recipe:
    """How a layer's numbers are chosen.

    Attributes:
        rounding: To the nearest integer, or with error feedback towards the least-squares target.
        correction: "float": the bias makes up for the rounding of the weight at the means of the
            float inputs. "student": also for the shift of the inputs' means, as far as it stands
            out from its standard error.
        ridge: How much the least-squares target is held at the weight, in units of the mean of the
            Gram matrix's diagonal.
        bits: Of the weight.
    """

    rounding: Rounding = "gptq"
    correction: Correction = "student"
    ridge: float = 8.0
    bits: int = 8


@dataclass(frozen=True, eq=False)
class Fitted:
    """The numbers of one layer.

    Attributes:
        integers: int8 (groups, channels of a group, K).
        scales: float32 (channels,), or () for one scale.
        bias: float32 (channels,).
        noise: Power of the output's error from rounding, as a share of the output's; 0 without
            second moments.
    """

    integers: Array
    scales: Array
    bias: Array
    noise: float = 0.0


def fit(layer: Layer, moments: Moments, recipe: Recipe, input_scale: float) -> Fitted:
    """Choose integers, scales and bias.

    Args:
        layer: The float layer.
        moments: Of its inputs, with second moments when the recipe asks for error feedback;
            without them weights are rounded to nearest.
        recipe: What to do.
        input_scale: Scale of the input's grid, in whose steps the bias is stored.
    """
    weight = layer.weight
    high = 2 ** (recipe.bits - 1) - 1
    mask = weight == 0.0
    target, gram = weight, None
    if recipe.rounding == "gptq" and moments.second:
        gram, pull = moments.covariance(centred=layer.correctable)
        # The damage of errors in the weight, and of leaving it: the ridge belongs to both.
        diagonal = np.einsum("gkk->gk", gram)
        strength = recipe.ridge * diagonal.mean(axis=1, keepdims=True)
        diagonal += np.where(strength > 0, strength, 1.0)
        target = weight + np.swapaxes(np.linalg.solve(gram, pull), 1, 2)
        target[mask] = 0.0
    scales = _scales(layer, target, gram, high, input_scale)
    steps = np.broadcast_to(scales, (layer.unit.channels,)).reshape(weight.shape[:2])
    if gram is not None:
        integers = gptq(target, gram, steps, -high, high, mask if mask.any() else None)
    else:
        integers = np.clip(np.rint(target / steps[..., None]), -high, high).astype(np.int8)
    rounded = integers * steps[..., None].astype(np.float64)
    bias = layer.bias + _correction(weight, rounded, moments, recipe.correction).reshape(-1)
    noise = 0.0 if gram is None else _power(target - rounded, gram) / _power(weight, gram)
    return Fitted(integers, scales, bias.astype(np.float32), float(noise))


def _power(weight: Array, gram: Array) -> float:
    return max(float(((weight @ gram) * weight).sum()), 1e-30)


def _scales(
    layer: Layer, target: Array, gram: Array | None, high: int, input_scale: float
) -> Array:
    """Return float32 scales; fewer bits get those with the least rounding error."""
    magnitude = np.abs(target).max(axis=2, initial=0.0).reshape(-1)
    if layer.key[1] is None:
        magnitude = np.asarray(magnitude.max(initial=0.0))
    if high < 127 and magnitude.ndim:
        magnitude = magnitude * _shrunk(target, gram, high)
    # Scales of 8 bits are those of the magnitude; of fewer bits, of a larger one.
    return weight_scales(magnitude * (127.0 / high), layer.bias, max(input_scale, SMALLEST_SCALE))


def _shrunk(target: Array, gram: Array | None, high: int) -> Array:
    """Return per channel the share of the largest magnitude with the least squared error."""
    largest = np.abs(target).max(axis=2, keepdims=True)
    step = np.where(largest > 0, largest, 1.0) / high
    importance = 1.0 if gram is None else np.einsum("gkk->gk", gram)[:, None, :]
    least, best = np.full(target.shape[:2], np.inf), np.ones(target.shape[:2])
    for share in np.linspace(1.0, 0.4, 31):
        tried = step * share
        error = np.clip(np.rint(target / tried), -high, high) * tried - target
        damage = (np.square(error) * importance).sum(axis=2)
        best = np.where(damage < least, share, best)
        least = np.minimum(damage, least)
    return best.reshape(-1)


def _correction(weight: Array, rounded: Array, moments: Moments, kind: Correction) -> Array:
    """Return what to add to the bias, (groups, channels of a group)."""
    if kind == "none" or not moments.count:
        return np.zeros(weight.shape[:2])
    floats, students = moments.means
    lost = weight - rounded
    if kind == "float":
        return _times(lost, floats)
    shifts = np.stack([_times(weight, shift) for shift in moments.shifts])
    return _times(lost, students) - shrunk_mean(shifts)


def shrunk_mean(samples: Array) -> Array:
    """Return the mean over axis 0, shrunk towards zero where it may be chance (James and Stein)."""
    mean = samples.mean(axis=0)
    error = samples.std(axis=0) / np.sqrt(len(samples))
    ratio = np.divide(error, np.abs(mean), out=np.ones_like(mean), where=mean != 0)
    return np.asarray(mean * np.maximum(0.0, 1.0 - np.square(ratio)))


def _times(weight: Array, vector: Array) -> Array:
    """Return (groups, channels): the product per group."""
    return np.asarray((weight @ vector[:, :, None])[:, :, 0])
