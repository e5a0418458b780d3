"""Which atoms are equal: the same numbers for every sample, at the same places of a value.

One walk through the graph. Channels with the same weights over the same inputs are equal, and stay
so where the same is done to each of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.graph import is_op
from converter.coupling.structure import Coupling
from passes.coupling.constancy import BINARY, POINTWISE
from passes.coupling.layers import Linear
from passes.importance.weights import weight_of

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
Classes = Mapping[int, int]
"""Class by atom, of the atoms of one value that have an equal among them."""

_ALIKE = POINTWISE | BINARY | frozenset({
    "AveragePool", "BatchNormalization", "Cast", "Concat", "Dropout", "Flatten",
    "GlobalAveragePool", "GlobalMaxPool", "Identity", "InstanceNormalization", "MaxPool", "Pad",
    "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Reshape",
    "Resize", "Split", "Squeeze", "Transpose", "Unsqueeze", "Upsample",
})  # fmt: skip
"""What comes out for an atom depends on what goes in for it, in the same way for all atoms."""


class Equality:
    """The atoms of every value that equal another one.

    Args:
        model: In topological order.
        coupling: Of this model.
        layers: Its layers with constant weights.
    """

    def __init__(
        self, model: ir.Model, coupling: Coupling, layers: Mapping[ir.Node, Linear]
    ) -> None:
        self._coupling = coupling
        self._classes: dict[ir.Value, Classes] = {}
        self._next = 0
        for node in model.graph:
            layer = layers.get(node)
            if layer is not None:
                self._classes[node.outputs[0]] = self._layer(layer)
            elif is_op(node, node.op_type) and node.op_type in _ALIKE:
                self._pass(node)

    def at(self, value: ir.Value | None) -> Classes:
        """Return the classes of a value; no two classes of the model have the same number."""
        return self._classes.get(value, {}) if value is not None else {}

    def _numbered(self, keys: Mapping[int, Hashable]) -> Classes:
        """Turn equal keys into equal numbers; atoms alone with their key are left out."""
        members: dict[Hashable, list[int]] = {}
        for atom, key in keys.items():
            members.setdefault(key, []).append(atom)
        found: dict[int, int] = {}
        for atoms in members.values():
            if len(atoms) > 1:
                found.update(dict.fromkeys(atoms, self._next))
                self._next += 1
        return found

    def _layer(self, layer: Linear) -> Classes:
        """Compare rows; those of other groups read other inputs, or equal ones if depthwise."""
        labels = _axis(self._coupling.values.get(layer.node.outputs[0], ()), layer.out_axis)
        if labels is None or layer.bias is None or labels.size != layer.rows:
            return {}
        groups, rows, columns, _ = layer.weight.shape
        flat = np.ascontiguousarray(layer.weight).reshape(groups * rows, -1)
        candidates = _repeated(flat)
        if not candidates.any():
            return {}
        read = self.at(layer.node.inputs[0]) if columns == 1 else {}
        inputs = _axis(self._coupling.uses.get((layer.node, 0), ()), layer.axis)
        keys: dict[int, tuple[Hashable, ...]] = {}
        dropped: set[int] = set()
        for index, atom in enumerate(labels.tolist()):
            if atom < 0:
                continue
            if not candidates[index]:
                dropped.add(atom)
                continue
            group = index // rows
            source: Hashable = ("group", group)
            if groups > 1 and columns == 1 and inputs is not None:
                source = read.get(int(inputs[group]), source)
            row = (source, flat[index].tobytes(), float(layer.bias[index]))
            keys[atom] = (*keys.get(atom, ()), row)
        return self._numbered({a: k for a, k in keys.items() if a not in dropped})

    def _pass(self, node: ir.Node) -> None:
        """Keep classes where all inputs agree on them."""
        if not any(self.at(value) for value in node.inputs) or _draws(node):
            return
        for output in node.outputs:
            axes = self._coupling.values.get(output, ())
            present = {int(a) for labels in axes if labels is not None for a in np.unique(labels)}
            keys: dict[int, tuple[Hashable, ...]] = {a: () for a in sorted(present) if a >= 0}
            known = False
            for position, value in enumerate(node.inputs):
                if value is None:
                    continue
                read, known_here = self._input(node, position, keys)
                known = known or known_here
                keys = {a: (*k, read[a]) for a, k in keys.items() if a in read}
            self._classes[output] = self._numbered(keys) if known else {}

    def _input(
        self, node: ir.Node, position: int, wanted: Mapping[int, Any]
    ) -> tuple[dict[int, Hashable], bool]:
        """Return what an input holds for each atom; atoms without any equal are left out."""
        value = node.inputs[position]
        axes = self._coupling.uses.get((node, position), ())
        here = [a for a in axes if a is not None]
        present = {int(a) for labels in here for a in np.unique(labels)}
        read: dict[int, Hashable] = {a: None for a in wanted if a not in present}
        array = weight_of(value)
        classes = self.at(value)
        if array is None:
            read.update({a: classes[a] for a in wanted if a in classes})
            return read, bool(classes)
        wide = [i for i, labels in enumerate(axes) if labels is not None]
        if len(wide) == 1:
            labels, axis = np.asarray(axes[wide[0]]), wide[0]
            for atom in (a for a in wanted if a in present):
                read[atom] = np.take(array, np.flatnonzero(labels == atom), axis).tobytes()
        return read, False


def _axis(axes: tuple[Array | None, ...], axis: int) -> Array | None:
    return axes[axis] if axis < len(axes) else None


def _repeated(rows: Array) -> Array:
    """Return which rows occur more than once: bool (rows,)."""
    keys = [row.tobytes() for row in rows]
    counts: dict[bytes, int] = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
    return np.array([counts[key] > 1 for key in keys], bool)


def _draws(node: ir.Node) -> bool:
    """Tell whether a node draws random numbers."""
    training = node.inputs[2] if is_op(node, "Dropout") and len(node.inputs) > 2 else None
    return training is not None or bool(node.attributes.get_int("training_mode", 0))
