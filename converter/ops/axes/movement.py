"""Operators that move indices without computing: what they do is done to the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from converter.ops.axes.align import axes_of, normal, rows
from converter.ops.axes.site import STAYS, Labels, Site

Array = np.ndarray[Any, Any]
_PICKED = "one index of the axis is picked out"


def transpose(site: Site) -> None:
    """Axes change places."""
    x = site.labels(0)
    order = site.node.attributes.get_ints("perm", list(reversed(range(len(x)))))
    site.put(tuple(x[axis] for axis in order))


def concat(site: Site) -> None:
    """Labels one after the other on one axis; the others go together."""
    parts = [(site.labels(i), site.shape(i)) for i in range(len(site.node.inputs))]
    rank = len(parts[0][1])
    joined = normal(site.node.attributes.get_int("axis", 1), rank)
    result = list(parts[0][0])
    for labels, _ in parts[1:]:
        for axis in range(rank):
            if axis != joined:
                result[axis] = site.unite(result[axis], labels[axis])
    pieces = [
        np.full(sizes[joined], STAYS) if (x := labels[joined]) is None else x
        for labels, sizes in parts
    ]
    known = any(labels[joined] is not None for labels, _ in parts)
    result[joined] = np.concatenate(pieces) if known else None
    site.put(tuple(result))


def split(site: Site) -> None:
    """Labels are cut in pieces."""
    x = site.labels(0)
    axis = normal(site.node.attributes.get_int("axis", 0), len(x))
    labels, start = x[axis], 0
    for index in range(len(site.node.outputs)):
        end = start + site.output_shape(index)[axis]
        site.put((*x[:axis], None if labels is None else labels[start:end], *x[axis + 1 :]), index)
        start = end


def slice_(site: Site) -> None:
    """Indices from start to end in steps."""
    x, sizes, wanted = site.labels(0), site.shape(0), site.output_shape()
    starts, ends, steps = (_numbers(site, *where) for where in _SLICE)
    axes = axes_of(site, 3, len(x))
    if axes is None:
        axes = list(range(len(wanted if starts is None else starts)))
    result = list(x)
    for number, axis in enumerate(axes):
        labels = x[axis]
        if labels is None:
            continue
        if starts is None or ends is None or (steps is None and site.given(4)):
            site.freeze(labels, "the slice is computed")
            result[axis] = None
            continue
        step = 1 if steps is None else int(steps[number])
        picked = sliced(sizes[axis], int(starts[number]), int(ends[number]), step)
        result[axis] = labels[picked]
    site.put(tuple(result))


_SLICE = (("starts", 1), ("ends", 2), ("steps", 4))


def _numbers(site: Site, name: str, position: int) -> Array | None:
    if name in site.node.attributes:
        return np.asarray(site.node.attributes.get_ints(name))
    constant = site.constant(position)
    return None if constant is None else constant.ravel()


def sliced(size: int, start: int, end: int, step: int) -> Array:
    """Return the indices that a slice takes, with ends clamped as the operator does."""
    if step > 0:
        low, high = (min(max(v + size if v < 0 else v, 0), size) for v in (start, end))
    else:
        low = min(max(start + size if start < 0 else start, 0), size - 1)
        high = min(max(end + size if end < 0 else end, -1), size - 1)
    return np.arange(low, high, step)


def gather(site: Site) -> None:
    """Rows by index: known indices pick labels, unknown ones freeze the axis."""
    x, indices = site.labels(0), site.labels(1)
    axis = normal(site.node.attributes.get_int("axis", 0), len(x))
    known, labels = site.constant(1), x[axis]
    inner: tuple[Labels, ...] = indices if known is None else (None,) * known.ndim
    if labels is not None:
        if known is None or known.ndim > 1:
            site.freeze(labels, "its rows are looked up by index")
        elif known.ndim == 0:
            site.freeze(labels[int(known)][None], _PICKED)
        else:
            inner = (labels[known],)
    site.put((*x[:axis], *inner, *x[axis + 1 :]))


def depth_to_space(site: Site) -> None:
    """Channels that become one block of positions go together."""
    x = site.labels(0)
    block = site.node.attributes.get_int("blocksize", 1)
    _no_positions(site, x[2:])
    labels = x[1]
    if labels is not None:
        crd = site.node.attributes.get_string("mode", "DCR") == "CRD"
        blocks = labels.reshape(-1, block**2).T if crd else labels.reshape(block**2, -1)
        labels = blocks[0]
        for row in blocks[1:]:
            labels = site.unite(labels, row)
    site.put((x[0], labels, None, None))


def space_to_depth(site: Site) -> None:
    """Every channel becomes a block of channels."""
    x = site.labels(0)
    _no_positions(site, x[2:])
    block = site.node.attributes.get_int("blocksize", 1)
    site.put((x[0], None if x[1] is None else np.tile(x[1], block**2), None, None))


def _no_positions(site: Site, axes: Sequence[Labels]) -> None:
    for labels in axes:
        site.freeze(labels, "positions and channels are exchanged")


def tile(site: Site) -> None:
    """Labels repeat as the indices do."""
    x, sizes, wanted = site.labels(0), site.shape(0), site.output_shape()
    result: list[Labels] = []
    for labels, size, new in zip(x, sizes, wanted, strict=True):
        if size == 1 and new > 1:
            result.append(site.fresh(new))
        else:
            result.append(None if labels is None else np.tile(labels, new // size))
    site.put(tuple(result))


def expand(site: Site) -> None:
    """Axes of one index become as long as they are told; the others pass."""
    wanted = site.output_shape()
    x: tuple[Labels, ...] = (None,) * (len(wanted) - len(site.shape(0))) + site.labels(0)
    sizes = [1] * (len(wanted) - len(site.shape(0))) + list(site.shape(0))
    site.put(
        tuple(
            site.fresh(new) if size == 1 and new > 1 else labels
            for labels, size, new in zip(x, sizes, wanted, strict=True)
        )
    )


def constant_of_shape(site: Site) -> None:
    """All axes are as long as they are told."""
    site.put(tuple(site.fresh(size) if size > 1 else None for size in site.output_shape()))


def pad(site: Site) -> None:
    """What is put before and after can be put in smaller numbers."""
    x, sizes, wanted = site.labels(0), site.shape(0), site.output_shape()
    pads = _numbers(site, "pads", 1)
    axes = axes_of(site, 3, len(x))
    places = list(range(len(x))) if axes is None else axes
    constant = site.node.attributes.get_string("mode", "constant") == "constant"
    result: list[Labels] = []
    for axis, labels in enumerate(x):
        if labels is None or axis not in places or sizes[axis] == wanted[axis]:
            result.append(labels)
            continue
        if pads is None or not constant:
            how = "by what is computed" if pads is None else "with its own indices"
            site.freeze(labels, f"it is padded {how}")
            result.append(None)
            continue
        number = places.index(axis)
        result.append(_padded(site, labels, int(pads[number]), int(pads[number + len(places)])))
    site.put(tuple(result))


def _padded(site: Site, labels: Array, before: int, after: int) -> Array:
    inner = labels[max(0, -before) : len(labels) - max(0, -after)]
    return np.concatenate([site.fresh(max(0, before)), inner, site.fresh(max(0, after))])


def resize(site: Site) -> None:
    """Axes that keep their size pass."""
    x, sizes, wanted = site.labels(0), site.shape(0), site.output_shape()
    result: list[Labels] = []
    for labels, size, new in zip(x, sizes, wanted, strict=True):
        if size != new:
            site.freeze(labels, "it is resampled along the axis")
        result.append(labels if size == new else None)
    site.put(tuple(result))


def unlabelled(_: Site) -> None:
    """Numbers that no weight makes; what is computed from sizes is looked at afterwards."""


ENTRIES = [
    *rows(transpose, "Transpose"),
    *rows(concat, "Concat"),
    *rows(split, "Split"),
    *rows(slice_, "Slice"),
    *rows(gather, "Gather"),
    *rows(depth_to_space, "DepthToSpace"),
    *rows(space_to_depth, "SpaceToDepth"),
    *rows(tile, "Tile", since=6),
    *rows(expand, "Expand"),
    *rows(constant_of_shape, "ConstantOfShape"),
    *rows(pad, "Pad"),
    *rows(resize, "Resize", "Upsample"),
    *rows(unlabelled, "Shape", "Size", "Range", "EyeLike", "RandomNormal", "RandomUniform"),
]
