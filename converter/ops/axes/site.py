"""What the row of an operator sees and says: one call of one operator, with labels on its axes.

Every axis of every value carries labels, one per index: equal labels are removed together. A rule
reads the labels of the inputs, unites what must go together and puts labels on the outputs. It
never looks at the contents of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
Labels = Array | None
"""Labels of one axis: int64 (size,); None: nothing can be removed from this axis."""
STAYS = 0
"""The label of an index that stays, on an axis of which others may go."""
Axes = tuple[Labels, ...]
"""Labels of all axes of one value."""
SinkKind = Literal[
    "weights",  # summed with a constant weight: Conv, Gemm, MatMul with a constant
    "product",  # summed with another activation: the contracted axis of a MatMul
    "sum",  # summed up as they are: ReduceSum, L1, L2, SumSquare, LogSumExp of nothing else
    "mean",  # averaged: the divisor changes with the number of labels
    "greatest",  # ReduceMax and the like
    "least",
    "layer_norm",  # statistics over the axis, then scaled: LayerNormalization
    "rms_norm",
    "group_norm",
    "instance_norm",  # over all axes but the first two, InstanceNormalization
    "recurrent",  # inside LSTM, GRU, RNN: the columns of R
    "heads",  # inside a fused attention operator
]


class Unclear(Exception):  # noqa: N818 - no error: the node is frozen and the reason reported
    """A rule cannot say how labels go through its node.

    Args:
        reason: For the report, as a short phrase.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Site(Protocol):
    """One node while labels are propagated through it."""

    @property
    def node(self) -> ir.Node:
        """The node."""

    @property
    def opset(self) -> int:
        """Version of the operator's domain."""

    def shape(self, position: int) -> tuple[int, ...]:
        """Return the sizes of an input, as observed in a run or as inferred."""

    def output_shape(self, index: int = 0) -> tuple[int, ...]:
        """Return the sizes of an output."""

    def labels(self, position: int) -> Axes:
        """Return the labels of an input; of a constant they are new ones for every axis."""

    def constant(self, position: int) -> Array | None:
        """Return a constant input, for index vectors, sizes and pads."""

    def given(self, position: int) -> bool:
        """Tell whether the node has this input."""

    def fixed(self, position: int) -> bool:
        """Tell whether an input is a constant or follows from constants alone."""

    def put(self, labels: Axes, index: int = 0) -> None:
        """Give an output its labels; outputs without any count as frozen."""

    def fresh(self, size: int) -> Array:
        """Return new labels, for an axis that the operator makes as long as it is told."""

    def unite(self, first: Labels, second: Labels) -> Labels:
        """Let two axes of equal size be removed together; None on one side freezes the other."""

    def roots(self, labels: Array) -> Array:
        """Return labels of any shape such that those united so far are equal numbers."""

    def frozen(self, labels: Array) -> bool:
        """Tell whether none of the labels can be removed, as far as is known."""

    def mark(self, labels: Labels, unit: str) -> None:
        """Say what people call these labels: "head" or "hidden"; all others are channels."""

    def prefer(self, sizes: Sequence[int]) -> int:
        """Choose which of the axes that a labelled axis is split into can be removed from.

        Args:
            sizes: Atoms that would be left along each axis of the output; 1: it takes no part.

        Returns:
            The position of the axis.
        """

    def freeze(self, labels: Labels, reason: str) -> None:
        """Forbid that any of the labels is removed; the first reason is kept."""

    def balance(self, blocks: Array) -> None:
        """Demand equal numbers removed from each row of (blocks, size), in contiguous blocks."""

    def sink(
        self,
        position: int,
        axis: int,
        kind: SinkKind,
        *,
        weight: int | None = None,
        weight_axis: int | None = None,
    ) -> None:
        """Say that the node sums over an axis of an input: what is removed must be zero here.

        Args:
            position: Of the activation input.
            axis: Of that input, not negative.
            kind: How it is summed.
            weight: Position of the constant whose axis ``weight_axis`` goes with it.
            weight_axis: See there.
        """

    def work(self, factor: int, *axes: Labels | int) -> None:
        """Count multiply-accumulates: ``factor`` times the sizes of the axes (labels, or a number).

        The factor holds what never changes (kernel, positions, batch), and None stands for a size
        that the factor holds already.
        """


Rule = Callable[[Site], None]
