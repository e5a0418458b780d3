"""Rules of quantized operators: scales and zero points follow the axis they are about.

Where an integer is removed, it must stand for zero: its zero point, not the number 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converter.ops.axes.align import aligned, extent, normal
from converter.ops.axes.blocks import (
    by_block,
    count,
    freeze_axes,
    freeze_inputs,
    positions,
    with_axis,
)
from converter.ops.axes.site import STAYS, Axes, Labels, Rule, Site
from converter.ops.table import Entry

MICROSOFT = "com.microsoft"


def pass_on(site: Site) -> None:
    """All axes pass."""
    site.put(site.labels(0))


def affine(site: Site) -> None:
    """Scales and zero points go with their axis; a block with one scale goes as a whole."""
    labels, shape = site.labels(0), site.shape(0)
    block = site.node.attributes.get_int("block_size", 0)
    for position in (1, 2):
        if not site.given(position) or max(site.shape(position), default=1) == 1:
            continue  # one number; the axis need not fit then
        axis = normal(site.node.attributes.get_int("axis", 1), len(shape))
        if len(site.shape(position)) == 1:
            labels = with_axis(labels, axis, site.unite(labels[axis], site.labels(position)[0]))
        elif block:
            labels = _in_blocks(site, labels, position, axis)
    site.put(labels)


def _in_blocks(site: Site, labels: Axes, position: int, axis: int) -> Axes:
    """Let the block of numbers with one scale go as a whole; the last block may be shorter."""
    block = site.node.attributes.get_int("block_size", 1)
    for at, scales in enumerate(site.labels(position)):
        if site.shape(position)[at] == 1:
            continue  # one block stays one block, however short it gets
        if at == axis:
            site.unite(by_block(site, labels[at], block), scales)
        else:
            site.unite(labels[at], scales)
    return labels


def dynamic(site: Site) -> None:
    """DynamicQuantizeLinear: the range is that of all numbers and zero, so zeros change nothing."""
    labels = site.labels(0)
    for axis, axis_labels in enumerate(labels):
        if axis_labels is not None:
            site.sink(0, axis, "sum")
    site.put(labels)


def vectors(site: Site, places: tuple[int, ...], labels: Labels, size: int) -> Labels:
    """Unite scales, zero points and biases that have one number for every column."""
    for position in places:
        if site.given(position) and site.shape(position)[-1:] == (size,) and size > 1:
            labels = site.unite(labels, site.labels(position)[-1])
    return labels


@dataclass(frozen=True)
class Product:
    """As MatMul; scales and zero points go with rows and columns.

    Attributes:
        a: Position of the left matrix.
        b: Position of the right one.
        columns: Positions of vectors that may have one number per column of the right one.
        rows: Positions of vectors that may have one number per row of the left one.
    """

    a: int = 0
    b: int = 1
    columns: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()

    def __call__(self, site: Site) -> None:
        """Unite the inner axes; rows and columns pass."""
        a, b = self._matrix(site, self.a, "transA"), self._matrix(site, self.b, "transB")
        (left, left_shape, left_axes), (right, right_shape, right_axes) = a, b
        if len(left) < 2 or len(right) < 2:
            freeze_inputs(site, "a product of integers with a vector")
            return
        inner = site.unite(left[-1], right[-2])
        if site.fixed(self.b):
            site.sink(self.a, left_axes[-1], "weights", weight=self.b, weight_axis=right_axes[-2])
        elif site.fixed(self.a):
            site.sink(self.b, right_axes[-2], "weights", weight=self.a, weight_axis=left_axes[-1])
        else:
            site.sink(self.a, left_axes[-1], "product")
        columns = vectors(site, self.columns, right[-1], right_shape[-1])
        rows = vectors(site, self.rows, left[-2], left_shape[-2])
        operands = [(left[:-2], left_shape[:-2]), (right[:-2], right_shape[:-2])]
        outer = site.output_shape()[:-2]
        batch = aligned(site, operands, outer)
        site.put((*batch, rows, columns))
        site.work(
            1,
            *map(extent, batch, outer),
            extent(rows, left_shape[-2]),
            extent(inner, left_shape[-1]),
            extent(columns, right_shape[-1]),
        )

    def _matrix(
        self, site: Site, position: int, attribute: str
    ) -> tuple[Axes, tuple[int, ...], list[int]]:
        """Return labels, sizes and axes of a matrix as it is multiplied."""
        labels, shape = site.labels(position), site.shape(position)
        axes = list(range(len(shape)))
        if site.node.attributes.get_int(attribute, 0) and len(axes) > 1:
            axes[-2:] = [axes[-1], axes[-2]]
        return tuple(labels[i] for i in axes), tuple(shape[i] for i in axes), axes


@dataclass(frozen=True)
class Pair:
    """Both tensors go together, as broadcasting aligns them.

    Attributes:
        a: Position of the first.
        b: Position of the second.
        others: Positions of further tensors that broadcast, such as a condition.
    """

    a: int = 0
    b: int = 3
    others: tuple[int, ...] = ()

    def __call__(self, site: Site) -> None:
        """Unite the axes as broadcasting aligns them."""
        places = (self.a, self.b, *self.others)
        operands = [(site.labels(i), site.shape(i)) for i in places]
        site.put(aligned(site, operands, site.output_shape()))


def concat(site: Site) -> None:
    """As Concat, of triples of tensor, scale and zero point."""
    parts = [i for i in positions(site) if i >= 2 and (i - 2) % 3 == 0]
    rank = len(site.shape(parts[0]))
    axis = normal(site.node.attributes.get_int("axis", 0), rank)
    result = list(site.labels(parts[0]))
    for position in parts[1:]:
        labels = site.labels(position)
        for at in range(rank):
            if at != axis:
                result[at] = site.unite(result[at], labels[at])
    pieces = [
        np.full(site.shape(i)[axis], STAYS) if (x := site.labels(i)[axis]) is None else x
        for i in parts
    ]
    known = any(site.labels(i)[axis] is not None for i in parts)
    result[axis] = np.concatenate(pieces) if known else None
    site.put(tuple(result))


def pool(site: Site) -> None:
    """Pooling of a quantized image: batch and channels pass, places stay."""
    labels = site.labels(0)
    last = bool(site.node.attributes.get_int("channels_last", 0))
    channel = len(labels) - 1 if last else 1
    spatial = [i for i in range(1, len(labels)) if i != channel]
    freeze_axes(site, (labels[i] for i in spatial), "pooling runs over it")
    site.put(tuple(None if i in spatial else axis for i, axis in enumerate(labels)))


def softmax(site: Site) -> None:
    """QLinearSoftmax: the axis of the sum stays."""
    labels = site.labels(0)
    axis = normal(site.node.attributes.get_int("axis", -1), len(labels))
    old = site.node.attributes.get_int("opset", 13) < 13
    stay = range(axis, len(labels)) if old else (axis,)
    freeze_axes(site, (labels[i] for i in stay), "a softmax runs over it")
    site.put(tuple(None if i in stay else found for i, found in enumerate(labels)))


def reduce_mean(site: Site) -> None:
    """QLinearReduceMean: the averaged axes stay, others pass."""
    labels = site.labels(0)
    rank = len(labels)
    axes = [normal(axis, rank) for axis in site.node.attributes.get_ints("axes", range(rank))]
    freeze_axes(site, (labels[i] for i in axes), "it is averaged on integers")
    keep = site.node.attributes.get_int("keepdims", 1)
    result = [None if i in axes else found for i, found in enumerate(labels)]
    site.put(tuple(found for i, found in enumerate(result) if keep or i not in axes))


def blockwise_product(site: Site) -> None:
    """MatMulNBits: columns one by one, the inner axis in whole blocks where scales allow it."""
    size = site.node.attributes.get_int("block_size", 32)
    columns, inner_size = (site.node.attributes.get_int(name, 0) for name in ("N", "K"))
    x, weights = site.labels(0), site.labels(1)
    freeze_axes(site, weights[2:], "numbers are packed along it")
    columns_labels, inner = weights[0], by_block(site, x[-1], size)
    blocks = -(-inner_size // size)
    joint = site.given(4)  # an order of the inner axis
    for position in (2, 3):
        if not site.given(position):
            continue
        labels, shape = site.labels(position), site.shape(position)
        by_row = _row_length(shape, columns)
        if len(shape) == 1:
            columns_labels = site.unite(columns_labels, by_block(site, labels[0], by_row))
            joint = joint or blocks > 1
        else:
            columns_labels = site.unite(columns_labels, labels[0])
            joint = joint or shape[1] != blocks
            if shape[1] == blocks:
                inner = site.unite(inner, labels[1])
    if joint or blocks == 1:
        freeze_axes(site, (inner, weights[1]), "numbers are packed along it")
        freeze_inputs(site, "numbers are packed along it", only=(4,))
    else:
        inner = site.unite(inner, weights[1])
    if site.given(5):
        columns_labels = site.unite(columns_labels, site.labels(5)[0])
    site.sink(0, len(x) - 1, "weights", weight=1, weight_axis=1)
    site.put((*x[:-1], columns_labels))
    rows = count(site.shape(0)[:-1])
    site.work(rows, extent(columns_labels, columns), extent(x[-1], inner_size))


def _row_length(shape: tuple[int, ...], rows: int) -> int:
    """Return how many scales in a row of a flat list belong to one column."""
    return max(shape[0] // max(rows, 1), 1)


_ENTRIES_MICROSOFT: dict[str, Rule] = {
    "QuantizeLinear": affine,
    "DequantizeLinear": affine,
    "QGemm": Product(0, 3, columns=(4, 5, 6)),
    "MatMulIntegerToFloat": Product(0, 1, columns=(3, 5, 6), rows=(2, 4)),
    "DynamicQuantizeMatMul": Product(0, 1, columns=(2, 3, 4)),
    "MatMulInteger16": Product(),
    "QLinearAdd": Pair(),
    "QLinearMul": Pair(),
    "QLinearWhere": Pair(1, 4, others=(0,)),
    "QLinearConcat": concat,
    "QLinearGlobalAveragePool": pool,
    "QLinearAveragePool": pool,
    "QLinearLeakyRelu": pass_on,
    "QLinearSigmoid": pass_on,
    "QLinearSoftmax": softmax,
    "QLinearReduceMean": reduce_mean,
    "MatMulNBits": blockwise_product,
}
ENTRIES: tuple[Entry[Rule], ...] = (
    Entry("QuantizeLinear", affine),
    Entry("DequantizeLinear", affine),
    Entry("DynamicQuantizeLinear", dynamic),
    Entry("MatMulInteger", Product(0, 1, columns=(3,), rows=(2,))),
    Entry("QLinearMatMul", Product(0, 3, columns=(4, 5), rows=(1, 2))),
    *(Entry(name, rule, domain=MICROSOFT) for name, rule in _ENTRIES_MICROSOFT.items()),
)
