"""Means and deviations of output channels, given back by scaling and shifting."""

from __future__ import annotations

from typing import Any

import numpy as np

from passes.reconstruction.least_squares import Map

Array = np.ndarray[Any, Any]
_RANGE = (0.2, 5.0)
"""Factors beyond these come from channels that are as good as constant."""


def matched(layer: Map, made: Array, wanted: Array) -> Map:
    """Give every output the mean and the deviation that it should have.

    Args:
        layer: The present layer.
        made: float32 (rows, outputs), what it makes.
        wanted: What it should make.
    """
    deviations = [each.std(axis=0, dtype=np.float64) for each in (wanted, made)]
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.clip(deviations[0] / deviations[1], *_RANGE)
    factor[~np.isfinite(factor)] = 1.0
    means = [each.mean(axis=0, dtype=np.float64) for each in (wanted, made)]
    bias = means[0] - factor * (means[1] - layer.bias)
    return Map(layer.weight * factor[:, None], bias)


def shifted(layer: Map, made: Array, wanted: Array) -> Map:
    """Give every output the mean that it should have; see :func:`matched`."""
    difference = (wanted - made).mean(axis=0, dtype=np.float64)
    return Map(layer.weight, layer.bias + difference)
