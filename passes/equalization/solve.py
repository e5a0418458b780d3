"""Factors of channels that make the ranges of weights on both sides equal.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019,
arXiv 1906.04721), section 4.1: for a channel that one layer makes and another one reads,
``s = sqrt(r1 / r2)`` gives both the range ``sqrt(r1 r2)``. Here a channel may have several makers
and readers; each counts by its share of its own layer's range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from passes.equalization.flow import Flow, Side
from passes.equalization.layers import Array, Layer

_SWEEPS = 50  # deep residual nets creep on without gain: 150 sweeps cost MobileNetV2 accuracy
_STILL = 1e-3  # a sweep that moves no factor by more octaves ends the search
_MOST = 10.0  # octaves: no channel is scaled by more than 1024, whatever its range


@dataclass(frozen=True, eq=False)
class _Matrix:
    """Magnitudes (groups, outputs, inputs) of a layer, and the classes of both its sides."""

    magnitude: Array
    outputs: Array | None
    inputs: Array | None

    def ranges(self, octaves: Array) -> tuple[Array, Array]:
        """Return the range of each output and of each input channel with these factors."""
        groups, outputs, inputs = self.magnitude.shape
        now = self.magnitude
        if self.inputs is not None:
            now = now * np.exp2(octaves[self.inputs]).reshape(groups, 1, inputs)
        if self.outputs is not None:
            now = now / np.exp2(octaves[self.outputs]).reshape(groups, outputs, 1)
        return now.max(axis=2).reshape(-1), now.max(axis=1).reshape(-1)


@dataclass(frozen=True, eq=False)
class Joint:
    """Classes that are solved together: those that meet in the sides of some layers.

    Attributes:
        classes: The classes.
        writers: Positions of the matrices whose outputs they are.
        readers: Positions of the matrices whose inputs they are.
    """

    classes: Array
    writers: tuple[int, ...]
    readers: tuple[int, ...]


def movable(flow: Flow) -> Array:
    """Return which classes are made and read by layers and frozen by nobody: bool (classes,)."""
    made, read = np.zeros(flow.size, bool), np.zeros(flow.size, bool)
    for side in flow.writers:
        made[side.ids] = True
    for side in flow.readers:
        read[side.ids] = True
    for ids, _ in flow.frozen:
        made[ids] = False
    return made & read


def solve(flow: Flow, low: Array, high: Array) -> Array:
    """Return the factor of every class: makers are divided by it, readers multiplied.

    Args:
        flow: Settled.
        low: Smallest log2 of the factor of each class, at most zero.
        high: Largest one, at least zero.

    Returns:
        float64 (classes,); exactly 1 for classes that must not or need not be scaled.
    """
    free = movable(flow)
    matrices, joints = _problem(flow, free)
    octaves = np.zeros(flow.size)
    low, high = np.maximum(low, -_MOST), np.minimum(high, _MOST)
    around = _neighbours(joints)
    moves = [np.inf] * len(joints)
    for _ in range(_SWEEPS):
        for i, joint in enumerate(joints):
            if max(moves[j] for j in around[i]) >= _STILL:
                moves[i] = _balance(joint, matrices, octaves, (low, high))
        if max(moves, default=0.0) < _STILL:
            break
    return np.where(free, np.exp2(octaves), 1.0)


def _problem(flow: Flow, free: Array) -> tuple[list[_Matrix], list[Joint]]:
    """Gather the magnitudes that matter and the classes that are solved together."""
    written = {side.layer: side for side in flow.writers if free[side.ids].any()}
    read = {side.layer: side for side in flow.readers if free[side.ids].any()}
    order = [side.layer for side in flow.writers if side.layer in written or side.layer in read]
    matrices = [_matrix(layer, written.get(layer), read.get(layer)) for layer in order]
    position = {layer: i for i, layer in enumerate(order)}
    return matrices, _joints([*written.values()], [*read.values()], position, free)


def _neighbours(joints: Sequence[Joint]) -> list[list[int]]:
    """List for every joint itself and those that share a matrix with it."""
    users: dict[int, list[int]] = {}
    for i, joint in enumerate(joints):
        for matrix in (*joint.writers, *joint.readers):
            users.setdefault(matrix, []).append(i)
    return [
        sorted({i}.union(*(users[m] for m in (*joint.writers, *joint.readers))))
        for i, joint in enumerate(joints)
    ]


def _matrix(layer: Layer, written: Side | None, read: Side | None) -> _Matrix:
    """Magnitudes of a layer; an axis along which nothing moves is reduced at once."""
    weight = layer.matrices()
    magnitude = np.maximum(weight.max(axis=3), -weight.min(axis=3)).astype(np.float64)
    magnitude[~np.isfinite(magnitude)] = 0.0
    if read is None:
        magnitude = magnitude.max(axis=2, keepdims=True)
    if written is None:
        magnitude = magnitude.max(axis=1, keepdims=True)
    return _Matrix(
        magnitude,
        None if written is None else written.ids,
        None if read is None else read.ids,
    )


def _joints(
    written: Sequence[Side], read: Sequence[Side], position: dict[Layer, int], free: Array
) -> list[Joint]:
    """Split the classes into sets that share no side of a layer, in the order of the graph."""
    leader: dict[int, int] = {}

    def find(number: int) -> int:
        while leader.setdefault(number, number) != number:
            number = leader[number]
        return number

    for side in (*written, *read):
        firsts = [find(int(i)) for i in np.unique(side.ids)]
        for first in firsts[1:]:
            leader[max(find(first), find(firsts[0]))] = min(find(first), find(firsts[0]))
    members: dict[int, list[int]] = {}
    for number in sorted(leader):
        if free[number]:
            members.setdefault(find(number), []).append(number)
    makers: dict[int, list[int]] = {}
    users: dict[int, list[int]] = {}
    for sides, table in ((written, makers), (read, users)):
        for side in sides:
            table.setdefault(find(int(side.ids[0])), []).append(position[side.layer])
    return [
        Joint(np.asarray(classes), tuple(makers.get(root, ())), tuple(users.get(root, ())))
        for root, classes in members.items()
    ]


def _balance(
    joint: Joint, matrices: Sequence[_Matrix], octaves: Array, limits: tuple[Array, Array]
) -> float:
    """Solve one joint with all others as they are; return the largest move in octaves."""
    made = [(matrices[i].outputs, matrices[i].ranges(octaves)[0]) for i in joint.writers]
    read = [(matrices[i].inputs, matrices[i].ranges(octaves)[1]) for i in joint.readers]
    # Where a Clip holds some channels, the others cannot move as a whole: shares of ranges count.
    held = bool((limits[1][joint.classes] < _MOST).any())
    one = _combined(joint.classes, made, shares=held)
    two = _combined(joint.classes, read, shares=held)
    alive = (one > 0.0) & (two > 0.0)
    move = np.zeros(joint.classes.size)
    move[alive] = 0.5 * np.log2(one[alive] / two[alive])
    before = octaves[joint.classes]
    after = np.clip(before + move, limits[0][joint.classes], limits[1][joint.classes])
    after[~alive] = before[~alive]
    octaves[joint.classes] = after
    return float(np.abs(after - before).max(initial=0.0))


def _combined(
    classes: Array, sides: Sequence[tuple[Array | None, Array]], *, shares: bool
) -> Array:
    """Return the range of each class: its largest share of a layer's range, times their mean.

    Args:
        classes: Of one joint, sorted.
        sides: Classes of a layer's channels and their ranges.
        shares: Leave out the mean.
    """
    found = np.zeros(classes.size)
    tops = []
    for ids, ranges in sides:
        top = float(ranges.max(initial=0.0))
        if ids is None or top == 0.0:
            continue
        tops.append(np.log(top))
        place = np.minimum(np.searchsorted(classes, ids), classes.size - 1)
        ours = classes[place] == ids
        np.maximum.at(found, place[ours], ranges[ours] / top)
    return found * np.exp(np.mean(tops)) if tops and not shares else found
