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


class Support:
    """The search for one layer, for any right-hand sides.

    Args:
        gram: Regular: float64 (groups, inputs, inputs).

    Raises:
        numpy.linalg.LinAlgError: It is not finite.
    """

    def __init__(self, gram: Array) -> None:
        _demand_finite(gram)
        diagonal: Array = np.einsum("gii->gi", gram)
        self._unit: Array = 1.0 / np.sqrt(np.maximum(diagonal, _SMALLEST))[:, :, None]
        powers, axes = np.linalg.eigh(gram * self._unit * self._unit.swapaxes(1, 2))
        floats = np.float32 if gram.shape[1] > _WIDE else np.float64
        self._axes = axes.astype(floats, copy=False)
        self._powers = np.maximum(powers, _SMALLEST)[:, :, None].astype(floats, copy=False)

    def choose(self, right: Array, keep: Keep) -> Array:
        """Choose the weights that stay.

        Args:
            right: What the regression is solved for: float64 (groups, inputs, outputs).
            keep: Tells which weights stay, of scores that are the power each contributes.

        Returns:
            bool (groups, inputs, outputs).

        Raises:
            numpy.linalg.LinAlgError: What is given is not finite.
        """
        _demand_finite(right)
        scaled = (right * self._unit).astype(self._axes.dtype, copy=False)
        most = _WORK / max(1.0, 2.0 * right.size * right.shape[1])
        rounds = int(min(_MOST_ROUNDS, max(3 * _SETTLED, most)))
        return self._search(self._axes.swapaxes(1, 2) @ scaled, keep, rounds)

    def _search(self, turned: Array, keep: Keep, rounds: int) -> Array:
        """Alternate at most so many rounds, in a basis where the Gram matrix is diagonal."""
        axes, back = self._axes, self._axes.swapaxes(1, 2)
        dense = axes @ (turned / self._powers)
        stays = keep(np.square(dense))
        sparse, dual = dense * stays, np.zeros_like(dense)
        pull: float = _FIRST
        before = stays
        hurry = max(1.0, _USUAL_ROUNDS / rounds)
        for i in range(rounds):
            wanted = turned + back @ (pull * sparse - dual)
            dense = axes @ (wanted / (self._powers + pull))
            target = dense + dual / pull
            stays = keep(np.square(target))
            sparse = np.where(stays, target, 0.0).astype(dense.dtype, copy=False)
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


def _demand_finite(array: Array) -> None:
    if not np.isfinite(array).all():
        raise np.linalg.LinAlgError("the normal equations are not finite")


def _growth(share: float) -> float:
    return next(factor for least, factor in _GROWTH if share >= least)


def units(zeros: int, pattern: Pattern, original: Array | None = None) -> Keep:
    """Return what keeps all but so many weights of a whole layer, in the units of a pattern.

    Args:
        zeros: Weights that go.
        pattern: The units.
        original: float64 (groups, outputs of a group, inputs of a group): what is zero there goes
            first. None: nothing is.
    """
    gone = None if original is None or original.all() else (original == 0.0)
    lowest = -1.0 if pattern.kind in ("unstructured", "n:m") else 0.0

    def keep(scores: Array) -> Array:
        groups, inputs, outputs = scores.shape
        matrix = scores.swapaxes(1, 2)
        if gone is not None:
            matrix = np.where(gone, lowest, matrix)
        cut = lowest_units(matrix.reshape(-1, inputs), zeros, pattern)
        return ~cut.reshape(groups, outputs, inputs).swapaxes(1, 2)

    return keep
