"""What every channel of an activation is divided by, from what is known of it and of its readers.

Two errors are weighed against each other, in closed form. Rounding the activation on one grid of
255 steps costs each channel the same; dividing a wide channel makes the grid finer for all. The
weights of that channel grow by the same factor, and with them the grids of the output channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_STEPS = 255.0
_WEIGHT_STEPS = 127.0
_MOST_OUTPUTS = 128
_WIDEST = 50.0
_WORTH = 0.7
"""Smoothing that leaves more than this share of the predicted error is not worth a change."""


@dataclass(frozen=True, eq=False)
class Input:
    """An activation and the weights that are multiplied with it.

    Attributes:
        largest: Largest magnitude of every channel, (K,).
        square: Mean square of every channel, (K,).
        spread: Range of the whole tensor in units of its largest magnitude: 1 to 2.
        weights: The weights of all its readers side by side, (K, outputs).
    """

    largest: Array
    square: Array
    spread: float
    weights: Array


@dataclass(frozen=True, eq=False)
class Choice:
    """Factors, and the predicted error with them as a share of that without.

    Attributes:
        factors: float64 (K,): the activation is divided by them.
        share: Predicted squared error of 8-bit products relative to that of the plain activation.
        name: How the factors follow from the magnitudes.
    """

    factors: Array
    share: float
    name: str


def classic(given: Input, alpha: float) -> Array:
    """Return the factors of Xiao et al. 2022, arXiv 2211.10438: |x|^alpha / |w|^(1 - alpha)."""
    weight = np.abs(given.weights).max(axis=1)
    usable = (given.largest > 0) & (weight > 0)
    factors = np.ones(len(weight))
    factors[usable] = given.largest[usable] ** alpha / weight[usable] ** (1.0 - alpha)
    return _bounded(factors, usable)


def choose(given: Input) -> Choice | None:
    """Return the factors with the smallest predicted error, or None where none pay."""
    usable = given.largest > 0
    if not usable.any():
        return None
    error = _Error(given)
    plain = error(np.ones(len(given.largest)))
    best: Choice | None = None
    for name, raw in _candidates(given.largest, usable):
        factors = _bounded(raw, usable)
        share = error(factors) / plain if plain > 0 else 1.0
        if best is None or share < best.share:
            best = Choice(factors, share, name)
    return best if best is not None and best.share <= _WORTH else None


def _candidates(largest: Array, usable: Array) -> Iterator[tuple[str, Array]]:
    """Powers of the magnitudes, of all channels or of the widest ones only."""
    safe = np.where(usable, largest, 1.0)
    for power in np.arange(1, 11) / 10:
        yield f"all channels, power {power:.1f}", safe**power
    for share in (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995):
        start = np.quantile(largest[usable], share)
        for power in (0.5, 0.75, 1.0):
            name = f"the widest {1 - share:.1%}, power {power:.2f}"
            yield name, np.maximum(safe, start) ** power


def _bounded(factors: Array, usable: Array) -> Array:
    """Bring the typical factor to 1 and hold the others near it: other data may differ."""
    middle = np.median(factors[usable]) if usable.any() else 1.0
    bounded: Array = np.clip(factors / middle, 1.0 / _WIDEST, _WIDEST)
    return np.where(usable, bounded, 1.0)


class _Error:
    """Predicts the squared error of the products for factors."""

    def __init__(self, given: Input) -> None:
        self._given = given
        weights = given.weights.astype(np.float64)
        self._norms = (weights**2).sum(axis=1)
        step = -(-weights.shape[1] // _MOST_OUTPUTS)
        self._sample = np.abs(weights[:, ::step])
        self._share = weights.shape[1] / self._sample.shape[1]

    def __call__(self, factors: Array) -> float:
        scale = self._given.spread * (self._given.largest / factors).max() / _STEPS
        rounding = scale**2 * float((self._norms * factors**2).sum())
        steps = (self._sample * factors[:, None]).max(axis=0) / _WEIGHT_STEPS
        power = float((self._given.square / factors**2).sum())
        return float(rounding + self._share * float((steps**2).sum()) * power)
