"""Which weights of a layer stay when so many must go, chosen together with what the rest becomes.

The least error over all matrices with so many zeros is searched by the alternating direction method
of multipliers (Meng et al. 2024, ALPS, arXiv 2406.07831): a ridge regression towards the nearest
sparse matrix, and the sparse matrix nearest to its result, in turn, with a pull that grows until
both agree. One eigendecomposition serves all rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from passes.sparsity.masks import lowest_units
from passes.sparsity.patterns import Pattern

Array = np.ndarray[Any, Any]
Keep = Callable[[Array], Array]
"""From scores, at least zero, (groups, inputs of a group, outputs of a group) to what stays."""
_FIRST = 0.03
"""Pull of the first round, relative to the diagonal of the Gram matrix."""
_GROWTH = ((0.1, 1.15), (0.005, 1.1), (0.0, 1.05))
"""Factor of the pull by the least share of weights that changed sides."""
_ROUNDS = 3
"""Rounds between two changes of the pull."""
_MOST_ROUNDS = 240
_USUAL_ROUNDS = 90.0
_SETTLED = 12
"""Rounds before the search may end."""
_WORK = 6e12
"""Multiply-accumulates of one layer; the pull grows faster where the layer is so large."""
_WIDE = 1_024
"""Inputs beyond which the rounds go on in float32: only the choice follows from them."""
_SMALLEST = 1e-30


def support(gram: Array, right: Array, keep: Keep) -> Array:
    """Choose the weights that stay.

    Args:
        gram: Regular: float64 (groups, inputs, inputs).
        right: What the regression is solved for: float64 (groups, inputs, outputs).
        keep: Tells which weights stay, of scores that are the power each contributes.

    Returns:
        bool (groups, inputs, outputs).

    Raises:
        numpy.linalg.LinAlgError: What is given is not finite.
    """
    if not (np.isfinite(gram).all() and np.isfinite(right).all()):
        raise np.linalg.LinAlgError("the normal equations are not finite")
    diagonal: Array = np.einsum("gii->gi", gram)
    unit: Array = 1.0 / np.sqrt(np.maximum(diagonal, _SMALLEST))
    powers, axes = np.linalg.eigh(gram * unit[:, :, None] * unit[:, None, :])
    wide = gram.shape[1] > _WIDE
    floats = np.float32 if wide else np.float64
    axes = axes.astype(floats)
    turned = axes.swapaxes(1, 2) @ (right * unit[:, :, None]).astype(floats)
    powers = np.maximum(powers, _SMALLEST)[:, :, None].astype(floats)
    search = _Search(axes, powers, turned, keep)
    most = _WORK / (2.0 * turned.size * gram.shape[1])
    return search.run(int(min(_MOST_ROUNDS, max(3 * _SETTLED, most))))


class _Search:
    """Alternating directions in a basis where the Gram matrix is diagonal.

    Args:
        axes: Eigenvectors: (groups, inputs, inputs).
        powers: Eigenvalues: (groups, inputs, 1).
        turned: The right-hand side in that basis: (groups, inputs, outputs).
        keep: See :func:`support`.
    """

    def __init__(self, axes: Array, powers: Array, turned: Array, keep: Keep) -> None:
        self._axes, self._powers, self._turned, self._keep = axes, powers, turned, keep

    def run(self, rounds: int) -> Array:
        """Return what stays after at most so many rounds."""
        axes, back = self._axes, np.ascontiguousarray(self._axes.swapaxes(1, 2))
        dense = axes @ (self._turned / self._powers)
        stays = self._keep(np.square(dense))
        sparse, dual = dense * stays, np.zeros_like(dense)
        pull: float = _FIRST
        before = stays
        hurry = max(1.0, _USUAL_ROUNDS / rounds)
        for i in range(rounds):
            wanted = self._turned + back @ (pull * sparse - dual)
            dense = axes @ (wanted / (self._powers + pull))
            target = dense + dual / pull
            stays = self._keep(np.square(target))
            sparse = np.where(stays, target, 0.0).astype(dense.dtype)
            dual += pull * (dense - sparse)
            if i % _ROUNDS < _ROUNDS - 1:
                continue
            changed = int(np.count_nonzero(stays != before))
            if not changed and i >= _SETTLED:
                break
            share = changed / max(1, int(np.count_nonzero(stays)))
            pull *= _growth(share) ** hurry
            before = stays
        return stays


def _growth(share: float) -> float:
    return next(factor for least, factor in _GROWTH if share >= least)


def units(zeros: int, pattern: Pattern) -> Keep:
    """Return what keeps all but so many weights of a whole layer, in the units of a pattern."""

    def keep(scores: Array) -> Array:
        groups, inputs, outputs = scores.shape
        matrix = scores.swapaxes(1, 2).reshape(-1, inputs)
        gone = lowest_units(matrix, zeros, pattern)
        return ~gone.reshape(groups, outputs, inputs).swapaxes(1, 2)

    return keep
