"""What may really be removed of what was asked for: axes keep an index, blocks stay equal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from converter.coupling.structure import Component, Coupling

Array = np.ndarray[Any, Any]


def settle(coupling: Coupling, alive: Array) -> Array:
    """Let atoms live again until every axis has an index left and blocks have equal numbers.

    Args:
        coupling: The atoms.
        alive: bool (atoms,): what is meant to stay; left as it is.

    Returns:
        bool (atoms,): what stays; the first atoms of an axis or block come back first.
    """
    found = np.array(alive, bool)
    found |= ~_removable(coupling)
    while True:
        before = found.copy()
        for component in coupling.components:
            _level(component, found)
        _keep_one(coupling, found)
        if np.array_equal(before, found):
            return found


def _removable(coupling: Coupling) -> Array:
    removable = np.zeros(coupling.size, bool)
    for component in coupling.components:
        removable[component.atoms] = True
    return removable


def _level(component: Component, alive: Array) -> None:
    """Let as many atoms live in every block as in the fullest one."""
    if component.blocks is None:
        return
    atoms, blocks = component.atoms, component.blocks
    counts = [int(np.count_nonzero(alive[atoms[blocks == block]])) for block in np.unique(blocks)]
    for block, count in zip(np.unique(blocks), counts, strict=True):
        inside = atoms[blocks == block]
        dead = inside[~alive[inside]]
        alive[dead[: max(counts) - count]] = True


def _keep_one(coupling: Coupling, alive: Array) -> None:
    """Let one atom live on every axis that would be empty."""
    for sides in (coupling.values, coupling.uses):
        for axes in sides.values():
            for atoms in axes:
                if atoms is None or not atoms.size or (atoms < 0).any() or alive[atoms].any():
                    continue
                alive[atoms[0]] = True
