"""Which channels of which values must have the same scale: the graph seen channel by channel.

Every channel of every layer output gets a number. Operators that commute with a positive factor
per channel hand the numbers on, additions tie them together, everything else freezes them. What is
left are classes of channels that may be divided by any positive number where they are made and
multiplied by it where they are read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from passes.equalization.layers import Array, Layer

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a value.

    Attributes:
        ids: Number of the class of each channel, int64.
        axis: Axis of the channels, counted from the end.
        rank: Axes of the value; None: not known, the channels are last.
        flat: Each channel is a run of neighbours, all of one length, along the axis.
        single: There is one element per channel and sample.
    """

    ids: Array
    axis: int
    rank: int | None
    flat: bool = False
    single: bool = False

    def alike(self, other: Channels) -> bool:
        """Tell whether adding the two values adds equal channels."""
        same = self.ids.size == other.ids.size and self.flat == other.flat
        return same and self.axis == other.axis


@dataclass(frozen=True, eq=False)
class Side:
    """The input or output of a layer.

    Attributes:
        layer: The layer.
        value: The value read or made.
        ids: Classes of the layer's channels there.
    """

    layer: Layer
    value: ir.Value
    ids: Array


@dataclass(frozen=True, eq=False)
class Vector:
    """A constant that is added to channels and has to be divided as they are."""

    value: ir.Value
    ids: Array


@dataclass
class Flow:
    """Channels of one graph.

    Attributes:
        writers: Layers that make channels.
        readers: Layers that multiply channels.
        vectors: Constants added to channels.
        limits: Clip nodes and the classes that pass through.
        channels: By value.
        frozen: Classes that nobody may scale, with the reason.
        refused: Layers that cannot be scaled at all, with the reason.
    """

    writers: list[Side] = field(default_factory=list)
    readers: list[Side] = field(default_factory=list)
    vectors: list[Vector] = field(default_factory=list)
    limits: list[tuple[ir.Node, Array]] = field(default_factory=list)
    channels: dict[ir.Value, Channels] = field(default_factory=dict)
    frozen: list[tuple[Array, str]] = field(default_factory=list)
    refused: list[tuple[ir.Node, str]] = field(default_factory=list)
    size: int = 0
    _ties: list[tuple[Array, Array]] = field(default_factory=list)

    def freeze(self, value: ir.Value | None, reason: str) -> None:
        """Forbid scaling of a value's channels."""
        found = None if value is None else self.channels.get(value)
        if found is not None:
            self.frozen.append((found.ids, reason))

    def tie(self, one: Channels, other: Channels) -> None:
        """Let equal positions of two values have equal scales."""
        self._ties.append((one.ids, other.ids))

    def new(self, count: int) -> Array:
        """Return fresh classes."""
        self.size += count
        return np.arange(self.size - count, self.size)

    def settle(self) -> None:
        """Replace every number by the smallest one that it is tied to."""
        smallest = np.arange(self.size)
        if self._ties:
            left = np.concatenate([one for one, _ in self._ties])
            right = np.concatenate([other for _, other in self._ties])
            _connect(smallest, left, right)
        self._ties.clear()
        self.writers = [replace(s, ids=smallest[s.ids]) for s in self.writers]
        self.readers = [replace(s, ids=smallest[s.ids]) for s in self.readers]
        self.vectors = [replace(v, ids=smallest[v.ids]) for v in self.vectors]
        self.limits = [(node, smallest[ids]) for node, ids in self.limits]
        self.frozen = [(smallest[ids], reason) for ids, reason in self.frozen]
        self.channels = {v: replace(c, ids=smallest[c.ids]) for v, c in self.channels.items()}


def _connect(smallest: Array, left: Array, right: Array) -> None:
    """Label connected numbers alike, with the smallest one of them; edits ``smallest``."""
    while True:
        before = smallest.copy()
        low = np.minimum(smallest[left], smallest[right])
        for ends in (left, right):
            np.minimum.at(smallest, smallest[ends], low)
            np.minimum.at(smallest, ends, low)
        smallest[:] = smallest[smallest]
        if (smallest == before).all():
            return
