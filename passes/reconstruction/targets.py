"""Rows of a layer in both models: what the changed one reads, and what the original makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.calibration.patches import patches
from passes.reconstruction.linear import Linear
from passes.reconstruction.tail import Tail

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.tuning.segments import Pieces

Array = np.ndarray[Any, Any]
Kept = Mapping[str, tuple[Array | None, ...]]
"""By value name, the indices of the original that are left on every axis; None: all."""


@dataclass(frozen=True, eq=False)
class Side:
    """A layer in one of the two models.

    Attributes:
        layer: The layer.
        tail: What follows it.
        pieces: The model, advanced to the layer.
    """

    layer: Linear
    tail: Tail
    pieces: Pieces

    @property
    def input(self) -> ir.Value:
        """The activation that the layer reads."""
        value = self.layer.node.inputs[0]
        assert value is not None
        return value

    def batches(self, value: ir.Value) -> Iterator[Array]:
        """Yield the numbers of a value batch by batch."""
        for array, scale, zero in self.pieces.arrays(value):
            if array.dtype.kind == "f" and scale == 1.0 and not zero:
                yield array
            else:
                yield (array.astype(np.float32) - np.float32(zero)) * np.float32(scale)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of all batches; everything float32.

    Attributes:
        inputs: What the changed layer reads: (rows, groups, inputs of a group).
        wanted: What the original has before the activation: (rows, outputs).
        rest: What the changed model has there beside the layer: (rows, outputs).
        held: bool (rows,): not to be fitted on.
    """

    inputs: Array
    wanted: Array
    rest: Array
    held: Array


def gather(student: Side, teacher: Side, kept: Kept, most: int, masks: list[Array]) -> Rows | str:
    """Take rows at the same positions of both models.

    Args:
        student: The changed layer.
        teacher: The same layer of the original.
        kept: What is left of the original.
        most: Most positions of one sample.
        masks: By batch, bool (samples,): not to be fitted on.

    Returns:
        The rows, or why the two cannot be compared.
    """
    layer = student.layer
    channels = _channels(kept, layer)
    if layer.outputs != (teacher.layer.outputs if channels is None else len(channels)):
        return "its output is not a part of the original's"
    linear = _teacher_map(teacher, channels)
    parts: list[tuple[Array, Array, Array, Array]] = []
    others = [_others(student, None), _others(teacher, kept)]
    pairs = zip(student.batches(student.input), _aligned(teacher, kept), strict=True)
    for i, (own, first) in enumerate(pairs):
        added = [None if each is None else next(each) for each in others]
        if own.shape[:1] != first.shape[:1] or own.ndim != first.ndim:
            return "its input has another shape than the original's"
        inputs = layer.rows(_plain(own), most, i)
        wanted = linear(teacher.layer.rows(_plain(first), most, i))
        if len(inputs) != len(wanted):
            return "its input has another shape than the original's"
        rest = np.broadcast_to(student.tail.offset.astype(np.float32), wanted.shape)
        try:
            if added[0] is not None:
                rest = rest + _spread(added[0], own, layer, most, i)
            if added[1] is not None:
                wanted = wanted + _spread(added[1], own, layer, most, i)
        except ValueError:
            return "what it is added to has another shape than its output"
        parts.append((inputs, wanted, rest, _held(masks[i], len(inputs))))
    if not parts:
        return "there are no samples"
    return Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _teacher_map(teacher: Side, channels: Array | None) -> Callable[[Array], Array]:
    """Return what makes the original's numbers before the activation from its input rows."""
    layer, tail = teacher.layer, teacher.tail
    chosen = np.arange(layer.outputs) if channels is None else channels
    gain = tail.gain[chosen].astype(np.float32)
    offset = (tail.gain * layer.bias + tail.offset)[chosen].astype(np.float32)
    groups, each = layer.weight.shape[:2]
    if groups == 1:
        dense = np.ascontiguousarray(layer.weight[0][chosen].T, np.float32)
        return lambda rows: (rows[:, 0] @ dense) * gain + offset
    weight = layer.weight.astype(np.float32)

    def grouped(rows: Array) -> Array:
        made = np.einsum("ngk,gok->ngo", rows, weight, optimize=True)
        picked: Array = made.reshape(len(rows), groups * each)[:, chosen]
        return picked * gain + offset

    return grouped


def _channels(kept: Kept, layer: Linear) -> Array | None:
    axes = kept.get(layer.node.outputs[0].name or "")
    return axes[layer.axis] if axes else None


def _aligned(teacher: Side, kept: Kept) -> Iterator[Array]:
    """Yield the original's input without what is gone on other axes than the channels'."""
    axes = list(kept.get(teacher.input.name or "", ()))
    if axes:
        axes[teacher.layer.axis] = None
    for array in teacher.batches(teacher.input):
        yield _chosen(array, axes)


def _others(side: Side, kept: Kept | None) -> Iterator[Array] | None:
    value = side.tail.other
    if value is None:
        return None
    axes = [] if kept is None else list(kept.get(value.name or "", ()))
    return (_chosen(array, axes) for array in side.batches(value))


def _chosen(array: Array, axes: list[Array | None]) -> Array:
    for axis, index in enumerate(axes):
        if index is not None:
            array = np.take(array, index, axis=axis)
    return array


def _spread(other: Array, own: Array, layer: Linear, most: int, seed: int) -> Array:
    """Return rows (rows, outputs) of what a layer's output is added to.

    Raises:
        ValueError: The shapes do not fit.
    """
    whole = np.broadcast_to(other, layer.shape(own))
    rows = patches(_plain(whole), layer.pointwise, most, seed)
    return rows.reshape(-1, layer.outputs)


def _plain(array: Array) -> Array:
    return array if array.dtype == np.float32 else array.astype(np.float32)


def _held(mask: Array, rows: int) -> Array:
    """Spread what holds for samples over their rows."""
    if rows % max(1, len(mask)):
        return np.full(rows, bool(mask[0]) if len(mask) else False)
    return np.repeat(mask, rows // max(1, len(mask)))
