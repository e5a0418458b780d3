"""Where the cuts of large tensors should lie, by a sample of their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from passes.allocation.order import runs_of
from passes.importance.magnitude import Magnitude

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
LARGEST = 1e150
"""Larger magnitudes, and infinity, count as this."""
_RUNS = 1 << 13  # places sampled of all tensors together
_LEAST = 64  # places sampled of every tensor
_SIGMAS = 4.0  # half width of a bracket in standard errors


def squares_of(space: Magnitude, keys: Array) -> Array:
    """Return the squares of the magnitudes that keys stand for: float64."""
    values = np.minimum(keys.view(space.float_type).astype(np.float64), LARGEST)
    found: Array = np.square(values)
    return found


@dataclass(frozen=True, eq=False)
class _Sample:
    """Weights of one tensor from places spread evenly over it.

    Attributes:
        space: Type of the keys.
        runs: Keys: (places, weights).
        keys: All of them, rising.
        worth: Their scores, estimated.
        each: Weights that each of them stands for.
        error: Standard error of the sum of squares, relative.
    """

    space: Magnitude
    runs: Array
    keys: Array
    worth: Array
    each: float
    error: float

    @staticmethod
    def of(tensor: ir.TensorProtocol, space: Magnitude, total: int) -> _Sample:
        """Take one."""
        places = max(_LEAST, int(_RUNS * tensor.size / total))
        runs = space.keys(np.stack(list(runs_of(tensor, places))))
        keys = np.sort(runs, axis=None)
        each = tensor.size / len(keys)
        squares = squares_of(space, keys)
        tail = np.cumsum(squares[::-1])[::-1] * each
        with np.errstate(invalid="ignore", divide="ignore"):
            worth = np.where(squares > 0, squares / tail, 0.0)
        sums = squares_of(space, runs).sum(axis=1)
        mean = float(sums.mean())
        deviation = (float(np.square(np.diff(sums)).mean()) / 2) ** 0.5 if len(sums) > 1 else mean
        error = deviation / mean / len(runs) ** 0.5 if mean > 0 else 0.0
        return _Sample(space, runs, keys, worth, each, error)

    def rank_error(self, score: float) -> float:
        """Return the standard error of the number of weights below a score.

        Neighbouring places differ by chance alone, so their differences tell it.
        """
        place = min(int(np.searchsorted(self.worth, score)), len(self.keys) - 1)
        shares = np.count_nonzero(self.runs <= self.keys[place], axis=1).astype(np.float64)
        return self.each * (2.0 + math.sqrt(float(np.square(np.diff(shares)).sum()) / 2))

    def bracket(self, low: float, high: float) -> tuple[int, int]:
        """Return the keys between which the cut lies when the threshold is between two scores."""
        slack = min(0.9, _SIGMAS * self.error)
        first = int(np.searchsorted(self.worth, low * (1.0 - slack))) - 2
        last = int(np.searchsorted(self.worth, high * (1.0 + slack))) + 2
        start = int(self.keys[first]) if first >= 0 else 0
        end = int(self.keys[last]) if last < len(self.keys) else self.space.infinity
        return start, end


def guessed(
    tensors: Sequence[ir.TensorProtocol], spaces: Sequence[Magnitude], wanted: int
) -> list[tuple[int, int]]:
    """Return two keys per tensor that almost surely enclose its cut.

    Args:
        tensors: At least one weight in each.
        spaces: Types of their keys.
        wanted: Zeros of all tensors together.
    """
    total = sum(tensor.size for tensor in tensors)
    samples = [_Sample.of(t, s, total) for t, s in zip(tensors, spaces, strict=True)]
    worth = np.concatenate([sample.worth for sample in samples])
    weight = np.concatenate([np.full(len(s.worth), s.each) for s in samples])
    order = np.argsort(worth, kind="stable")
    reached = np.cumsum(weight[order])
    middle = float(worth[order[min(int(np.searchsorted(reached, wanted)), len(order) - 1)]])
    spread = _SIGMAS * sum(sample.rank_error(middle) ** 2 for sample in samples) ** 0.5
    first, last = (int(np.searchsorted(reached, wanted + s)) for s in (-spread, spread))
    low = float(worth[order[first]]) if wanted > spread else 0.0
    high = float(worth[order[last]]) if last < len(order) else np.inf
    return [sample.bracket(low, high) for sample in samples]
