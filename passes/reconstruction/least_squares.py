"""Ridge regression towards the present weights, with a free bias, in blocks that fit into memory.

``W`` minimises ``mean |x W^T + b - t|^2 + r |W - W0|^2`` over rows ``x``; rows are centred, so that
the bias costs nothing and drops out. One factorisation serves any number of targets ``t``.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_BLOCK = 2_048
"""Rows that are multiplied at once: sums of as many float32 products go into float64."""
_TRIANGLE = 96
"""Columns of a triangular factor whose diagonal block is inverted as a whole."""
_MOST_STEPS = 100
_CLOSE = 1e-4
_SMALLEST = 1e-30
_FEW = 0.05
"""Share of masked weights up to which the whole matrix is a good guide for the search."""


@dataclass(frozen=True, eq=False)
class Map:
    """An affine map ``x -> x W^T + b``.

    Attributes:
        weight: float64 (outputs, inputs).
        bias: float64 (outputs,).
    """

    weight: Array
    bias: Array

    def __call__(self, rows: Array) -> Array:
        """Return float32 (rows, outputs)."""
        made: Array = rows @ self.weight.T.astype(np.float32)
        made += self.bias.astype(np.float32)
        return made


@dataclass(frozen=True, eq=False)
class Pull:
    """What targets demand of a layer.

    Attributes:
        products: Mean of products of centred rows with targets: float64 (inputs, outputs).
        mean: Of the targets: float64 (outputs,).
    """

    products: Array
    mean: Array


class System:
    """Normal equations of one layer.

    Args:
        rows: float32 (rows, inputs).
        prior: The present layer.
        bias: Whether the bias may move; it stays as it is otherwise.
        mask: bool (outputs, inputs), False where the weight has to stay zero; None: nowhere.

    Attributes:
        scale: Mean of the diagonal of the Gram matrix, which ridges are relative to.
    """

    def __init__(
        self, rows: Array, prior: Map, *, bias: bool = True, mask: Array | None = None
    ) -> None:
        self._bias = bias
        self._mean = rows.mean(axis=0, dtype=np.float64) if bias else np.zeros(rows.shape[1])
        self._rows = rows
        self._gram = self._product(rows) / max(1, len(rows))
        self.scale = float(np.trace(self._gram)) / max(1, len(self._gram))
        self.give(prior, mask)

    def give(self, prior: Map, mask: Array | None) -> None:
        """Replace the present layer and where it has to stay zero."""
        self._prior = prior
        self._mask = None if mask is None else np.ascontiguousarray(mask.T, np.float32)
        self._few_zeros = mask is None or bool(np.mean(mask) > 1.0 - _FEW)
        self._small = np.zeros(()) if mask is None else self._gram.astype(np.float32)
        self._ridge = 0.0
        self._factor: Triangle | None = None

    def given(self, prior: Map, mask: Array | None) -> System:
        """Return the system of the same rows for another present layer with other zeros."""
        twin = copy(self)
        twin.give(prior, mask)
        return twin

    def factorise(self, ridge: float) -> None:
        """Prepare :meth:`solve`.

        Args:
            ridge: Weight of the present weights, relative to :attr:`scale`; above zero.

        Raises:
            numpy.linalg.LinAlgError: The rows hold what is no number.
        """
        self._ridge = ridge * self.scale
        if not np.isfinite(self._ridge):
            raise np.linalg.LinAlgError("the rows are not finite")
        self._factor = None
        if self._few_zeros and self._ridge > _SMALLEST:
            regular = self._gram.copy()
            regular[np.diag_indices_from(regular)] += self._ridge
            self._factor = Triangle(np.linalg.cholesky(regular))

    def pull(self, targets: Array) -> Pull:
        """Return what targets demand, for :meth:`solve` with any ridge.

        Args:
            targets: float32 (rows, outputs).
        """
        mean = targets.mean(axis=0, dtype=np.float64)
        offset = mean if self._bias else self._prior.bias
        return Pull(self._product(targets, offset) / max(1, len(targets)), mean)

    def normal(self, pull: Pull, ridge: float) -> tuple[Array, Array]:
        """Return the normal equations of all weights, masked or not.

        Args:
            pull: Of the targets.
            ridge: Weight of the present weights, relative to :attr:`scale`.

        Returns:
            The regular Gram matrix (inputs, inputs) and the right-hand side (inputs, outputs).
        """
        regular = self._gram.copy()
        weight = max(ridge * self.scale, _SMALLEST)
        regular[np.diag_indices_from(regular)] += weight
        return regular, pull.products + weight * self._prior.weight.T

    def solve(self, pull: Pull, start: Map | None = None) -> Map:
        """Return the map that fits targets best.

        Args:
            pull: Of the targets.
            start: Where the search begins if weights are masked; None: the present layer.
        """
        prior = self._prior.weight
        if self._ridge <= _SMALLEST:  # constant inputs say nothing about weights
            return self._with_bias(prior, pull)
        right = pull.products + self._ridge * prior.T
        if self._mask is None:
            assert self._factor is not None
            return self._with_bias(self._factor.solve(right).T, pull)
        first = prior if start is None else start.weight
        return self._with_bias(self._descend(right, first.T).T, pull)

    def _with_bias(self, weight: Array, pull: Pull) -> Map:
        if not self._bias:
            return Map(weight, self._prior.bias)
        return Map(weight, pull.mean - weight @ self._mean)

    def _product(self, others: Array, offset: Array | None = None) -> Array:
        """Return the sum of products of centred rows with others: float64 (inputs, columns).

        Args:
            others: float32 (rows, columns); the rows themselves when ``offset`` is None.
            offset: Taken off the others: float64 (columns,).
        """
        total = np.zeros((self._rows.shape[1], others.shape[1]))
        mean = self._mean.astype(np.float32)
        middle = None if offset is None else offset.astype(np.float32)
        for start in range(0, len(others), _BLOCK):
            centred = self._rows[start : start + _BLOCK] - mean
            block = centred if middle is None else others[start : start + _BLOCK] - middle
            total += centred.T @ block
        return total

    def _descend(self, right: Array, start: Array) -> Array:
        """Solve for the weights that are not masked by conjugate gradients, all outputs at once.

        In float32: what is left of the residual lies far above its rounding.
        """
        assert self._mask is not None
        small = self._small
        small[np.diag_indices_from(small)] = np.diag(self._gram) + self._ridge
        weight = (start * self._mask).astype(np.float32)
        wanted = (right * self._mask).astype(np.float32)
        residual = wanted - (small @ weight) * self._mask
        goal = _CLOSE**2 * np.maximum(_squares(wanted), _SMALLEST)
        scaled = self._scaled(residual)
        direction, power = scaled, _products(residual, scaled)
        for _ in range(_MOST_STEPS):
            if (_squares(residual) <= goal).all():
                break
            turned = (small @ direction) * self._mask
            step = power / np.maximum(_products(direction, turned), _SMALLEST)
            weight += step * direction
            residual -= step * turned
            scaled = self._scaled(residual)
            fresh = _products(residual, scaled)
            direction = scaled + fresh / np.maximum(power, _SMALLEST) * direction
            power = fresh
        return weight.astype(np.float64)

    def _scaled(self, residual: Array) -> Array:
        """Turn a residual into a good direction: nearly the solution where few weights are zero."""
        assert self._mask is not None
        if self._factor is None:
            made: Array = residual / np.diag(self._small)[:, None]
            return made
        whole: Array = self._factor.solve(residual.astype(np.float64)).astype(np.float32)
        whole *= self._mask
        return whole


def _squares(columns: Array) -> Array:
    return _products(columns, columns)


def _products(first: Array, second: Array) -> Array:
    made: Array = np.einsum("ij,ij->j", first, second)
    return made


class Triangle:
    """A lower triangular factor ``L`` of ``L L^T``, for many right-hand sides.

    Args:
        lower: float64 (n, n).
    """

    def __init__(self, lower: Array) -> None:
        self._lower = lower
        self._starts = range(0, len(lower), _TRIANGLE)
        self._inverse = [
            np.linalg.inv(lower[i : i + _TRIANGLE, i : i + _TRIANGLE]) for i in self._starts
        ]

    def solve(self, right: Array) -> Array:
        """Return ``(L L^T)^-1`` times float64 (n, columns)."""
        lower, made = self._lower, right.copy()
        for i, inverse in zip(self._starts, self._inverse, strict=True):
            end = i + _TRIANGLE
            made[i:end] = inverse @ (made[i:end] - lower[i:end, :i] @ made[:i])
        pairs = list(zip(self._starts, self._inverse, strict=True))
        for i, inverse in reversed(pairs):
            end = i + _TRIANGLE
            made[i:end] = inverse.T @ (made[i:end] - lower[end:, i:end].T @ made[end:])
        return made
