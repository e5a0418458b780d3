"""One weighted layer in numbers: its weight as a matrix, moments of its inputs, what to write.

A layer computes ``W x + b`` per group, with the inputs ``x`` as rows (see
:mod:`converter.calibration.patches`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from converter.calibration.patches import Geometry
from converter.core import graph as g
from passes.affine.numbers import WeightKey, bias_key, weight_key
from passes.affine.placement import Unit
from passes.rounding.gptq import MOST_COLUMNS

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Layer:
    """A weighted unit of the float model.

    Attributes:
        unit: The unit.
        key: Of its weight.
        name: Of its bias.
        geometry: How rows are cut from its input.
        weight: float64 (groups, channels of a group, K).
        bias: float64 (channels,); zeros where it has none.
        correctable: It has a bias, or can be given one.
    """

    unit: Unit
    key: WeightKey
    name: str
    geometry: Geometry
    weight: Array
    bias: Array
    correctable: bool

    @classmethod
    def of(cls, unit: Unit, *, per_channel: bool) -> Layer:
        """Read a layer.

        Raises:
            ValueError: Its operator has no rows.
        """
        array = g.constant_array(unit.weight)
        assert array is not None
        geometry = Geometry.of(unit.node, array.shape)
        bias = g.constant_array(unit.bias)
        numbers = np.zeros(unit.channels) if bias is None else bias.astype(np.float64).reshape(-1)
        return cls(
            unit,
            weight_key(unit, per_channel=per_channel),
            bias_key(unit),
            geometry,
            as_rows(array, unit.axis, geometry.groups),
            np.broadcast_to(numbers, (unit.channels,)),
            correctable(unit),
        )

    @property
    def depth(self) -> int:
        """Inputs of one output: K."""
        return int(self.weight.shape[2])

    @property
    def pairs(self) -> bool:
        """Whether moments of all pairs of inputs can be held."""
        return self.depth <= MOST_COLUMNS


def correctable(unit: Unit) -> bool:
    """Tell whether the unit has a bias, or may be given one."""
    if unit.bias_use is not None:
        return True
    factors = (unit.node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    return unit.row.bias is not None and all(factor == 1.0 for factor in factors)


def as_rows(weight: Array, axis: int, groups: int) -> Array:
    """Return a weight as float64 (groups, channels of a group, K)."""
    front = np.moveaxis(weight, axis, 0)
    return front.astype(np.float64).reshape(groups, front.shape[0] // groups, -1)


def from_rows(rows: Array, axis: int, shape: Sequence[int]) -> Array:
    """Undo :func:`as_rows`, keeping the element type."""
    channels = shape[axis]
    others = [size for i, size in enumerate(shape) if i != axis]
    return np.ascontiguousarray(np.moveaxis(rows.reshape(channels, *others), 0, axis))


_BLOCK = 2_048
"""Rows that are multiplied at once."""


@dataclass(eq=False)
class Moments:
    """First and second moments of a layer's inputs, in the float model and in the student.

    Attributes:
        weight: float32 (groups, K, channels of a group): the float layer.
        second: Gather second moments, too.
        count: Rows taken in.
        float_sum: (groups, K).
        student_sum: (groups, K).
        gram: Sum of products of student inputs, (groups, K, K).
        pull: Sum of student inputs times what the float layer makes of the difference between
            float and student inputs, (groups, K, channels of a group).
        shifts: Per sample, the mean of student minus float input, (groups, K).
    """

    weight: Array
    second: bool
    count: int = 0
    float_sum: Array = field(default_factory=lambda: np.zeros(()))
    student_sum: Array = field(default_factory=lambda: np.zeros(()))
    gram: Array = field(default_factory=lambda: np.zeros(()))
    pull: Array = field(default_factory=lambda: np.zeros(()))
    shifts: list[Array] = field(default_factory=list)
    _waiting: list[tuple[Array, Array]] = field(default_factory=list)

    def update(self, floats: Array, students: Array, samples: int) -> None:
        """Take in float32 rows (rows, groups, K) of both, of so many samples in turn."""
        if not len(floats):
            return
        self.count += len(floats)
        self.float_sum = self.float_sum + floats.sum(axis=0, dtype=np.float64)
        self.student_sum = self.student_sum + students.sum(axis=0, dtype=np.float64)
        parts = samples if len(floats) % samples == 0 else 1
        change = (students - floats).reshape(parts, -1, *floats.shape[1:])
        self.shifts += list(change.mean(axis=1, dtype=np.float64))
        if self.second:
            self._waiting.append((floats, students))
            if sum(len(rows) for rows, _ in self._waiting) >= _BLOCK:
                self.flush()

    def flush(self) -> None:
        """Multiply what was taken in; needed before second moments are read."""
        if not self._waiting:
            return
        floats = np.concatenate([rows for rows, _ in self._waiting])
        students = np.concatenate([rows for _, rows in self._waiting])
        self._waiting.clear()
        if students.shape[1] == 1:  # a product with itself takes half the time in two dimensions
            rows = students[:, 0]
            change = (floats[:, 0] - rows) @ self.weight[0]
            self.gram = self.gram + (rows.T @ rows)[None]
            self.pull = self.pull + (rows.T @ change)[None]
            return
        rows = np.ascontiguousarray(students.transpose(1, 0, 2))
        change = np.ascontiguousarray((floats - students).transpose(1, 0, 2)) @ self.weight
        turned = np.ascontiguousarray(students.transpose(1, 2, 0))
        self.gram = self.gram + turned @ rows
        self.pull = self.pull + turned @ change

    @property
    def means(self) -> tuple[Array, Array]:
        """Means of the float and the student inputs, (groups, K) each."""
        return self.float_sum / self.count, self.student_sum / self.count

    def covariance(self, *, centred: bool) -> tuple[Array, Array]:
        """Return Gram matrix and pull per row, about the means unless no bias takes them up."""
        self.flush()
        gram, pull = self.gram / self.count, self.pull / self.count
        if centred:
            floats, students = self.means
            change = (floats - students)[:, None, :] @ self.weight.astype(np.float64)
            gram = gram - students[:, :, None] * students[:, None, :]
            pull = pull - students[:, :, None] * change
        return gram, pull
