"""Statistics per channel: moments, and largest magnitudes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from converter.calibration.statistic import ONE, Request, Source
from converter.errors import DataError

Array = np.ndarray[Any, Any]


def _empty() -> Array:
    return np.zeros(0)


@dataclass(eq=False)
class Moments:
    """Sums of elements and of their squares per channel, in float64.

    Within one sample and channel elements are added in float32, sums of that in float64.
    The error of the mean is estimated from the means of single samples.

    Attributes:
        axis: The axis of the channels, negative from the end.
        count: Elements per channel.
        sums: Sum of elements: float64 (channels,), size 0 before the first element.
        squares: Sum of squares: float64 (channels,).
        samples: Samples taken in.
        means: Sum over samples of the sample's mean: float64 (channels,).
        mean_squares: Sum over samples of its square: float64 (channels,).
    """

    sketches: ClassVar[tuple[str, ...]] = ("mean", "mean_square", "size")

    axis: int = 1
    count: int = 0
    sums: Array = field(default_factory=_empty)
    squares: Array = field(default_factory=_empty)
    samples: int = 0
    means: Array = field(default_factory=_empty)
    mean_squares: Array = field(default_factory=_empty)

    @classmethod
    def begin(cls, request: Request) -> Self:
        """Make an empty one for the channels that the request names."""
        return cls(request.axis)

    def update(self, array: Array, source: Source = ONE) -> None:
        """Take in one tensor; an empty one changes nothing."""
        if not array.size:
            return
        samples = source.samples if array.ndim > 1 and array.shape[0] == source.samples else 1
        cut = _by_sample(array, self.axis, samples)
        sums = cut.sum(axis=2, dtype=np.float32)
        squares = np.einsum("scn,scn->sc", cut, cut)
        self._add(sums, squares, cut.shape[2])

    def update_reduced(self, *values: Array, source: Source = ONE) -> None:
        """Take in one tensor by the means of elements and squares, and its size."""
        size = int(values[2])
        if not size:
            return
        mean, square = (v.reshape(v.shape[:2]).astype(np.float64) for v in values[:2])
        count = size // mean.size
        if len(mean) != source.samples:  # an axis of another kind: one sample
            mean, square = mean.mean(axis=0, keepdims=True), square.mean(axis=0, keepdims=True)
            count = size // mean.size
        self._add(mean * count, square * count, count)

    def merge(self, other: Moments) -> None:
        """Take in everything that ``other`` has seen; sums are added in the order of merging."""
        if not other.samples:
            return
        self.count += other.count
        self.samples += other.samples
        for name in ("sums", "squares", "means", "mean_squares"):
            setattr(self, name, _added(getattr(self, name), getattr(other, name)))

    def state(self) -> dict[str, Any]:
        """Return sums and counts."""
        return dict(vars(self))

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Build it again from :meth:`state`."""
        return cls(**state)

    @property
    def nbytes(self) -> int:
        """Memory held: four numbers per channel."""
        return 4 * int(self.sums.nbytes) + 24

    @property
    def finite(self) -> bool:
        """True when nothing was NaN, infinite or too large to square."""
        return bool(np.isfinite(self.sums).all() and np.isfinite(self.squares).all())

    @property
    def mean(self) -> Array:
        """Mean per channel: float64 (channels,)."""
        return np.asarray(self.sums / max(self.count, 1))

    @property
    def variance(self) -> Array:
        """Mean squared distance from the mean per channel: float64 (channels,), not below 0."""
        return np.asarray(np.maximum(self.squares / max(self.count, 1) - self.mean**2, 0.0))

    @property
    def error(self) -> Array:
        """Standard error of the mean over samples: float64 (channels,); inf below two samples."""
        if self.samples < 2:
            return np.full(self.sums.shape, np.inf)
        middle = self.means / self.samples
        spread = np.maximum(self.mean_squares / self.samples - middle**2, 0.0)
        return np.asarray(np.sqrt(spread / (self.samples - 1)))

    def _add(self, sums: Array, squares: Array, count: int) -> None:
        """Take in sums (samples, channels) over ``count`` elements each."""
        wide = sums.astype(np.float64)
        means = wide / count
        self.count += count * len(wide)
        self.samples += len(wide)
        self.sums = _added(self.sums, wide.sum(axis=0))
        self.squares = _added(self.squares, squares.astype(np.float64).sum(axis=0))
        self.means = _added(self.means, means.sum(axis=0))
        self.mean_squares = _added(self.mean_squares, (means**2).sum(axis=0))


@dataclass(eq=False)
class AbsMax:
    """The largest magnitude per channel; merging is exact in any order. NaN stays.

    Attributes:
        axis: The axis of the channels, negative from the end.
        largest: float32 (channels,), size 0 before the first element.
    """

    sketches: ClassVar[tuple[str, ...]] = ("low_per_channel", "high_per_channel")

    axis: int = 1
    largest: Array = field(default_factory=lambda: np.zeros(0, np.float32))

    @classmethod
    def begin(cls, request: Request) -> Self:
        """Make an empty one for the channels that the request names."""
        return cls(request.axis)

    def update(self, array: Array, source: Source = ONE) -> None:
        """Take in one tensor; an empty one changes nothing."""
        if array.size:
            cut = _by_sample(array, self.axis, 1)[0]
            self._raise(cut.min(axis=1), cut.max(axis=1))

    def update_reduced(self, *values: Array, source: Source = ONE) -> None:
        """Take in one tensor by the (smallest, largest) element of each channel."""
        low, high = values
        if low.size:
            self._raise(low, high)

    def merge(self, other: AbsMax) -> None:
        """Take in everything that ``other`` has seen."""
        if other.largest.size:
            self._raise(other.largest, other.largest)

    def state(self) -> dict[str, Any]:
        """Return the magnitudes."""
        return {"axis": self.axis, "largest": self.largest}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Build it again from :meth:`state`."""
        return cls(int(state["axis"]), np.asarray(state["largest"], np.float32))

    @property
    def nbytes(self) -> int:
        """Memory held: one number per channel."""
        return int(self.largest.nbytes) + 8

    def _raise(self, low: Array, high: Array) -> None:
        found = np.maximum(np.abs(low), np.abs(high)).astype(np.float32)
        if self.largest.size:
            _check(self.largest, found)
            found = np.maximum(self.largest, found)
        self.largest = found


def _by_sample(array: Array, axis: int, samples: int) -> Array:
    """Return float32 (samples, channels, elements of one channel of one sample).

    Raises:
        DataError: The tensor has no such axis.
    """
    if not -array.ndim <= axis < array.ndim:
        raise DataError(f"a tensor of {array.ndim} axes has no channels on axis {axis}")
    front = np.moveaxis(array, axis, 0)
    if axis % array.ndim == 0:  # channels and samples are one axis: samples cannot be told apart
        samples = 1
    cut = front.reshape(front.shape[0], samples, -1).swapaxes(0, 1)
    return np.ascontiguousarray(cut, np.float32)


def _added(left: Array, right: Array) -> Array:
    if not left.size:
        return right
    _check(left, right)
    return np.asarray(left + right)


def _check(left: Array, right: Array) -> None:
    if left.shape != right.shape:
        raise DataError(
            f"a tensor has {left.size} channels in one sample and {right.size} in another",
            hint="statistics per channel need the same number of channels in every sample",
        )
