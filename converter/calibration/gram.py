"""The Gram matrix of a layer's input rows: all that rounding a layer's weight needs of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from converter.calibration.patches import Geometry, patches
from converter.calibration.statistic import ONE, Request, Source
from converter.errors import DataError

Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class Gram:
    """Products of all pairs of columns, summed over sampled rows.

    Rows of one tensor are multiplied in float32 and added up in float64. Rows with NaN or infinity
    are left out.

    Attributes:
        geometry: How the layer cuts its input into rows.
        most: Most rows of one sample.
        rows: Rows taken in, per group.
        unusable: Rows that were left out.
        products: float64 (groups, K, K); size 0 before the first row.
        sums: Sum of the rows: float64 (groups, K).
    """

    sketches: ClassVar[tuple[str, ...]] = ()

    geometry: Geometry
    most: int = 256
    rows: int = 0
    unusable: int = 0
    products: Array = field(default_factory=lambda: np.zeros((0, 0, 0)))
    sums: Array = field(default_factory=lambda: np.zeros((0, 0)))

    @classmethod
    def begin(cls, request: Request) -> Self:
        """Make an empty one for the layer that the request describes."""
        return cls(request.geometry or Geometry(), request.rows)

    def update(self, array: Array, source: Source = ONE) -> None:
        """Take in one tensor; other positions are drawn for every batch."""
        if not array.size:
            return
        taken = patches(
            array.astype(np.float32, copy=False), self.geometry, self.most, source.first
        )
        usable = np.isfinite(taken).all(axis=(1, 2))
        if not usable.all():
            self.unusable += int((~usable).sum())
            taken = taken[usable]
        if not len(taken):
            return
        groups = np.ascontiguousarray(taken.swapaxes(0, 1))
        products = np.matmul(groups.swapaxes(1, 2), groups).astype(np.float64)
        self._add(len(taken), products, groups.sum(axis=1, dtype=np.float64))

    def update_reduced(self, *values: Array, source: Source = ONE) -> None:
        """Take in a whole tensor: nothing smaller will do."""
        self.update(values[0], source)

    def merge(self, other: Gram) -> None:
        """Take in everything that ``other`` has seen; sums are added in the order of merging."""
        self.unusable += other.unusable
        if other.rows:
            self._add(other.rows, other.products, other.sums)

    def state(self) -> dict[str, Any]:
        """Return geometry, counts and sums."""
        return {**vars(self), "geometry": self.geometry.state()}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Build it again from :meth:`state`."""
        return cls(**{**state, "geometry": Geometry.restore(state["geometry"])})

    @property
    def nbytes(self) -> int:
        """Memory held: K numbers per column and group."""
        return int(self.products.nbytes + self.sums.nbytes) + 16

    @property
    def mean(self) -> Array:
        """Mean row: float64 (groups, K)."""
        return np.asarray(self.sums / max(self.rows, 1))

    @property
    def centred(self) -> Array:
        """Products of the rows without their mean: float64 (groups, K, K)."""
        mean = self.mean
        return np.asarray(self.products - self.rows * mean[:, :, None] * mean[:, None, :])

    def _add(self, rows: int, products: Array, sums: Array) -> None:
        if not self.rows:
            self.products, self.sums = products.copy(), sums.copy()
        elif self.products.shape != products.shape:
            raise DataError("the rows of a layer's input differ in length between samples")
        else:
            self.products += products
            self.sums += sums
        self.rows += rows
