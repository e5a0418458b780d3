"""Rules of operators that look up or write elements by numbers, and of fused embeddings."""

from __future__ import annotations

from converter.ops.axes.align import normal
from converter.ops.axes.blocks import freeze_axes, freeze_inputs, wanted
from converter.ops.axes.site import Axes, Labels, Rule, Site
from converter.ops.table import Entry

_LOOKED_UP = "rows are looked up by number"


def gather_elements(site: Site) -> None:
    """GatherElements: the axis of the numbers stays, axes that are read in full pass."""
    axis = normal(site.node.attributes.get_int("axis", 0), len(site.shape(0)))
    site.put(_beside(site, axis, 1))


def scatter_elements(site: Site) -> None:
    """The axis that is written to stays, axes that are written in full pass."""
    axis = normal(site.node.attributes.get_int("axis", 0), len(site.shape(0)))
    indices, updates = _beside(site, axis, 1), site.labels(2)
    for at, (first, second) in enumerate(zip(indices, updates, strict=True)):
        if at == axis:
            freeze_axes(site, (first, second), _LOOKED_UP)
        elif site.shape(2)[at] > 1:
            site.unite(first, second)
    site.put(site.labels(0))


def _beside(site: Site, axis: int, position: int) -> Axes:
    """Unite data and numbers on all axes but one; partly read axes stay. Returns the numbers'."""
    data, numbers = site.labels(0), site.labels(position)
    result: list[Labels] = []
    for at, (first, second) in enumerate(zip(data, numbers, strict=True)):
        if at == axis:
            site.freeze(first, _LOOKED_UP)
            result.append(second)
        elif site.shape(0)[at] == site.shape(position)[at]:
            result.append(site.unite(first, second))
        else:
            freeze_axes(site, (first, second), "a part of it is looked up")
            result.append(None)
    return tuple(result)


def gather_nd(site: Site) -> None:
    """GatherND: the axes that the numbers point into stay, those behind pass."""
    data, numbers = site.labels(0), site.labels(1)
    batch = site.node.attributes.get_int("batch_dims", 0)
    depth = batch + site.shape(1)[-1]
    shared = [site.unite(data[i], numbers[i]) for i in range(batch)]
    freeze_axes(site, (*data[batch:depth], numbers[-1]), _LOOKED_UP)
    site.put((*shared, *numbers[batch:-1], *data[depth:]))


def scatter_nd(site: Site) -> None:
    """The axes that the numbers point into stay; those behind go with what is written."""
    data, numbers, updates = (site.labels(i) for i in range(3))
    depth, rank = site.shape(1)[-1], len(numbers) - 1
    freeze_axes(site, (*data[:depth], numbers[-1]), _LOOKED_UP)
    for first, second in zip(numbers[:-1], updates[:rank], strict=True):
        site.unite(first, second)
    behind = [
        site.unite(first, second)
        for first, second in zip(data[depth:], updates[rank:], strict=True)
    ]
    site.put((*data[:depth], *behind))


def embed_norm(site: Site) -> None:
    """EmbedLayerNormalization: it normalizes over the columns of tables inside, so they stay."""
    freeze_inputs(site, "EmbedLayerNormalization normalizes over the columns of its tables")
    for index in range(3):
        if wanted(site, index):
            site.put(tuple(None for _ in site.output_shape(index)), index)


def one_hot(site: Site) -> None:
    """OneHot: the new axis stays."""
    labels = site.labels(0)
    rank = len(labels) + 1
    axis = normal(site.node.attributes.get_int("axis", -1), rank)
    site.put((*labels[:axis], None, *labels[axis:]))


ENTRIES: tuple[Entry[Rule], ...] = (
    Entry("GatherElements", gather_elements),
    Entry("GatherND", gather_nd),
    Entry("GatherND", gather_nd, domain="com.microsoft"),
    Entry("Scatter", scatter_elements),
    Entry("ScatterElements", scatter_elements),
    Entry("ScatterND", scatter_nd),
    Entry("OneHot", one_hot),
    Entry("EmbedLayerNormalization", embed_norm, domain="com.microsoft"),
)
