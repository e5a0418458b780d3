"""Equal numbers out of every block: groups of a convolution or of a normalization."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def blocks_of(
    atoms: Array, component: Array, members: list[Array], blocks: dict[int, Array]
) -> bool:
    """Express one constraint by blocks of a component.

    Args:
        atoms: int64 (rows, size): equal numbers must go from each row; -1 stays.
        component: Of every atom.
        members: Atoms of every component, ascending.
        blocks: Of every component that has any; extended.

    Returns:
        Whether removing equal numbers from every block of one component, or anything at all,
        keeps the rows equally long.
    """
    row = np.broadcast_to(np.arange(len(atoms))[:, None], atoms.shape)
    inside = atoms >= 0
    found, there = np.unique(atoms[inside], return_inverse=True)
    if not found.size:
        return True
    counts = np.zeros((len(found), len(atoms)), np.int64)
    np.add.at(counts, (there, row[inside]), 1)
    if (counts == counts[:, :1]).all():
        return True
    index = int(component[found[0]])
    alone = (counts > 0).sum(axis=1) == 1
    if not alone.all() or len(np.unique(counts[counts > 0])) > 1:
        return False
    if not np.array_equal(found, members[index]):
        return False
    block = counts.argmax(axis=1)
    if len(np.unique(np.bincount(block, minlength=len(atoms)))) > 1:
        return False
    return _add(index, block, blocks)


def _add(index: int, block: Array, blocks: dict[int, Array]) -> bool:
    """Keep the finer one of two ways to form blocks, if it is finer throughout."""
    other = blocks.get(index)
    if other is None:
        blocks[index] = block
        return True
    both = len(np.unique(np.stack([block, other]), axis=1).T)
    finer = max(len(np.unique(block)), len(np.unique(other)))
    if both != finer:
        return False
    if len(np.unique(block)) == finer:
        blocks[index] = block
    return True
