"""Smooth noise: a sum of noises at several scales, each with equal power.

So has every octave of a picture: its power falls with the square of the frequency.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_SCALES = (1, 2, 4, 8, 16)
_COLOURS = frozenset({3, 4})
_COMMON = 0.8  # share of the power that all colours of a picture have in common


def signal(
    rng: np.random.Generator, shape: tuple[int, ...], axes: tuple[int, ...], channel: int | None
) -> Array:
    """Return smooth noise of variance 1: float64.

    Args:
        rng: Draws the numbers.
        shape: Of the result.
        axes: Along which it is smooth; without any it is white.
        channel: Axis of the channels: three or four of them are taken for colours, alike.
    """
    made = _fields(rng, shape, axes)
    if channel is not None and shape[channel] in _COLOURS and axes:
        common = _fields(rng, tuple(1 if a == channel else n for a, n in enumerate(shape)), axes)
        made = math.sqrt(1 - _COMMON) * made + math.sqrt(_COMMON) * common
    return made


def _fields(rng: np.random.Generator, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """Return noise of variance 1 at every point: the sum of all scales, each with equal power."""
    total = np.zeros(shape)
    scales = [s for s in _SCALES if all(shape[a] // s >= 2 for a in axes)] if axes else [1]
    for scale in scales or [1]:
        coarse = [math.ceil(n / scale) if a in axes else n for a, n in enumerate(shape)]
        made: Array = rng.standard_normal(coarse)
        for axis in axes:
            made = np.moveaxis(
                np.tensordot(_stretch(coarse[axis], shape[axis]), made, (1, axis)), 0, axis
            )
        total += made
    return np.asarray(total / math.sqrt(len(scales or [1])))


@functools.lru_cache(maxsize=64)
def _stretch(size: int, target: int) -> Array:
    """Return the matrix (target, size) of cubic interpolation; each row has norm 1.

    Keys' cubic convolution with a = -1/2, with the last point repeated beyond the edge.
    """
    if size == target:
        return np.eye(size)
    places = (np.arange(target) + 0.5) * size / target - 0.5
    first = np.floor(places).astype(int)
    matrix = np.zeros((target, size))
    for step in range(-1, 3):
        at = np.clip(first + step, 0, size - 1)
        np.add.at(matrix, (np.arange(target), at), _keys(np.abs(places - (first + step))))
    result: Array = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return result


def _keys(distance: Any) -> Any:
    """Return the weights of Keys' kernel at distances of 0 to 2."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
