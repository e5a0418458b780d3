"""What makes up for zeros in one layer, quickly and for many counts of zeros in a row.

Ridge regression with masks as in :mod:`passes.reconstruction.least_squares`, all groups at once,
by conjugate gradients that begin where the denser mask ended. A few steps suffice to compare
allocations; the recovery afterwards does it exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from passes.reconstruction.targets import Rows

Array = np.ndarray[Any, Any]
_BLOCK = 2_048
"""Rows that are multiplied at once: sums of as many float32 products go into float64."""
_RIDGE = 1e-3
"""Weight of the present weights, relative to the mean of the diagonal of the Gram matrix ..."""
_RIDGE_FEW = 1e-2
"""... and where there are fewer than :data:`_PLENTY` rows per input."""
_PLENTY = 6
_CLOSE = 1e-3
_SMALLEST = 1e-30
_RANGE = (0.2, 5.0)


@dataclass(eq=False)
class Normal:
    """Normal equations of a layer.

    Attributes:
        gram: Mean products of the rows that it reads, centred: float32 (groups, K, K).
        products: Of these rows with what it has to make: float32 (groups, K, outputs).
        mean: Of the rows; zeros where the bias is fixed: float64 (groups, K).
        goal: Mean of what it has to make, or the fixed bias: float64 (groups, outputs).
        power: Variance of what it has to make: float64 (groups, outputs).
        weight: The present weight: float64 (groups, outputs, K).
        free: The bias may move.
        rows: Rows that these are the mean of.
    """

    gram: Array
    products: Array
    mean: Array
    goal: Array
    power: Array
    weight: Array
    free: bool
    rows: int
    _resistance: Array | None = None

    @staticmethod
    def of(rows: Rows, weight: Array, gain: Array, bias: Array | None) -> Normal:
        """Sum up rows.

        Args:
            rows: Of both models.
            weight: float64 (groups, outputs, K).
            gain: Of what follows the layer: float64 (groups * outputs,).
            bias: The bias, where it must stay: float64 (groups * outputs,).
        """
        groups, outputs, width = weight.shape
        count = max(1, len(rows.inputs))
        divisor = np.where(gain == 0.0, 1.0, gain).astype(np.float32)
        wanted = ((rows.wanted - rows.rest) / divisor).reshape(-1, groups, outputs)
        free = bias is None
        mean = rows.inputs.mean(axis=0, dtype=np.float64) if free else np.zeros((groups, width))
        goal = wanted.mean(axis=0, dtype=np.float64)
        if bias is not None:
            goal = bias.reshape(groups, outputs)
        gram, products = np.zeros((groups, width, width)), np.zeros((groups, width, outputs))
        power = np.zeros((groups, outputs))
        for start in range(0, len(rows.inputs), _BLOCK):
            part = slice(start, start + _BLOCK)
            x = np.ascontiguousarray((rows.inputs[part] - mean.astype(np.float32)).swapaxes(0, 1))
            t = np.ascontiguousarray((wanted[part] - goal.astype(np.float32)).swapaxes(0, 1))
            turned = np.ascontiguousarray(x.swapaxes(1, 2))
            gram += turned @ x
            products += turned @ t
            power += np.square(t).sum(axis=1)
        square, pull = ((each / count).astype(np.float32) for each in (gram, products))
        return Normal(square, pull, mean, goal, power / count, weight, free, len(rows.inputs))

    @property
    def finite(self) -> bool:
        """False where the rows hold what is no number."""
        return bool(np.isfinite(self.gram).all() and np.isfinite(self.products).all())

    def work(self, points: int) -> float:
        """Return the multiply-accumulates of one step of :meth:`solve` for so many masks."""
        groups, outputs, width = self.weight.shape
        return float(points * groups * outputs * width * width)

    def bias(self, weight: Array) -> Array:
        """Return the best bias for a weight: float64 (groups, outputs)."""
        made: Array = self.goal - np.einsum("gok,gk->go", weight, self.mean)
        return made

    def error(self, weight: Array) -> float:
        """Return the power of what a weight leaves, as a share of the variance of the goal."""
        turned = weight.swapaxes(1, 2).astype(np.float64)
        whole = float(self.power.sum())
        left = whole + float(np.sum(turned * (self.gram @ turned - 2.0 * self.products)))
        return max(0.0, left / whole) if whole > 0.0 else 0.0

    def importances(self, weight: Array, density: float) -> Array:
        """Return about what the error rises by when a weight goes and the others make up for it.

        Exact for a row without zeros (Hassibi and Stork 1993); with few weights left nothing makes
        up for another, and the diagonal alone counts.

        Args:
            weight: (groups, outputs, K).
            density: Share of the weights that is left.

        Returns:
            float64 (groups, outputs, K).
        """
        diagonal = np.einsum("gkk->gk", self.gram).astype(np.float64)
        if self._resistance is None:
            ridge = np.maximum(_RIDGE_FEW * diagonal.mean(axis=1), _SMALLEST)
            regular = self.gram + ridge[:, None, None] * np.eye(self.gram.shape[1])
            self._resistance = 1.0 / np.einsum("gkk->gk", np.linalg.inv(regular))
        alone = np.maximum(diagonal, _SMALLEST)
        cost = np.maximum(self._resistance, _SMALLEST) ** density * alone ** (1.0 - density)
        return np.asarray(np.square(weight, dtype=np.float64) * cost[:, None, :])

    def solve(self, mask: Array, start: Array, steps: int) -> Array:
        """Return the best weight that is zero outside of a mask.

        Args:
            mask: bool (groups, outputs, K).
            start: Where the search begins: (groups, outputs, K).
            steps: Most steps.

        Returns:
            float32 (groups, outputs, K).
        """
        few = self.rows < _PLENTY * self.weight.shape[2]
        diagonal = np.einsum("gkk->gk", self.gram)
        ridge = (_RIDGE_FEW if few else _RIDGE) * diagonal.mean(axis=1)[:, None]
        ridge = np.maximum(ridge, np.float32(_SMALLEST))
        prior = self.weight.swapaxes(1, 2).astype(np.float32)
        free = mask.swapaxes(1, 2).astype(np.float32)
        scale = (diagonal + ridge)[:, :, None]
        # outputs of which nothing is known keep the present weights
        right = (self.products + ridge[:, :, None] * prior) * free
        found = start.swapaxes(1, 2).astype(np.float32) * free

        def applied(x: Array) -> Array:
            made: Array = (self.gram @ x + ridge[:, :, None] * x) * free
            return made

        residual = right - applied(found)
        limit = _CLOSE**2 * np.maximum(_sums(right, right), _SMALLEST)
        scaled = residual / scale
        direction, power = scaled, _sums(residual, scaled)
        for _ in range(steps):
            if (_sums(residual, residual) <= limit).all():
                break
            turned = applied(direction)
            step = power / np.maximum(_sums(direction, turned), _SMALLEST)
            found = found + step * direction
            residual = residual - step * turned
            scaled = residual / scale
            fresh = _sums(residual, scaled)
            direction = scaled + fresh / np.maximum(power, _SMALLEST) * direction
            power = fresh
        return np.ascontiguousarray(found.swapaxes(1, 2))

    def scaled(self, mask: Array) -> Array:
        """Return the present weight, masked, every output with the deviation that it should have.

        Args:
            mask: bool (groups, outputs, K).
        """
        weight = (self.weight * mask).astype(np.float32)
        made = np.einsum("gok,gkl,gol->go", weight, self.gram, weight, optimize=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = np.clip(np.sqrt(self.power / made), *_RANGE)
        factor[~np.isfinite(factor)] = 1.0
        return np.asarray(weight * factor[:, :, None], np.float32)


def _sums(first: Array, second: Array) -> Array:
    made: Array = np.einsum("gko,gko->go", first, second)[:, None, :]
    return made
