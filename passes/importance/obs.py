"""The order in which channels go: greedy optimal brain surgeon, jointly over all their readers.

Every reader is a layer ``y = rows @ weight.T``. Removing the columns of an atom and re-fitting the
others by least squares costs ``W_I inv(H^-1_II) W_I'`` (Hassibi and Stork 1993, by groups; H is the
Gram matrix of the rows). The cheapest atom goes, the inverse and the weights are downdated, and so
on: what is left is always the best fit to the original outputs.

From components of 64 atoms on several go per step (about 1/32 of what is left); the error counted
is that of their joint removal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

DAMPING = 1e-3
"""Added to the diagonal of a Gram matrix, times its mean."""
SHARE = 32
"""One step removes at most this part of what is left."""
_ROWS = 512  # of a downdate at once
_COMPRESS = 0.85


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads atoms of one component.

    Attributes:
        gram: Mean products of its rows: float64 (K, K).
        weight: float64 (outputs, K).
        owner: Atom of every column, counted within the component: int64 (K,); -1: of none.
        power: What an error is measured against: the variance of its outputs, summed up.
        compensate: Columns that stay take over; else they are left as they are.
        inverse: Of the damped Gram matrix; computed when None.
        ridge: The damping, relative to the mean of the diagonal.
    """

    gram: Array
    weight: Array
    owner: Array
    power: float
    compensate: bool = True
    inverse: Array | None = None
    ridge: float = DAMPING


@dataclass(frozen=True, eq=False)
class Removal:
    """What goes first, and what it costs.

    Attributes:
        order: Atoms of the component, the first goes first: int64 (atoms,).
        unit: Atoms that go together in a round, one of every block.
        errors: By number of rounds: error of the readers' outputs, relative to their variance and
            summed up: float64 (rounds + 1,), rising.
        weights: By wanted round: the weight of every reader, with zeros for what went.
    """

    order: Array
    unit: int
    errors: Array
    weights: dict[int, list[Array]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Task:
    """A component as the greedy removal sees it.

    Attributes:
        size: Number of atoms.
        readers: Layers that are re-fitted.
        extra: Cost of every atom at its other readers, on the scale of relative errors: (atoms,).
        blocks: Block of every atom; None: one block. All blocks have the same size.
        keep: Rounds that must be left.
        rank: Atoms go by this, the lowest first, instead of by their error: float64 (atoms,).
        snapshots: Rounds after which the weights are wanted.
    """

    size: int
    readers: Sequence[Reader]
    extra: Array
    blocks: Array | None = None
    keep: int = 1
    rank: Array | None = None
    snapshots: Sequence[int] = ()


def remove(task: Task) -> Removal:
    """Remove atoms one after the other until only ``keep`` rounds are left."""
    queue = _Queue(task)
    states = [_State(reader, task.size) for reader in task.readers]
    order: list[Array] = []
    errors = [0.0]
    weights: dict[int, list[Array]] = {}
    wanted = set(task.snapshots)
    total = queue.rounds - task.keep
    while True:
        done = len(errors) - 1
        if done in wanted:
            weights[done] = [state.weights() for state in states]
        if done >= total:
            break
        scores = task.extra.copy()
        for state in states:
            scores += state.scores()
        ahead = min((r for r in wanted if r > done), default=total) - done
        rounds = min((queue.rounds - done) // SHARE, ahead, total - done)
        picked = queue.pick(scores, max(1, rounds))
        cost = float(task.extra[picked].sum())
        cost += sum(state.remove(picked.ravel()) for state in states)
        errors += _spread(scores[picked].sum(axis=1), cost, errors[-1])
        order.append(picked.ravel())
    order.append(queue.rest())
    return Removal(np.concatenate(order), queue.unit, np.asarray(errors), weights)


def refit(task: Task) -> dict[int, list[Array]]:
    """Return the weights that :func:`remove` finds at the wanted rounds of a given order.

    Each wanted round is one solution of the normal equations: with few of them that is a small
    part of the work of going there atom by atom.

    Args:
        task: With a rank.

    Returns:
        By wanted round: the weight of every reader, float32 (outputs, K), with zeros for what went.
    """
    assert task.rank is not None
    queue = _Queue(task)
    order = queue.pick(np.zeros(task.size), queue.rounds - task.keep)
    return {
        done: [_refitted(reader, order[:done].ravel()) for reader in task.readers]
        for done in task.snapshots
    }


def _refitted(reader: Reader, atoms: Array) -> Array:
    gone = np.isin(reader.owner, atoms)
    found = np.where(gone, 0.0, reader.weight)
    left = np.flatnonzero(~gone)
    if reader.compensate and gone.any() and len(left):
        damping = _damping(reader.gram, reader.ridge)
        square = reader.gram[np.ix_(left, left)]
        square[np.diag_indices_from(square)] += damping
        across = reader.weight[:, gone] @ reader.gram[np.ix_(np.flatnonzero(gone), left)]
        found[:, left] += np.linalg.solve(square, across.T).T
    return found.astype(np.float32)


def relative_power(gram: Array, weight: Array, *, bias: bool) -> float:
    """Return the variance of a layer's outputs, summed over outputs.

    Args:
        gram: Mean products of its rows; with a last column of ones when ``bias``.
        weight: (outputs, K).
        bias: There is such a column; without it the mean counts as variance.
    """
    centred = gram - np.outer(gram[-1], gram[-1]) if bias else gram
    return max(float(np.sum((weight @ centred) * weight)), 0.0)


def invert(gram: Array, ridge: float) -> Array:
    """Return the inverse of a Gram matrix with ``ridge`` times its mean diagonal added."""
    damped = gram.copy()
    damped[np.diag_indices_from(damped)] += _damping(gram, ridge)
    inverse = np.linalg.inv(damped)
    return np.asarray((inverse + inverse.T) * 0.5)


def _damping(gram: Array, ridge: float) -> float:
    mean = float(np.trace(gram)) / max(1, len(gram))
    return ridge * mean if mean > 0 else 1.0


def ridge_for(rows: int, columns: int) -> float:
    """Return the damping: more of it where there are less than four rows per column."""
    short = max(1.0, 4.0 * columns / max(1, rows))
    return min(1.0, DAMPING * short**2)


def _spread(scores: Array, cost: float, start: float) -> list[float]:
    """Divide the cost of a step among its rounds."""
    shares = np.maximum(scores, 0.0)
    if not shares.sum() > 0:
        shares = np.ones(len(scores))
    steps = start + max(cost, 0.0) * np.cumsum(shares) / shares.sum()
    return [float(each) for each in steps]


class _Queue:
    """Who is left, by block."""

    def __init__(self, task: Task) -> None:
        blocks = np.zeros(task.size, np.int64) if task.blocks is None else task.blocks
        _, self._block = np.unique(blocks, return_inverse=True)
        self.unit = int(self._block.max()) + 1
        self.rounds = task.size // self.unit
        self._left = np.ones(task.size, bool)
        self._rank = task.rank

    def pick(self, scores: Array, rounds: int) -> Array:
        """Take out the cheapest of every block: int64 (rounds, unit)."""
        judged = scores if self._rank is None else self._rank
        picked = []
        for block in range(self.unit):
            atoms = np.flatnonzero(self._left & (self._block == block))
            picked.append(atoms[np.argsort(judged[atoms], kind="stable")[:rounds]])
        found = np.stack(picked, axis=1)
        self._left[found] = False
        return found

    def rest(self) -> Array:
        """Return who is left, in rounds."""
        atoms = np.flatnonzero(self._left)
        by_block = [atoms[self._block[atoms] == b] for b in range(self.unit)]
        return np.stack(by_block, axis=1).ravel()


class _State:
    """A reader while columns leave it."""

    def __init__(self, reader: Reader, size: int) -> None:
        self._outputs, self._columns = reader.weight.shape
        self._weight = reader.weight.astype(np.float64)
        self._matrix = reader.gram
        self._compensate = reader.compensate
        if reader.compensate:
            inverse = reader.inverse
            self._matrix = (
                inverse.copy() if inverse is not None else invert(reader.gram, reader.ridge)
            )
        self._scale = 1.0 / max(reader.power, 1e-30)
        self._where = np.arange(self._columns)  # of what is left, in the original
        self._alive = np.ones(self._columns, bool)
        self._owner = reader.owner.copy()
        self._size = size

    def weights(self) -> Array:
        """Return the weight now, float32 (outputs, K), with zeros for what went."""
        full = np.zeros((self._outputs, self._columns), np.float32)
        full[:, self._where[self._alive]] = self._weight[:, self._alive]
        return full

    def scores(self) -> Array:
        """Return what every atom costs by itself: float64 (atoms,); zero where nothing is left."""
        found = np.zeros(self._size)
        columns = np.flatnonzero(self._alive & (self._owner >= 0))
        columns = columns[np.argsort(self._owner[columns], kind="stable")]
        atoms, starts, counts = np.unique(
            self._owner[columns], return_index=True, return_counts=True
        )
        for count in np.unique(counts):
            some = counts == count
            index = columns[starts[some][:, None] + np.arange(count)]
            found[atoms[some]] = self._costs(index)
        return found * self._scale

    def _costs(self, index: Array) -> Array:
        """Return the costs of groups of columns: (groups, columns of each)."""
        if index.shape[1] == 1:
            one = index[:, 0]
            energy = np.einsum("oc,oc->c", self._weight[:, one], self._weight[:, one])
            diagonal = self._matrix[one, one]
            return np.asarray(energy / diagonal if self._compensate else energy * diagonal)
        squares = self._matrix[index[:, :, None], index[:, None, :]]
        weights = self._weight.T[index]  # (groups, columns, outputs)
        found = np.linalg.solve(squares, weights) if self._compensate else squares @ weights
        return np.asarray(np.einsum("gko,gko->g", weights, found))

    def remove(self, atoms: Array) -> float:
        """Remove atoms together; returns the error that this adds."""
        gone = np.flatnonzero(self._alive & np.isin(self._owner, atoms))
        if not len(gone):
            return 0.0
        self._alive[gone] = False
        weights = self._weight[:, gone]
        if not self._compensate:
            # what went before is correlated with what goes now: the error of all of it counts
            return self._plain_error(gone, weights)
        across = self._matrix[gone]
        solved = np.linalg.solve(across[:, gone], np.concatenate([across, weights.T], axis=1))
        change, own = solved[:, : across.shape[1]], solved[:, across.shape[1] :]
        cost = float(np.sum(weights.T * own)) * self._scale
        self._weight -= weights @ change
        self._weight[:, gone] = 0.0
        for start in range(0, len(self._matrix), _ROWS):
            rows = slice(start, start + _ROWS)
            self._matrix[rows] -= across[:, rows].T @ change
        self._matrix[gone] = 0.0
        self._matrix[:, gone] = 0.0
        self._matrix[gone, gone] = 1.0
        if self._alive.mean() < _COMPRESS:
            self._compress()
        return cost

    def _plain_error(self, gone: Array, weights: Array) -> float:
        before = np.flatnonzero(~self._alive)
        before = before[~np.isin(before, gone)]
        own = np.sum((weights @ self._matrix[np.ix_(gone, gone)]) * weights)
        cross = np.sum((self._weight[:, before] @ self._matrix[np.ix_(before, gone)]) * weights)
        return float(own + 2.0 * cross) * self._scale

    def _compress(self) -> None:
        """Forget columns that are gone, so that later steps cost less."""
        left = np.flatnonzero(self._alive)
        self._matrix = self._matrix[np.ix_(left, left)]
        self._weight = np.ascontiguousarray(self._weight[:, left])
        self._where, self._owner = self._where[left], self._owner[left]
        self._alive = np.ones(len(left), bool)
