"""What is left of a model's cost after so many rounds of every component, exactly.

A cost is a sum of terms, each a factor times the sizes of some axes: multiply-accumulates of a
node, elements of a constant. How many indices of an axis a component takes is known per round, so
the cost follows from the number of rounds alone, and a change of one component touches few terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from converter.coupling.structure import Coupling
    from passes.allocation.curves import Curve

Array = np.ndarray[Any, Any]
_NONE = 0  # the axis of size 1 that fills up terms with few axes


@dataclass(frozen=True, eq=False)
class Term:
    """A product.

    Attributes:
        factor: What never changes.
        axes: Atoms of the axes, -1 for an index that stays.
    """

    factor: float
    axes: tuple[Array, ...]


def mac_terms(coupling: Coupling) -> list[Term]:
    """Return the terms of multiply-accumulates."""
    return [Term(float(work.factor), work.axes) for work in coupling.work]


def parameter_terms(coupling: Coupling) -> list[Term]:
    """Return the terms of the elements of constants."""
    return [Term(1.0, axes) for axes in coupling.constants]


class Cost:
    """A cost by rounds.

    Args:
        terms: What is summed up.
        curves: Order of removal of every component.
        size: Number of atoms.
    """

    def __init__(self, terms: Sequence[Term], curves: Sequence[Curve], size: int) -> None:
        self._sizes: list[int] = [1]
        self._ids: dict[bytes, int] = {}
        self._lost: list[dict[int, Array]] = [{} for _ in curves]
        self._ranks = [_ranks(curve, size) for curve in curves]
        self._rounds = [curve.rounds for curve in curves]
        rows = [[self._axis(np.asarray(axis)) for axis in term.axes] for term in terms]
        most = max((len(row) for row in rows), default=0)
        self.factors = np.array([term.factor for term in terms], np.float64)
        self.axes = np.array([row + [_NONE] * (most - len(row)) for row in rows], np.int64).reshape(
            len(terms), most
        )
        self.full = np.array(self._sizes, np.int64)
        self._terms = [
            np.flatnonzero(np.isin(self.axes, list(lost)).any(axis=1)) for lost in self._lost
        ]

    def total(self, rounds: Sequence[int]) -> float:
        """Return the cost after these rounds of every component."""
        return float(self.values(np.arange(len(self.factors)), self.sizes(rounds)).sum())

    def fixed(self) -> float:
        """Return the cost of terms that no component touches."""
        touched = np.zeros(len(self.factors), bool)
        for terms in self._terms:
            touched[terms] = True
        return float(self.values(np.flatnonzero(~touched), self.full).sum())

    def sizes(self, rounds: Sequence[int]) -> Array:
        """Return the sizes of all axes after these rounds: int64."""
        sizes = self.full.copy()
        for lost, done in zip(self._lost, rounds, strict=True):
            for axis, table in lost.items():
                sizes[axis] -= table[done]
        return sizes

    def moved(self, sizes: Array, index: int, before: int, after: int) -> Array:
        """Return the sizes when one component goes from one number of rounds to another."""
        found = sizes.copy()
        for axis, table in self._lost[index].items():
            found[axis] -= table[after] - table[before]
        return found

    def saving(self, sizes: Array, index: int, before: int, after: int) -> float:
        """Return what such a step saves."""
        terms = self._terms[index]
        moved = self.moved(sizes, index, before, after)
        return float((self.values(terms, sizes) - self.values(terms, moved)).sum())

    def values(self, terms: Array, sizes: Array) -> Array:
        """Return the values of terms: float64."""
        found: Array = self.factors[terms] * sizes[self.axes[terms]].prod(axis=1, dtype=np.float64)
        return found

    def _axis(self, atoms: Array) -> int:
        """Number an axis, and count what every component takes of it by round."""
        key = atoms.tobytes()
        if key in self._ids:
            return self._ids[key]
        number = len(self._sizes)
        self._ids[key] = number
        self._sizes.append(len(atoms))
        own = atoms[atoms >= 0]
        for lost, ranks, rounds in zip(self._lost, self._ranks, self._rounds, strict=True):
            when = ranks[own]
            when = when[when >= 0]
            if len(when):
                counts = np.bincount(when, minlength=rounds + 1)
                lost[number] = np.concatenate([[0], np.cumsum(counts)])[: rounds + 1]
        return number


def _ranks(curve: Curve, size: int) -> Array:
    """Return in which round every atom goes: int64 (size,), -1 for those of other components."""
    ranks = np.full(size, -1)
    ranks[curve.order] = np.arange(len(curve.order)) // curve.unit
    return ranks
