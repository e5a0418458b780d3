"""What an allocation may look like: bounds for every layer, and one sum for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.tensors import chunks

if TYPE_CHECKING:
    from passes.sparsity.layers import Layer
    from passes.sparsity.problem import Problem

Array = np.ndarray[Any, Any]
_KEPT = 0.01
"""Share of its weights that every layer keeps, where the total allows it ..."""
_KEPT_SHARE = 0.25
"""... and no more than this part of the density of all layers together."""
_HALVINGS = 100


@dataclass(frozen=True, eq=False)
class Room:
    """Bounds on the zeros of every layer and their sum.

    Attributes:
        sizes: Weights: int64 (layers,).
        low: Zeros at least, those that are there already: int64 (layers,).
        high: Zeros at most: int64 (layers,), low <= high <= sizes.
        wanted: Zeros of all layers together: sum(low) <= wanted <= sum(high).
    """

    sizes: Array
    low: Array
    high: Array
    wanted: int

    @staticmethod
    def of(problem: Problem) -> Room:
        """Return the bounds of a problem, whose tensors are read once, to count their zeros."""
        low = np.asarray([zeros_of(layer) for layer in problem.layers], np.int64)
        return Room.between(problem.sizes, low, problem.wanted)

    @staticmethod
    def between(sizes: Array, low: Array, wanted: int) -> Room:
        """Return the bounds for layers with so many weights, of which ``low`` are zero."""
        wanted = max(wanted, int(low.sum()))
        density = 1.0 - wanted / max(1, int(sizes.sum()))
        kept = np.ceil(min(_KEPT, _KEPT_SHARE * density) * sizes).astype(np.int64)
        high = np.maximum(low, sizes - kept)
        if high.sum() < wanted:
            high = sizes.copy()
        return Room(sizes, low, high, min(wanted, int(high.sum())))

    @property
    def fixed(self) -> bool:
        """True when there is nothing to decide."""
        return int(np.count_nonzero(self.high > self.low)) < 2 or self.wanted in (
            int(self.low.sum()),
            int(self.high.sum()),
        )

    def near(self, zeros: Array, reach: float) -> Room:
        """Return the bounds for allocations whose densities differ by a factor at most.

        Args:
            zeros: Within the bounds and with their sum: int64 (layers,).
            reach: The factor, above 1.
        """
        kept = (self.sizes - zeros).astype(np.float64)
        low = np.ceil(self.sizes - kept * reach).astype(np.int64)
        high = np.floor(self.sizes - kept / reach).astype(np.int64)
        low = np.minimum(np.maximum(self.low, low), zeros)
        high = np.maximum(np.minimum(self.high, high), zeros)
        return Room(self.sizes, low, high, self.wanted)

    def to(self, wanted: int) -> Room:
        """Return the bounds for another sum."""
        return Room.between(self.sizes, self.low, wanted)

    def fitted(self, zeros: Array) -> Array:
        """Return counts with the right sum: all densities are scaled by the same factor.

        Args:
            zeros: Wished for, any finite numbers: float64 (layers,).

        Returns:
            int64 (layers,), within the bounds. Of what rounding leaves, layers with the larger
            remainder get more, of equal ones those with the lower index.
        """
        least, most = self.sizes - self.high, self.sizes - self.low
        kept = np.clip(self.sizes - np.asarray(zeros, np.float64), np.maximum(least, 0.5), None)
        goal = int(self.sizes.sum()) - self.wanted
        below, above = 0.0, float((np.maximum(most, 1) / kept).max(initial=1.0))
        for _ in range(_HALVINGS):
            middle = (below + above) / 2
            if np.clip(middle * kept, least, most).sum() < goal:
                below = middle
            else:
                above = middle
        wishes = self.sizes - np.clip(above * kept, least, most)
        return exact(wishes, self.low, self.high, self.wanted)


def exact(wishes: Array, low: Array, high: Array, wanted: int) -> Array:
    """Return whole numbers near the wishes that add up.

    Args:
        wishes: By layer, any finite numbers.
        low: Least of every layer: int64 (layers,).
        high: Most of every layer: int64 (layers,).
        wanted: The sum; brought into the sums of the bounds.

    Returns:
        int64 (layers,). Of what rounding leaves, layers with the larger remainder get more, of
        equal ones the first.
    """
    wanted = min(max(wanted, int(low.sum())), int(high.sum()))
    # a wish that is a whole number up to the last bits of its computation is that number
    near = np.clip(np.round(wishes, 6), low, high)
    found = np.clip(np.floor(near).astype(np.int64), low, high)
    order = np.argsort(found - near, kind="stable")
    missing = wanted - int(found.sum())
    if abs(missing) <= len(found):
        for index in order if missing > 0 else order[::-1]:
            step = int(np.sign(missing))
            if step and low[index] <= found[index] + step <= high[index]:
                found[index] += step
                missing -= step
    for index in order:  # bounds took what was wished for: the rest goes where there is room
        step = int(np.clip(missing, low[index] - found[index], high[index] - found[index]))
        found[index] += step
        missing -= step
    return found


def zeros_of(layer: Layer) -> int:
    """Return how many weights of a layer are zero, in chunks."""
    nonzero = sum(int(np.count_nonzero(chunk)) for _, chunk in chunks(layer.tensor))
    return int(layer.tensor.size) - nonzero
