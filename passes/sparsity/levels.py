"""For how many zeros of a layer its weights are worked out before allocations are tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from passes.sparsity.prepared import Prepared
    from passes.sparsity.room import Room

Array = np.ndarray[Any, Any]
_LEVELS = ((8_000_000, 10), (60_000_000, 8))
_LEAST_LEVELS = 6
"""Levels by number of weights."""
_DEEPEST = 0.2
_LEAST_DENSITY = 0.008
"""The last level has this part of the density of all layers together, and no less."""
_NEAR = (0.25, 0.35, 0.5, 0.65, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0, 3.0)
"""Densities around that of an allocation, as multiples of it; large models take every other."""
_WAY = 6
"""Steps in which weights go until an allocation is reached, where each decides the next."""


def levels_of(room: Room) -> Array:
    """Return densities at equal ratios, falling from 1.0: float64."""
    total = int(room.sizes.sum())
    count = next((n for most, n in _LEVELS if total <= most), _LEAST_LEVELS)
    density = 1.0 - room.wanted / max(1, total)
    last = min(1.0, max(_LEAST_DENSITY, _DEEPEST * density))
    return np.asarray(np.geomspace(1.0, last, count))


def points_around(prepared: Prepared, here: int, levels: Array) -> Array:
    """Return the numbers of zeros that a layer is worked out for: int64, ascending.

    Args:
        prepared: The layer.
        here: One of them; more than there are at least: the others are around it.
        levels: The densities of the others else.
    """
    densities = levels
    if here > prepared.least:
        near = np.asarray(_NEAR[:: 1 + (len(levels) < _LEVELS[0][1])])
        densities = np.append(near * (1.0 - here / prepared.size), 1.0)
    counts = np.round((1.0 - np.minimum(densities, 1.0)) * prepared.size).astype(np.int64)
    return np.unique(np.clip([*counts, here], prepared.least, prepared.size))


def points_towards(prepared: Prepared, here: int) -> Array:
    """Return the numbers of zeros on the way to one, which is the last: int64, ascending."""
    here = max(here, prepared.least)
    left = max(1, prepared.size - here)
    kept = np.geomspace(max(left, prepared.size - prepared.least), left, _WAY)
    way = np.round(prepared.size - kept).astype(np.int64)[1:-1]
    return np.unique([*way, here]).astype(np.int64)
