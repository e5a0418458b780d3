"""Rules of convolutions on integers, and of operators that onnxruntime fuses with others."""

from __future__ import annotations

import math
from dataclasses import dataclass

from converter.ops.axes.align import extent
from converter.ops.axes.blocks import by_position, freeze_axes, spread
from converter.ops.axes.linear import gemm
from converter.ops.axes.quantized import MICROSOFT, Product, vectors
from converter.ops.axes.site import Labels, Rule, Site, Unclear
from converter.ops.table import Entry


@dataclass(frozen=True)
class Window:
    """As Conv; scales, zero points, biases and what is added go with the channels.

    Attributes:
        w: Position of the weights.
        columns: Positions of biases, scales and zero points that may have one number per channel.
        residual: Position of what is added to the result.
    """

    w: int = 1
    columns: tuple[int, ...] = (2,)
    residual: int | None = None

    def __call__(self, site: Site) -> None:
        """Unite input channels with the weights' second axis; the first makes channels."""
        x, weight, sizes = site.labels(0), site.labels(self.w), site.shape(self.w)
        at = len(x) - 1 if site.node.attributes.get_int("channels_last", 0) else 1
        freeze_axes(site, weight[2:], "a window slides over the axis")
        for axis, labels in enumerate(x):
            if axis not in {0, at}:
                site.freeze(labels, "a window slides over the axis")
        y = vectors(site, self.columns, weight[0], sizes[0])
        y = self._channels(site, x[at], weight[1], y, at)
        y = self._residual(site, y, at)
        site.put(tuple({0: x[0], at: y}.get(axis) for axis in range(len(x))))
        result = site.output_shape()
        places = math.prod(size for axis, size in enumerate(result) if axis not in {0, at})
        site.work(
            places * math.prod(sizes[2:]),
            extent(x[0], result[0]),
            extent(y, sizes[0]),
            extent(weight[1], sizes[1]),
        )

    def _channels(self, site: Site, x: Labels, into: Labels, y: Labels, at: int) -> Labels:
        """Unite the channels that are read; of a depthwise one they are those that are made."""
        group, channels = site.node.attributes.get_int("group", 1), site.shape(0)[at]
        if group == channels and group > 1:
            return site.unite(y, spread(x, site.shape(self.w)[0] // group))
        site.unite(by_position(site, x, group), into)
        if x is not None:
            site.sink(0, at, "weights", weight=self.w, weight_axis=1)
        if group > 1 and y is not None:
            site.balance(y.reshape(group, -1))
        return y

    def _residual(self, site: Site, y: Labels, at: int) -> Labels:
        if self.residual is None or not site.given(self.residual):
            return y
        labels = site.labels(self.residual)
        freeze_axes(
            site,
            (axis for i, axis in enumerate(labels) if i not in {0, at}),
            "a window slides over the axis",
        )
        site.unite(site.labels(0)[0], labels[0])
        return site.unite(y, labels[at])


_PRODUCT = Product(0, 1)


def fused_matmul(site: Site) -> None:
    """FusedMatMul: as MatMul, either side perhaps transposed."""
    if any(site.node.attributes.get_int(name, 0) for name in ("transBatchA", "transBatchB")):
        raise Unclear("the batch of a fused product is transposed")
    _PRODUCT(site)


ENTRIES: tuple[Entry[Rule], ...] = (
    Entry("ConvInteger", Window(columns=(3,))),
    Entry("QLinearConv", Window(3, columns=(4, 5, 8))),
    Entry("QLinearConv", Window(3, columns=(4, 5, 8)), domain=MICROSOFT),
    Entry("FusedConv", Window(residual=3), domain=MICROSOFT),
    Entry("FusedGemm", gemm, domain=MICROSOFT),
    Entry("FusedMatMul", fused_matmul, domain=MICROSOFT),
    Entry("TransposeMatMul", fused_matmul, domain=MICROSOFT),
)
