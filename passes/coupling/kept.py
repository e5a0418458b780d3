"""What is left of the axes of a model when some of its atoms are removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from converter.coupling.structure import Atoms, Coupling

Array = np.ndarray[Any, Any]
Axis = Array | None
"""Indices that are left on one axis, int64 and ascending; None: all of them."""
Kept = Mapping[str, tuple[Axis, ...]]
"""What is left of the values whose axes changed: node outputs and constants, by name."""


class Keep:
    """Turns atoms into indices that are left.

    Args:
        coupling: The atoms.
        alive: bool (atoms,): those that stay.

    Raises:
        ValueError: ``alive`` has another length.
    """

    def __init__(self, coupling: Coupling, alive: Array) -> None:
        if alive.shape != (coupling.size,):
            raise ValueError(f"alive has the shape {alive.shape}, there are {coupling.size} atoms")
        self.coupling = coupling
        self._alive = np.append(np.asarray(alive, bool), True)

    def axis(self, atoms: Atoms) -> Axis:
        """Return the indices that are left of one axis."""
        if atoms is None:
            return None
        stays = self._alive[atoms]
        return None if stays.all() else np.flatnonzero(stays)

    def axes(self, atoms: tuple[Atoms, ...] | None) -> tuple[Axis, ...]:
        """Return what is left of all axes of a value."""
        return tuple(self.axis(each) for each in atoms or ())

    def count(self, atoms: Atoms) -> int | None:
        """Return how many indices are left of an axis; None: all of them."""
        left = self.axis(atoms)
        return None if left is None else len(left)


def changed(axes: tuple[Axis, ...]) -> bool:
    """Tell whether anything was removed."""
    return any(axis is not None for axis in axes)


def take(array: Array, axes: tuple[Axis, ...]) -> Array:
    """Return the part of an array that is left."""
    for position, axis in enumerate(axes):
        if axis is not None:
            array = np.take(array, axis, axis=position)
    return np.ascontiguousarray(array)


def key(axes: tuple[Axis, ...]) -> tuple[bytes | None, ...]:
    """Return something that is equal for equal parts."""
    return tuple(None if axis is None else axis.tobytes() for axis in axes)
