"""What several rules need: aligned axes of operands, axes given by number, sizes of work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from converter.ops.axes.site import Axes, Labels, Rule, Site, Unclear
from converter.ops.table import NEWEST, Entry

Array = np.ndarray[Any, Any]


def rows(
    rule: Rule, *op_types: str, domain: str = "", since: int = 1, until: int = NEWEST
) -> list[Entry[Rule]]:
    """Return one entry per operator."""
    return [Entry(op_type, rule, domain, since, until) for op_type in op_types]


def aligned(
    site: Site, operands: Iterable[tuple[Axes, Sequence[int]]], sizes: Sequence[int]
) -> Axes:
    """Unite the axes of operands that broadcast against each other.

    Args:
        site: The node.
        operands: Labels and sizes of each.
        sizes: Of the result; an operand with size 1 on a longer axis takes no part there.

    Returns:
        The labels of the result.
    """
    found: list[Labels] = [None] * len(sizes)
    met = [False] * len(sizes)
    for axes, given in operands:
        start = len(sizes) - len(given)
        for axis, (labels, size) in enumerate(zip(axes, given, strict=True), start):
            if axis < 0 or size == 1:
                continue
            found[axis] = site.unite(found[axis], labels) if met[axis] else labels
            met[axis] = True
    return tuple(found)


def freeze_from(site: Site, axes: Axes, start: int, reason: str) -> None:
    """Freeze all axes from ``start`` on."""
    for labels in axes[start:]:
        site.freeze(labels, reason)


def normal(axis: int, rank: int) -> int:
    """Return an axis as a number from 0 on.

    Raises:
        Unclear: There is no such axis.
    """
    if not -rank <= axis < rank:
        raise Unclear(f"it names axis {axis} of {rank}")
    return axis % rank


def extent(labels: Labels, size: int) -> Array | int:
    """Return what ``Site.work`` counts for an axis."""
    return size if labels is None else labels


def axes_of(site: Site, position: int, rank: int, name: str = "axes") -> list[int] | None:
    """Return axes that are an attribute or, in newer versions, a constant input.

    Returns:
        Numbers from 0 on; None where none are given.

    Raises:
        Unclear: They are computed.
    """
    attribute = site.node.attributes.get(name)
    if attribute is not None:
        given = attribute.as_ints() if attribute.type.name == "INTS" else [attribute.as_int()]
        return [normal(axis, rank) for axis in given]
    if not site.given(position):
        return None
    constant = site.constant(position)
    if constant is None:
        raise Unclear("its axes are computed")
    return [normal(int(axis), rank) for axis in constant.ravel()]
