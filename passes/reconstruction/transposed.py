"""ConvTranspose as a convolution: of an input with zeros between its elements, kernel reversed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.calibration.patches import Geometry

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Stuffing:
    """How the input is spread out.

    Attributes:
        strides: Distance of its elements afterwards, by spatial axis.
    """

    strides: tuple[int, ...]

    def sizes(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial sizes afterwards."""
        return tuple((n - 1) * s + 1 for n, s in zip(sizes, self.strides, strict=True))

    def __call__(self, x: Array) -> Array:
        """Put zeros between the elements of (N, C, *spatial)."""
        made = np.zeros((*x.shape[:2], *self.sizes(x.shape[2:])), x.dtype)
        made[(slice(None), slice(None), *(slice(None, None, s) for s in self.strides))] = x
        return made


def stuffing_of(node: ir.Node, shape: Sequence[int]) -> tuple[Stuffing, Geometry] | str:
    """Read a ConvTranspose, or say why it is not followed.

    Args:
        node: The layer.
        shape: Of its weight: (inputs, outputs of a group, *kernel).
    """
    read, kernel = node.attributes, tuple(int(k) for k in shape[2:])
    axes = len(kernel)
    automatic = read.get_string("auto_pad", "NOTSET") not in {"NOTSET", "", None}
    if automatic or "output_shape" in node.attributes or not axes:
        return "its padding follows from sizes"
    pads = tuple(read.get_ints("pads", ())) or (0,) * (2 * axes)
    more = tuple(read.get_ints("output_padding", ())) or (0,) * axes
    dilations = tuple(read.get_ints("dilations", ())) or (1,) * axes
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    around = tuple(
        (r - before, r - after + extra)
        for r, before, after, extra in zip(reach, pads[:axes], pads[axes:], more, strict=True)
    )
    if any(side < 0 for pair in around for side in pair):
        return "its padding cuts off more than its kernel adds"
    strides = tuple(read.get_ints("strides", ())) or (1,) * axes
    groups = read.get_int("group", 1)
    return Stuffing(strides), Geometry(kernel, (1,) * axes, dilations, around, "NOTSET", groups)


def matrices(weight: Array, groups: int) -> Array:
    """Return a weight as float64 (groups, outputs of a group, inputs of a group)."""
    inputs, outputs = weight.shape[:2]
    spatial = tuple(range(3, weight.ndim + 1))
    grouped = weight.astype(np.float64).reshape(groups, inputs // groups, *weight.shape[1:])
    turned = np.flip(grouped.swapaxes(1, 2), spatial)
    return np.ascontiguousarray(turned).reshape(groups, outputs, -1)


def from_matrices(rows: Array, shape: Sequence[int]) -> Array:
    """Undo :func:`matrices`."""
    groups, outputs = rows.shape[:2]
    spatial = tuple(range(3, len(shape) + 1))
    grouped = rows.reshape(groups, outputs, shape[0] // groups, *shape[2:])
    return np.flip(grouped, spatial).swapaxes(1, 2).reshape(tuple(shape))
