"""The rows that a layer multiplies with its weight: im2col at sampled positions.

A Conv, Gemm or MatMul computes ``rows @ weight.T`` (per group). Which positions of a sample are
taken depends on the shape and the seed alone, so two arrays of one shape, such as the float and the
quantized input of a layer, give rows that belong together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Geometry:
    """How a layer cuts its input into rows.

    Attributes:
        kernel: Sizes of the window; () for Gemm and MatMul, whose rows are the last axis.
        strides: Steps of the window, one per axis of the kernel.
        dilations: Distance of the window's elements, one per axis of the kernel.
        pads: Zeros before and after every axis; ignored when ``auto_pad`` decides.
        auto_pad: "NOTSET", "VALID", "SAME_UPPER" or "SAME_LOWER".
        groups: Groups of channels with weights of their own.
    """

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] = ()
    auto_pad: str = "NOTSET"
    groups: int = 1

    @classmethod
    def of(cls, node: ir.Node, weight_shape: Sequence[int]) -> Geometry:
        """Read the geometry of a Conv or pooling (1 to 3 axes), Gemm or MatMul.

        Args:
            node: The layer; its first input is the activation.
            weight_shape: Shape of its weight, which gives the kernel of a Conv.

        Raises:
            ValueError: The operator has no such geometry, as Gemm with a transposed input.
        """
        if node.op_type == "MatMul" or (
            node.op_type == "Gemm" and not node.attributes.get_int("transA", 0)
        ):
            return cls()
        if node.op_type not in {"Conv", "AveragePool", "MaxPool"}:
            raise ValueError(f"{node.op_type} does not multiply rows of its input with its weight")
        kernel = tuple(int(k) for k in weight_shape[2:])
        axes, read = len(kernel), node.attributes
        pads = tuple(read.get_ints("pads", ())) or (0,) * (2 * axes)
        return cls(
            kernel,
            tuple(read.get_ints("strides", ())) or (1,) * axes,
            tuple(read.get_ints("dilations", ())) or (1,) * axes,
            tuple(zip(pads[:axes], pads[axes:], strict=True)),
            read.get_string("auto_pad", "NOTSET") or "NOTSET",
            read.get_int("group", 1),
        )

    def state(self) -> dict[str, Any]:
        """Return the fields as lists, numbers and text."""
        return {
            **vars(self),
            "kernel": list(self.kernel),
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            "pads": [list(pair) for pair in self.pads],
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Geometry:
        """Build it again from :meth:`state`."""
        return cls(
            tuple(state["kernel"]),
            tuple(state["strides"]),
            tuple(state["dilations"]),
            tuple((before, after) for before, after in state["pads"]),
            str(state["auto_pad"]),
            int(state["groups"]),
        )

    @property
    def reach(self) -> tuple[int, ...]:
        """Elements that the window spans on every axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def positions(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Return how many positions the window takes on every axis of these sizes."""
        return tuple(
            max(0, (size + sum(pads) - reach) // stride + 1)
            for size, pads, reach, stride in zip(
                sizes, self.padding(sizes), self.reach, self.strides, strict=True
            )
        )

    def padding(self, sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Return the zeros before and after every axis of an input of these spatial sizes."""
        if self.auto_pad == "NOTSET":
            return self.pads
        if self.auto_pad == "VALID":
            return ((0, 0),) * len(self.kernel)
        found = []
        for size, stride, reach in zip(sizes, self.strides, self.reach, strict=True):
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            less, more = total // 2, total - total // 2
            found.append((less, more) if self.auto_pad == "SAME_UPPER" else (more, less))
        return tuple(found)


def patches(x: Array, geometry: Geometry, most: int, seed: int) -> Array:
    """Return the rows at sampled positions of every sample.

    Args:
        x: The layer's input: (N, C, *spatial) for a kernel, else (..., K). Axis 0 counts samples.
        geometry: Of the layer.
        most: Most positions of one sample; all are taken, in order, where there are fewer.
        seed: Which positions: same seed and shape, same positions.

    Returns:
        x's type, (N * positions, groups, K), in the order of samples, then of positions. K counts
        (channels of the group, *kernel) in the order of the weight's axes; the weight as a matrix
        is ``weight.reshape(outputs, -1)``. Zero rows when the input is empty.
    """
    if not geometry.kernel:
        return _dense(x, most, seed)
    batch, channels = x.shape[:2]
    pads = geometry.padding(x.shape[2:])
    if any(p for pair in pads for p in pair):
        x = np.pad(x, ((0, 0), (0, 0), *pads))
    windows = _windows(x, geometry)
    positions = windows.shape[2 : 2 + len(geometry.kernel)]
    chosen = _positions(batch, int(np.prod(positions)), most, seed)
    where = np.unravel_index(chosen.reshape(-1), positions)
    samples = np.repeat(np.arange(batch), chosen.shape[1])
    index: tuple[Any, ...] = (samples, slice(None), *where)
    rows = windows[index]
    width = channels // geometry.groups * int(np.prod(geometry.kernel))
    return np.ascontiguousarray(rows).reshape(len(samples), geometry.groups, width)


def _dense(x: Array, most: int, seed: int) -> Array:
    """Rows of the last axis; samples are the first axis where there is one beside it."""
    samples = x.shape[0] if x.ndim > 1 else 1
    rows = x.reshape(samples, int(np.prod(x.shape[1:-1])), x.shape[-1])
    chosen = _positions(rows.shape[0], rows.shape[1], most, seed)
    taken = np.take_along_axis(rows, chosen[:, :, None], axis=1)
    return taken.reshape(-1, 1, x.shape[-1])


def _windows(x: Array, geometry: Geometry) -> Array:
    """Return a view (N, C, *positions, *kernel) of a padded input."""
    axes = tuple(range(2, 2 + len(geometry.kernel)))
    view = np.lib.stride_tricks.sliding_window_view(x, geometry.reach, axes)
    steps = [slice(None, None, s) for s in geometry.strides]
    inside = [slice(None, None, d) for d in geometry.dilations]
    cut: Array = view[(slice(None), slice(None), *steps, *inside)]
    return cut


def _positions(samples: int, positions: int, most: int, seed: int) -> Array:
    """Draw positions without repetition for every sample: int64 (samples, min(positions, most))."""
    if positions <= most:
        return np.broadcast_to(np.arange(positions), (samples, positions))
    rng = np.random.default_rng((seed, positions))
    drawn = [np.sort(rng.choice(positions, most, replace=False)) for _ in range(samples)]
    return np.stack(drawn) if drawn else np.zeros((0, most), np.int64)
