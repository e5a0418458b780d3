"""Steps that several rules share: optional inputs, axes that fit, and indices that go in blocks."""

from __future__ import annotations

from collections.abc import Iterable

from converter.ops.axes.site import Axes, Labels, Site


def wanted(site: Site, index: int) -> bool:
    """Tell whether an optional output is there."""
    outputs = site.node.outputs
    return index < len(outputs) and bool(outputs[index].name)


def positions(site: Site) -> list[int]:
    """Return the positions of all inputs that are there."""
    return [i for i in range(len(site.node.inputs)) if site.given(i)]


def freeze_axes(site: Site, axes: Iterable[Labels], reason: str) -> None:
    """Forbid that anything is removed from these axes."""
    for labels in axes:
        site.freeze(labels, reason)


def freeze_inputs(site: Site, reason: str, only: Iterable[int] | None = None) -> None:
    """Forbid that anything is removed from an input: all of them, or those at some positions."""
    for position in positions(site) if only is None else only:
        if site.given(position):
            freeze_axes(site, site.labels(position), reason)


def by_block(site: Site, labels: Labels, size: int) -> Labels:
    """Let every contiguous block of an axis be removed as one; returns a label for every block.

    Args:
        site: The node.
        labels: int64 (blocks * size,), the last block may be shorter.
        size: Of a block, at least 1.
    """
    if labels is None or size == 1:
        return labels
    first = labels[::size]
    for offset in range(1, size):
        others = labels[offset::size]
        site.unite(first[: len(others)], others)
    return first


def by_position(site: Site, labels: Labels, blocks: int) -> Labels:
    """Let the same positions of all blocks be removed together; returns a label for every position.

    Args:
        site: The node.
        labels: int64 (blocks * size,).
        blocks: How many, at least 1.
    """
    if labels is None or blocks == 1:
        return labels
    rows = labels.reshape(blocks, -1)
    for row in rows[1:]:
        site.unite(rows[0], row)
    first: Labels = rows[0]
    return first


def spread(labels: Labels, size: int) -> Labels:
    """Return the labels of an axis whose blocks have these labels: each of them ``size`` times."""
    return None if labels is None else labels.repeat(size)


def with_axis(axes: Axes, axis: int, labels: Labels) -> Axes:
    """Return the axes with another axis in one place."""
    return (*axes[:axis], labels, *axes[axis + 1 :])


def count(shape: Iterable[int]) -> int:
    """Return the number of elements."""
    total = 1
    for size in shape:
        total *= size
    return total
