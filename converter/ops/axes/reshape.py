"""Reshape and its relatives: groups of axes with the same number of elements, worked on apart.

The labels of an axis are spread over the elements of its group and read off again along the axes
of the result. Where they depend on several of those (channels that are split into heads), one is
chosen and what lies along the others goes together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.ops.axes.align import rows
from converter.ops.axes.site import STAYS, Axes, Labels, Site, Unclear

Array = np.ndarray[Any, Any]
_MERGED = "it is merged with another axis that can be cut"
_LARGEST = 1 << 24
"""Elements of a group above which the axis is frozen instead of followed."""


def factor_groups(
    first: Sequence[int], second: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield axes of two shapes that hold the same elements, in the smallest groups.

    Raises:
        Unclear: The shapes do not have the same number of elements, or none at all.
    """
    if math.prod(first) != math.prod(second) or not math.prod(first):
        raise Unclear("it is empty or its sizes are not certain")
    i = j = 0
    while i < len(first) and j < len(second):
        start, other = i, j
        left, right = first[i], second[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left, i = left * first[i], i + 1
            else:
                right, j = right * second[j], j + 1
        yield tuple(range(start, i)), tuple(range(other, j))


def reshape(site: Site) -> None:
    """Labels follow their elements; of an axis that is split, one part can be removed from."""
    site.put(reshaped(site, site.labels(0), site.shape(0), site.output_shape()))


def reshaped(site: Site, x: Axes, sizes: Sequence[int], wanted: Sequence[int]) -> Axes:
    """Return the labels of ``x`` after a change of its shape."""
    result: list[Labels] = [None] * len(wanted)
    for ours, theirs in factor_groups(sizes, wanted):
        labelled = _one(site, x, ours)
        if labelled is None:
            continue
        labels = x[labelled]
        assert labels is not None
        long = [axis for axis in theirs if wanted[axis] > 1]
        if len(long) == 1 and wanted[long[0]] == sizes[labelled]:
            result[long[0]] = labels
            continue
        before = math.prod(sizes[axis] for axis in ours if axis < labelled)
        after = math.prod(sizes[axis] for axis in ours if axis > labelled)
        part = _Part.of([wanted[axis] for axis in theirs], before, after)
        if part.before * part.after * labels.size > _LARGEST:
            site.freeze(labels, "it is mixed with other axes")
            continue
        spread = np.tile(np.repeat(labels, part.after), part.before).reshape(part.sizes)
        axis, found = _read_off(site, spread, theirs[part.first : part.last], wanted)
        place = theirs.index(axis) - part.first
        result[axis] = part.widened(found, place)
    return tuple(result)


@dataclass(frozen=True)
class _Part:
    """The axes of a result that an axis is spread over, without what lies before and behind it.

    Attributes:
        sizes: Of the axes from ``first`` up to ``last``.
        first: The first axis that takes part.
        last: Behind the last axis that takes part.
        tiles: Times that the first of these axes is really longer, in tiles.
        repeats: Times that the last one is really longer, each index being repeated.
        before: Times that all labels are repeated one after the other.
        after: Times that each label is repeated.
    """

    sizes: tuple[int, ...]
    first: int
    last: int
    tiles: int
    repeats: int
    before: int
    after: int

    @staticmethod
    def of(wanted: Sequence[int], before: int, after: int) -> _Part:
        """Take away leading and trailing axes that the labels cannot depend on."""
        sizes, first, last = list(wanted), 0, len(wanted)
        while first < last - 1 and before % sizes[first] == 0:
            before, first = before // sizes[first], first + 1
        while last - 1 > first and after % sizes[last - 1] == 0:
            after, last = after // sizes[last - 1], last - 1
        tiles = before if sizes[first] % before == 0 else 1
        sizes[first] //= tiles
        repeats = after if sizes[last - 1] % after == 0 else 1
        sizes[last - 1] //= repeats
        part = tuple(sizes[first:last])
        return _Part(part, first, last, tiles, repeats, before // tiles, after // repeats)

    def widened(self, labels: Array, place: int) -> Array:
        """Return the labels of the axis at ``place`` at its real length."""
        if place == len(self.sizes) - 1:
            labels = np.repeat(labels, self.repeats)
        return np.tile(labels, self.tiles) if place == 0 else labels


def _one(site: Site, x: Axes, axes: Sequence[int]) -> int | None:
    """Return the axis of a group that can be cut; of several the one with the most labels."""
    free: dict[int, int] = {}
    for axis in axes:
        labels = x[axis]
        if labels is not None and not site.frozen(labels):
            free[axis] = len(np.unique(site.roots(labels)))
    if not free:
        return None
    chosen = max(free, key=lambda axis: free[axis])
    for axis in free:
        if axis != chosen:
            site.freeze(x[axis], _MERGED)
    return chosen


def _read_off(
    site: Site, full: Array, axes: Sequence[int], wanted: Sequence[int]
) -> tuple[int, Array]:
    """Return the axis of the result that carries the labels, and its labels."""
    roots = site.roots(full)
    rank = full.ndim
    varying = [
        i for i in range(rank) if full.shape[i] > 1 and (roots != roots.take([0], axis=i)).any()
    ]
    if not varying:
        varying = [max(range(rank), key=lambda i: full.shape[i])]
    if len(varying) == 1:
        chosen = varying[0]
        return axes[chosen], np.moveaxis(full, chosen, 0).reshape(full.shape[chosen], -1)[:, 0]
    left = [1] * len(wanted)
    for i in varying:
        others = tuple(j for j in range(rank) if j != i)
        left[axes[i]] = len(np.unique(roots.min(axis=others)))
    axis = site.prefer(left)
    chosen = axes.index(axis)
    moved = np.moveaxis(full, chosen, 0).reshape(full.shape[chosen], -1)
    distinct = [0, *np.flatnonzero((moved != moved[:, :1]).any(axis=0))]
    moved = moved[:, distinct]
    first = moved[:, 0].copy()
    for column in range(1, moved.shape[1]):
        first = np.asarray(site.unite(first, moved[:, column]))
    stays = (moved == STAYS).any(axis=1)
    return axis, np.where(stays, STAYS, first)


ENTRIES = rows(reshape, "Reshape", "Flatten", "Squeeze", "Unsqueeze")
