"""Convolutions and matrix products: where labels are made, and where they are summed up."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from converter.ops.axes.align import aligned, extent, freeze_from, rows
from converter.ops.axes.site import Axes, Labels, Site, Unclear

Array = np.ndarray[Any, Any]
_WINDOW = "a window slides over the axis"


def conv(site: Site) -> None:
    """Input channels are summed over; groups keep equal numbers; depthwise ones pass."""
    x, weight = site.labels(0), site.labels(1)
    sizes, group = site.shape(1), site.node.attributes.get_int("group", 1)
    channels = site.shape(0)[1]
    freeze_from(site, weight, 2, _WINDOW)
    y = _with_bias(site, weight[0], 2)
    if group == 1:
        site.unite(x[1], weight[1])
        _weighted(site, x[1], 1)
    elif group == channels:
        y = site.unite(y, _repeated(x[1], sizes[0] // group))
    else:
        site.unite(_by_position(site, x[1], group), weight[1])
        _weighted(site, x[1], 1)
        _balanced(site, y, group)
    _finish(site, x, y, extent(y, sizes[0]), extent(weight[1], sizes[1]))


def conv_transpose(site: Site) -> None:
    """As Conv; the kernel's first axis is the input, its second the output."""
    x, weight = site.labels(0), site.labels(1)
    sizes, group = site.shape(1), site.node.attributes.get_int("group", 1)
    freeze_from(site, weight, 2, _WINDOW)
    y: Labels
    site.unite(x[1], weight[0])
    if group == 1:
        y = weight[1]
        _weighted(site, x[1], 0)
    elif group == sizes[0]:
        site.freeze(weight[1], "each of its groups makes several channels")
        y = _repeated(x[1], sizes[1])
    else:
        y = None if weight[1] is None else np.tile(weight[1], group)
        _weighted(site, x[1], 0)
        _balanced(site, x[1], group)
    y = _with_bias(site, y, 2)
    _finish(site, x, y, extent(weight[0], sizes[0]), extent(weight[1], sizes[1]))


def _finish(site: Site, x: Axes, y: Labels, *channels: Array | int) -> None:
    freeze_from(site, x, 2, _WINDOW)
    site.put((x[0], y, *(None,) * (len(x) - 2)))
    counted = site.shape(0) if site.node.op_type == "ConvTranspose" else site.output_shape()
    factor = math.prod(counted[2:]) * math.prod(site.shape(1)[2:])
    site.work(factor, extent(x[0], counted[0]), *channels)


def _with_bias(site: Site, y: Labels, position: int) -> Labels:
    if not site.given(position):
        return y
    (bias,) = site.labels(position)
    return site.unite(y, bias)


def _weighted(site: Site, labels: Labels, weight_axis: int) -> None:
    if labels is None:
        return
    if site.fixed(1):
        site.sink(0, 1, "weights", weight=1, weight_axis=weight_axis)
    else:
        site.sink(0, 1, "product")


def _repeated(labels: Labels, times: int) -> Labels:
    return None if labels is None else np.repeat(labels, times)


def _by_position(site: Site, labels: Labels, group: int) -> Labels:
    """Unite what has the same position in every group."""
    if labels is None:
        return None
    blocks = labels.reshape(group, -1)
    site.unite(np.tile(blocks[0], group - 1), blocks[1:].ravel())
    return blocks[0] if blocks.shape[1] > 1 else _only(site, blocks[0])


def _only(site: Site, labels: Labels) -> Labels:
    site.freeze(labels, "it is the only channel of its group")
    return None


def _balanced(site: Site, labels: Labels, group: int) -> None:
    if labels is not None:
        site.balance(labels.reshape(group, -1))


def gemm(site: Site) -> None:
    """As MatMul, each factor perhaps transposed; C goes with the result."""
    read = site.node.attributes
    rows_, k = (1, 0) if read.get_int("transA", 0) else (0, 1)
    k2, columns = (1, 0) if read.get_int("transB", 0) else (0, 1)
    a, b = site.labels(0), site.labels(1)
    (m, n), inner = site.output_shape(), site.shape(0)[k]
    site.unite(a[k], b[k2])
    _contracted(site, a[k], b[k2], k, k2)
    y: Axes = (a[rows_], b[columns])
    if site.given(2):
        y = aligned(site, [(y, (m, n)), (site.labels(2), site.shape(2))], (m, n))
    site.put(y)
    site.work(1, extent(y[0], m), extent(y[1], n), extent(a[k], inner))


def _contracted(site: Site, a: Labels, b: Labels, k: int, k2: int) -> None:
    if site.fixed(1):
        if not site.fixed(0) and a is not None:
            site.sink(0, k, "weights", weight=1, weight_axis=k2)
    elif b is not None:
        if site.fixed(0):
            site.sink(1, k2, "weights", weight=0, weight_axis=k)
        else:
            site.sink(0, k, "product")


def matmul(site: Site) -> None:
    """The inner axes are summed over and go together; outer ones pass, batch axes go together."""
    a, b = site.labels(0), site.labels(1)
    first, second = site.shape(0), site.shape(1)
    if not a or not b:
        raise Unclear("a factor is a scalar")
    k, k2 = len(a) - 1, max(len(b) - 2, 0)
    site.unite(a[k], b[k2])
    _contracted(site, a[k], b[k2], k, k2)
    batch = tuple(np.broadcast_shapes(first[:-2], second[:-2]))
    y = aligned(site, [(a[:-2], first[:-2]), (b[:-2], second[:-2])], batch)
    matrix: list[tuple[Labels, int]] = []
    if len(a) > 1:
        matrix.append((a[-2], first[-2]))
    if len(b) > 1:
        matrix.append((b[-1], second[-1]))
    site.put((*y, *(labels for labels, _ in matrix)))
    counted = [*zip(y, batch, strict=True), *matrix, (a[k], first[k])]
    site.work(1, *(extent(labels, size) for labels, size in counted))


ENTRIES = [
    *rows(conv, "Conv"),
    *rows(conv_transpose, "ConvTranspose"),
    *rows(gemm, "Gemm"),
    *rows(matmul, "MatMul"),
]
