"""Float model and students advance layer by layer, and every layer is fitted to what it will get.

At each stop the value that the next layers read is there twice: as the float model has it, and as
the student has it, with all the layers before quantized already. The cost grows linearly with the
depth, and the float model runs once for any number of students.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.calibration.patches import patches
from converter.core import graph as g
from converter.execution.blas import use_one_thread
from passes.affine.numbers import QuantizedWeight, WeightKey
from passes.affine.placement import Unit
from passes.affine.scale import bias_scales, quantize_bias
from passes.tuning.distance import Distances
from passes.tuning.fit import Fitted, Recipe, fit
from passes.tuning.layer import Layer, Moments, from_rows
from passes.tuning.segments import Pieces
from passes.tuning.store import Budget

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, RunSettings

Array = np.ndarray[Any, Any]

_ROWS = 12_000
"""Rows that a Gram matrix is made of: more change the result less than other samples would."""
_GROUPED_ROWS = 40
"""Most rows of one sample where every group has a small matrix of its own."""
_WORK = 14e6
"""Rows times K beyond which rows are saved."""


@dataclass(eq=False)
class Student:
    """A written model whose weights and biases are still to be replaced.

    Attributes:
        model: With QuantizeLinear and DequantizeLinear; changed in place.
        nodes: The node of each layer, by the layer's name.
        uses: Node and position that read the bias of each layer that has one.
        recipe: How layers are fitted.
        fit_on: Whether each sample is fitted on; the others show the damage.
        recipes: Layers with a recipe of their own, by name.
        weights: What was chosen.
        biases: What was chosen.
        noise: By layer, the share of its output's power that rounding its weight makes up.
    """

    model: ir.Model
    nodes: Mapping[str, ir.Node]
    uses: Mapping[str, tuple[ir.Node, int]]
    recipe: Recipe
    fit_on: tuple[bool, ...]
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    weights: dict[WeightKey, QuantizedWeight] = field(default_factory=dict)
    biases: dict[str, Array] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)

    def input_scale(self, layer: Layer) -> float:
        """Return the scale of a layer's input."""
        value = self.nodes[layer.name].inputs[0]
        assert value is not None
        array = g.constant_array(_dequantize(value).inputs[1])
        assert array is not None
        return float(array.reshape(-1)[0])

    def take(self, layer: Layer, fitted: Fitted) -> None:
        """Write the numbers of one layer."""
        unit = layer.unit
        shape = unit.weight.shape
        assert shape is not None
        assert unit.row.weight is not None
        node = self.nodes[layer.name]
        value = node.inputs[unit.row.weight]
        assert value is not None
        integers = from_rows(fitted.integers, unit.axis, shape.numpy())
        bits = self.recipes.get(layer.name, self.recipe).bits
        self.weights[layer.key] = QuantizedWeight(integers, fitted.scales, bits)
        self.noise[layer.name] = fitted.noise
        _set(_dequantize(value), integers, fitted.scales)
        use = self.uses.get(layer.name)
        if use is None:
            return
        self.biases[layer.name] = fitted.bias
        bias = use[0].inputs[use[1]]
        assert bias is not None
        step = bias_scales(fitted.scales, self.input_scale(layer))
        _set(_dequantize(bias), quantize_bias(fitted.bias, step), step)


@dataclass(frozen=True)
class Task:
    """What a run in lock-step does.

    Attributes:
        model: The float model.
        groups: Layers that read the same value, in the order of the graph.
        students: To be fitted side by side.
    """

    model: ir.Model
    groups: Sequence[Sequence[Layer]]
    students: Sequence[Student]


def run(
    task: Task,
    batches: Sequence[Batch],
    *,
    settings: RunSettings,
    progress: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Fit all students; called in a child process.

    Returns:
        Per student: ``weights`` and ``biases`` as lists in the order of the layers, ``noise`` by
        layer, and ``loss`` with ``measure`` on the samples that were not fitted on.
    """
    use_one_thread()
    with tempfile.TemporaryDirectory(prefix="tuning-", dir=settings.workspace) as folder:
        walk = _Walk(task, batches, settings, Path(folder))
        progress(0)
        for group in task.groups:
            walk.step(group)
            progress(1)
        losses = walk.damage()
    return [
        {
            "weights": [
                [k[0], -1 if k[1] is None else k[1], w.bits, w.integers, w.scales]
                for k, w in student.weights.items()
            ],
            "biases": [[name, bias] for name, bias in student.biases.items()],
            "noise": student.noise,
            "loss": loss,
            "measure": measure,
        }
        for student, (loss, measure) in zip(task.students, losses, strict=True)
    ]


class _Walk:
    def __init__(
        self, task: Task, batches: Sequence[Batch], settings: RunSettings, folder: Path
    ) -> None:
        self.task = task
        self.batches = batches
        feeds = [batch.inputs for batch in batches]
        self._samples = [batch.samples for batch in batches]
        self._masks = [_split(student.fit_on, self._samples) for student in task.students]
        stops = [group[0].unit.node for group in task.groups]
        (folder / "float").mkdir()
        budget = Budget()
        self._float = Pieces(task.model, stops, feeds, settings, folder / "float", budget)
        self._students = []
        for i, student in enumerate(task.students):
            own = folder / f"student{i}"
            own.mkdir()
            nodes = [student.nodes[group[0].name] for group in task.groups]
            self._students.append(Pieces(student.model, nodes, feeds, settings, own, budget))

    def step(self, group: Sequence[Layer]) -> None:
        """Advance to a group of layers and fit them."""
        self._float.advance()
        for pieces in self._students:
            pieces.advance()
        for layer in group:
            found = self._moments(layer, self._most(layer))
            for student, moments in zip(self.task.students, found, strict=True):
                recipe = student.recipes.get(layer.name, student.recipe)
                student.take(layer, fit(layer, moments, recipe, student.input_scale(layer)))

    def damage(self) -> list[tuple[float, str]]:
        """Run to the end and compare the outputs on what was left out, sample by sample."""
        self._float.finish()
        names = [v.name or "" for v in self.task.model.graph.outputs]
        found = []
        for student, pieces, masks in zip(
            self.task.students, self._students, self._masks, strict=True
        ):
            pieces.finish()
            distances = Distances()
            for i in range(len(self._samples)):
                held = masks[i] if all(student.fit_on) else ~masks[i]
                for n in names:
                    if held.any():
                        old = _chosen(self._float.values[n][i], held)
                        distances.update(n, old, _chosen(pieces.values[n][i], held))
            found.append(distances.result())
        return found

    def _most(self, layer: Layer) -> int:
        """Return how many rows of one sample a layer takes."""
        rows = min(_ROWS, max(4_096, int(_WORK / max(1, layer.depth))))
        most = max(8, rows // max(1, sum(self._samples)))
        return min(most, _GROUPED_ROWS) if layer.geometry.groups > 1 else most

    def _moments(self, layer: Layer, most: int) -> list[Moments]:
        students = self.task.students
        weight = np.ascontiguousarray(layer.weight.swapaxes(1, 2), np.float32)
        found = [
            Moments(weight, layer.pairs and s.recipes.get(layer.name, s.recipe).rounding == "gptq")
            for s in students
        ]
        x = layer.unit.inputs[0]
        own = []
        for student, pieces in zip(students, self._students, strict=True):
            value = student.nodes[layer.name].inputs[0]
            assert value is not None
            own.append(pieces.arrays(value))
        for i, (array, _, _) in enumerate(self._float.arrays(x)):
            inputs = [next(each) for each in own]
            floats: dict[bytes, Array] = {}
            for moments, masks, given in zip(found, self._masks, inputs, strict=True):
                mask, (numbers, scale, zero) = masks[i], given
                if not mask.any():
                    continue
                key = mask.tobytes()
                if key not in floats:
                    floats[key] = patches(_chosen(array, mask), layer.geometry, most, i)
                part = _centred(_chosen(numbers, mask), zero)
                rows = patches(part, layer.geometry, most, i).astype(np.float32)
                moments.update(floats[key], rows * np.float32(scale), int(mask.sum()))
        return found


def _centred(integers: Array, zero: int) -> Array:
    """Take off the zero point, so that padding with zeros is right."""
    if integers.dtype.kind == "f":
        return integers
    wide: Array = integers.astype(np.int16 if integers.dtype.itemsize == 1 else np.int32)
    wide -= zero
    return wide


def _split(fit_on: Sequence[bool], samples: Sequence[int]) -> list[Array]:
    """Return one mask per batch."""
    masks, start = [], 0
    for count in samples:
        masks.append(np.asarray(fit_on[start : start + count], bool))
        start += count
    return masks


def _chosen(array: Array, mask: Array) -> Array:
    """Return the chosen samples of a batch; a batch without such an axis counts as a whole."""
    if mask.all() or not array.ndim or len(array) != len(mask):
        return array
    return np.ascontiguousarray(array[mask])


def _dequantize(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    assert node.op_type == "DequantizeLinear"
    return node


def _set(node: ir.Node, integers: Array, scales: Array) -> None:
    for value, array in zip(node.inputs[:2], (integers, scales), strict=True):
        assert value is not None
        g.set_constant(value, array)


def group_layers(units: Sequence[Unit], *, per_channel: bool) -> list[list[Layer]]:
    """Return the layers to fit, grouped by the value that they read.

    Units that share a weight are left out: their integers have to suit all of them.
    """
    weighted = [unit for unit in units if unit.row.weight is not None]
    layers = []
    for unit in weighted:
        try:
            layers.append(Layer.of(unit, per_channel=per_channel))
        except ValueError:
            continue
    used: dict[str, int] = {}
    for unit in weighted:
        used[unit.weight.name or ""] = used.get(unit.weight.name or "", 0) + 1
    groups: dict[ir.Value, list[Layer]] = {}
    for layer in layers:
        if used[layer.key[0]] == 1:
            groups.setdefault(layer.unit.inputs[0], []).append(layer)
    return list(groups.values())


def work_of(groups: Iterable[Sequence[Layer]]) -> float:
    """Estimate multiplications per row of fitting all layers once."""
    return float(
        sum(
            layer.weight.shape[0] * layer.depth * (layer.depth + 2 * layer.weight.shape[1])
            for group in groups
            for layer in group
        )
    )
