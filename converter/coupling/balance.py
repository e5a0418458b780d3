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
    if not np.array_equal(found, members[index]):
        return False
    block = _equal_rows(counts)
    return block is not None and _add(index, block, blocks)


def _equal_rows(counts: Array) -> Array | None:
    """Return the block of every atom, if equal numbers from all blocks are equal in all rows.

    Args:
        counts: int64 (atoms, rows): how often an atom occurs in each row.
    """
    kinds, first, block = np.unique(counts, axis=0, return_index=True, return_inverse=True)
    block = block.ravel()
    sizes = np.bincount(block)
    if len(np.unique(sizes)) > 1 or len(np.unique(kinds.sum(axis=0))) > 1:
        return None
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    ordered: Array = rank[block]
    return ordered


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
