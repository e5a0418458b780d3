"""Normalization, pooling and what else looks along some axes and leaves the others alone."""

from __future__ import annotations

from converter.ops.axes.align import freeze_from, normal, rows
from converter.ops.axes.site import Axes, Labels, Rule, SinkKind, Site

_WINDOW = "a window slides over the axis"
_STATISTICS = "statistics are taken over the axis"


def pool(site: Site) -> None:
    """Batch and channels pass, places stay."""
    x = site.labels(0)
    freeze_from(site, x, 2, _WINDOW)
    if len(site.node.outputs) > 1 and site.node.outputs[1].name:
        site.freeze(x[1], "the indices that MaxPool gives out count all channels")
    site.put((*x[:2], *(None,) * (len(site.output_shape()) - 2)))


def batch_norm(site: Site) -> None:
    """All vectors go with the channels."""
    x = site.labels(0)
    channels: Labels = x[1] if len(x) > 1 else x[0]
    for position in range(1, len(site.node.inputs)):
        if site.given(position):
            channels = site.unite(channels, site.labels(position)[0])
    site.put((x[0], channels, *x[2:]) if len(x) > 1 else (channels,))


def instance_norm(site: Site) -> None:
    """As batch normalization, and the other axes are averaged over.

    Channels lie there where exporters write out a group normalization: (N, groups, rest).
    """
    for axis, labels in enumerate(site.labels(0)):
        if axis > 1 and labels is not None:
            site.sink(0, axis, "instance_norm")
    batch_norm(site)


def group_norm(site: Site) -> None:
    """Channels of every group are averaged over; every group keeps as many."""
    x = site.labels(0)
    freeze_from(site, x, 2, _STATISTICS)
    channels = x[1]
    groups = site.node.attributes.get_int("num_groups", 1)
    for position in (1, 2):
        (vector,) = site.labels(position)
        if site.shape(position)[0] == site.shape(0)[1]:
            channels = site.unite(channels, vector)
        else:
            site.freeze(vector, "it belongs to a whole group")
    if channels is not None:
        site.balance(channels.reshape(groups, -1))
        site.sink(0, 1, "group_norm")
    site.put((x[0], channels, *x[2:]))


def _layer_norm(kind: SinkKind) -> Rule:
    def rule(site: Site) -> None:
        """Scale and bias go with the last axes, over which statistics are taken."""
        x = site.labels(0)
        axis = normal(site.node.attributes.get_int("axis", -1), len(x))
        result = list(x)
        for position in (1, 2):
            if site.given(position):
                _follow(site, result, position)
        for number in range(axis, len(x)):
            if result[number] is not None:
                site.sink(0, number, kind)
        site.put(tuple(result))
        for index in (1, 2):
            site.put((*x[:axis], *(None,) * (len(x) - axis)), index)

    return rule


def _follow(site: Site, result: list[Labels], position: int) -> None:
    """Unite the axes of a scale or bias with the last axes."""
    axes, sizes = site.labels(position), site.shape(position)
    start = len(result) - len(axes)
    for number, (labels, size) in enumerate(zip(axes, sizes, strict=True), start):
        if size > 1:
            result[number] = site.unite(result[number], labels)


def _skip_norm(kind: SinkKind) -> Rule:
    vectors = (2, 3, 4) if kind == "layer_norm" else (2, 3)

    def rule(site: Site) -> None:
        """Two streams are added and normalized over the last axis; all vectors go with it."""
        result = [
            site.unite(a, b) if site.shape(1) == site.shape(0) else a
            for a, b in zip(site.labels(0), site.labels(1), strict=False)
        ]
        for position in vectors:
            if site.given(position):
                _follow(site, result, position)
        if result[-1] is not None:
            site.sink(0, len(result) - 1, kind)
            site.sink(1, len(result) - 1, kind)
        site.put(tuple(result))
        site.put(tuple(result), 3)

    return rule


def _frozen_axis(default: int, reason: str, *, onwards: bool = False) -> Rule:
    """Freeze one axis (``onwards``: and all behind it)."""

    def rule(site: Site) -> None:
        """The axis that it is taken over stays, the others pass."""
        x = site.labels(0)
        first = normal(site.node.attributes.get_int("axis", default), len(x))
        last = len(x) if onwards else first + 1
        result: list[Labels] = list(x)
        for axis in range(first, last):
            site.freeze(x[axis], reason)
            result[axis] = None
        for index in range(len(site.node.outputs)):
            site.put(tuple(result), index)

    return rule


def lrn(site: Site) -> None:
    """Neighbouring channels are summed."""
    x = site.labels(0)
    site.freeze(x[1], "LRN sums over neighbouring channels")
    site.put((x[0], None, *x[2:]))


def image_scaler(site: Site) -> None:
    """The offsets of the channels are an attribute."""
    x = site.labels(0)
    site.freeze(x[1], "ImageScaler holds an offset of every channel")
    site.put((x[0], None, *x[2:]))


def mean_variance(site: Site) -> None:
    """Statistics over some axes without any parameter."""
    x: Axes = site.labels(0)
    taken = site.node.attributes.get_ints("axes", [0, 2, 3])
    axes = {normal(axis, len(x)) for axis in taken}
    for axis in sorted(axes):
        site.freeze(x[axis], _STATISTICS)
    site.put(tuple(None if axis in axes else labels for axis, labels in enumerate(x)))


def last_two(site: Site) -> None:
    """Trilu: positions on the last two axes count."""
    x = site.labels(0)
    freeze_from(site, x, len(x) - 2, "its positions count")
    site.put((*x[:-2], None, None))


_SOFTMAX = "Softmax is taken over the axis"
_POOLS = "AveragePool Crop GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool"
ENTRIES = [
    *rows(pool, *_POOLS.split()),
    *rows(batch_norm, "BatchNormalization"),
    *rows(instance_norm, "InstanceNormalization"),
    *rows(group_norm, "GroupNormalization"),
    *rows(_layer_norm("layer_norm"), "LayerNormalization"),
    *rows(_layer_norm("rms_norm"), "RMSNormalization", "SimplifiedLayerNormalization"),
    *rows(_skip_norm("layer_norm"), "SkipLayerNormalization", domain="com.microsoft"),
    *rows(_skip_norm("rms_norm"), "SkipSimplifiedLayerNormalization", domain="com.microsoft"),
    *rows(_frozen_axis(-1, _SOFTMAX), "Softmax", "LogSoftmax", "Hardmax", since=13),
    *rows(_frozen_axis(1, _SOFTMAX, onwards=True), "Softmax", "LogSoftmax", "Hardmax", until=12),
    *rows(_frozen_axis(-1, "LpNormalization is taken over the axis"), "LpNormalization"),
    *rows(image_scaler, "ImageScaler"),
    *rows(lrn, "LRN"),
    *rows(mean_variance, "MeanVarianceNormalization"),
    *rows(last_two, "Trilu"),
]
