"""Which atoms are constant: the same number for every sample and at every place of a value.

One walk through the graph. A channel whose weights are zero is its bias, and what follows maps that
to another constant, up to the border of a padded Conv: beyond it there are zeros, so a constant
other than zero is none any more behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.graph import is_op, opset
from converter.coupling.structure import Coupling
from passes.coupling.layers import Linear, linear_of, pads_with_zeros
from passes.coupling.ranges import Ranges
from passes.importance.weights import weight_of

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
Known = Mapping[int, float]
"""Constant by atom, of the atoms of one value that are constant."""

POINTWISE = frozenset({
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Clip", "Cos", "Cosh",
    "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish",
    "Neg", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
})  # fmt: skip
"""Functions of one activation, element by element; other inputs are constants."""
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Max": np.maximum,
    "Min": np.minimum,
    "Pow": np.power,
    "PRelu": lambda x, slope: np.where(x < 0, x * slope, x),
}
BINARY = frozenset(_ARITHMETIC)
MOVES = frozenset({
    "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GlobalAveragePool",
    "GlobalMaxPool", "Identity", "ReduceMax", "ReduceMean", "ReduceMin", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""What comes out are elements that went in, or means of them."""
_ZERO_KEEPERS = frozenset({"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "GlobalLpPool"})


class Constancy:
    """The atoms of every value that are constant.

    Args:
        model: In topological order.
        coupling: Of this model.

    Attributes:
        layers: All layers with constant weights.
    """

    def __init__(self, model: ir.Model, coupling: Coupling) -> None:
        self._coupling = coupling
        self._opset = opset(model)
        self._known: dict[ir.Value, Known] = {}
        self._ranges = Ranges()
        self.layers: dict[ir.Node, Linear] = {}
        for node in model.graph:
            self._visit(node)

    def at(self, value: ir.Value | None) -> Known:
        """Return what is known of a value."""
        return self._known.get(value, {}) if value is not None else {}

    def column(self, node: ir.Node, position: int, axis: int) -> Array | None:
        """Return the constant of every index of an input's axis: float64 (size,), NaN: none."""
        axes = self._coupling.uses.get((node, position), ())
        labels = axes[axis] if axis < len(axes) else None
        if labels is None:
            return None
        return _spread(self.at(node.inputs[position]), labels)

    def rank(self, value: ir.Value) -> int | None:
        """Return the number of axes of a value, as it was observed."""
        shape = self._coupling.shapes.get(str(value.name))
        if shape is not None:
            return len(shape)
        return None if value.shape is None else len(value.shape)

    # --- one node ---------------------------------------------------------------------------------

    def _visit(self, node: ir.Node) -> None:
        layer = linear_of(node, self.rank)
        if layer is not None:
            self.layers[node] = layer
            self._put(node.outputs[0], self._linear(layer), layer.out_axis)
        else:
            self._follow(node)
        value = node.inputs[0] if node.inputs else None
        bounds = self._ranges.visit(node, layer, None if value is None else self.rank(value))
        if bounds is not None:
            self._put(node.outputs[0], bounds.constants(), bounds.axis)

    def _follow(self, node: ir.Node) -> None:
        """Note what becomes of constants at a node that is no layer."""
        if not is_op(node, node.op_type):
            return
        if node.op_type in POINTWISE or is_op(node, "BatchNormalization"):
            rule = self._normalization if is_op(node, "BatchNormalization") else self._pointwise
            known = self.at(node.inputs[0])
            if known and len(node.outputs) == 1:
                self._known[node.outputs[0]] = _finite(rule(node, known))
        elif node.op_type in BINARY and len(node.inputs) == 2:
            self._known[node.outputs[0]] = _finite(self._binary(node))
        else:
            self._move(node)

    def _put(self, value: ir.Value, constants: Array | None, axis: int) -> None:
        """Note the atoms all of whose indices are constant and equal."""
        axes = self._coupling.values.get(value, ())
        labels = axes[axis] if axis < len(axes) else None
        if constants is None or labels is None or constants.size != labels.size:
            return
        if not np.isfinite(constants).any():
            return
        found: dict[int, float] = {}
        for atom in np.unique(labels[np.isfinite(constants)]).tolist():
            numbers = constants[labels == atom]
            if atom >= 0 and (numbers == numbers[0]).all() and not _elsewhere(axes, axis, atom):
                found[atom] = float(numbers[0])
        self._known[value] = found | dict(self.at(value))

    def _linear(self, layer: Linear) -> Array | None:
        """Return the outputs that no input changes: float64 (rows,), NaN: it changes."""
        if layer.bias is None:
            return None
        groups, rows, columns, _ = layer.weight.shape
        inputs = self.column(layer.node, 0, layer.axis)
        inputs = np.full(layer.columns, np.nan) if inputs is None else inputs
        if inputs.size != layer.columns:
            return None
        read = layer.weight.any(axis=3)
        changes = np.isnan(inputs) | (layer.uneven & (inputs != 0))
        varies = (read & changes.reshape(groups, 1, columns)).any(axis=2).reshape(-1)
        result = layer.bias.copy()
        still = np.where(changes, 0.0, inputs)
        if still.any():
            sums = layer.sums() * still.reshape(groups, 1, columns)
            result += sums.sum(axis=2).reshape(groups * rows)
        result[varies] = np.nan
        return result

    def _pointwise(self, node: ir.Node, known: Known) -> Known:
        others = [None if v is None else weight_of(v) for v in node.inputs[1:]]
        if any(v is not None and o is None for v, o in zip(node.inputs[1:], others, strict=True)):
            return {}
        if any(o is not None and o.size != 1 for o in others):
            return {}
        made = _evaluate(node, np.array(list(known.values())), others, self._opset)
        return {} if made is None else dict(zip(known, made.tolist(), strict=True))

    def _normalization(self, node: ir.Node, known: Known) -> Known:
        parts = [weight_of(v) for v in node.inputs[1:5]]
        axes = self._coupling.uses.get((node, 0), ())
        labels = axes[1] if len(axes) > 1 else None
        if labels is None or node.attributes.get_int("training_mode", 0) != 0:
            return {}
        if any(p is None or p.size != labels.size for p in parts):
            return {}
        scale, bias, mean, variance = (np.asarray(p, np.float64).reshape(-1) for p in parts)
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        with np.errstate(all="ignore"):
            made = (_spread(known, labels) - mean) / np.sqrt(variance + epsilon) * scale + bias
        return _gathered(made, labels)

    def _binary(self, node: ir.Node) -> Known:
        """Combine constants of both sides; zero times anything is zero."""
        if not any(self.at(value) for value in node.inputs):
            return {}
        output = self._coupling.values.get(node.outputs[0], ())
        sides = [self._side(node, position) for position in (0, 1)]
        function = _ARITHMETIC[node.op_type]
        found: dict[int, float] = {}
        for atom in sorted({*sides[0][0], *sides[1][0]}):
            if not any(a is not None and (a == atom).any() for a in output):
                continue
            first, second = (known.get(atom, default) for known, default in sides)
            if first is not None and second is not None:
                with np.errstate(all="ignore"):
                    kind = np.float64
                    found[atom] = float(function(kind(first), kind(second)))
            elif node.op_type == "Mul" and 0.0 in {first, second}:
                found[atom] = 0.0
        return found

    def _side(self, node: ir.Node, position: int) -> tuple[Known, float | None]:
        """Return the constants of an input by atom, and the one of all atoms not among them."""
        array = weight_of(node.inputs[position])
        if array is None:
            return self.at(node.inputs[position]), None
        if array.dtype.kind not in "fV" or not array.size:
            return {}, None
        axes = self._coupling.uses.get((node, position), ())
        wide = [a for a, labels in enumerate(axes) if labels is not None]
        if array.size == 1:
            return {}, float(array.reshape(-1)[0])
        if len(wide) != 1 or axes[wide[0]] is None:
            return {}, None
        labels = np.asarray(axes[wide[0]])
        rows = np.moveaxis(array, wide[0], 0).reshape(labels.size, -1).astype(np.float64)
        even = np.where((rows == rows[:, :1]).all(axis=1), rows[:, 0], np.nan)
        return _gathered(even, labels), None

    def _move(self, node: ir.Node) -> None:
        rule = next((r for names, r in _RULES if node.op_type in names), None)
        if rule is None:
            return
        data = [v for v in node.inputs if self.at(v)]
        for output in node.outputs if data else ():
            found: dict[int, float] = {}
            present = _atoms(self._coupling.values.get(output, ()))
            for value in data:
                known = self.at(value)
                found |= {a: c for a, c in known.items() if a in present and rule(node, c)}
            for position, value in enumerate(node.inputs):
                labels = _atoms(self._coupling.uses.get((node, position), ()))
                known = self.at(value)
                for atom in [a for a in found if a in labels and known.get(a) != found[a]]:
                    del found[atom]
            self._known[output] = found


# --- which moves keep a constant ------------------------------------------------------------------


def _always(node: ir.Node, number: float) -> bool:
    return True


def _zero(node: ir.Node, number: float) -> bool:
    return number == 0


def _average(node: ir.Node, number: float) -> bool:
    counted = bool(node.attributes.get_int("count_include_pad", 0))
    return number == 0 or not (counted and pads_with_zeros(node))


def _pad(node: ir.Node, number: float) -> bool:
    if node.attributes.get_string("mode", "constant") != "constant":
        return True
    given = weight_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and given is None:
        return False
    filled = (
        node.attributes.get_float("value", 0.0) if given is None else float(given.reshape(-1)[0])
    )
    return number == filled


def _resize(node: ir.Node, number: float) -> bool:
    cropped = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    return number == 0 or cropped != "tf_crop_and_resize"


def _cast(node: ir.Node, number: float) -> bool:
    return number == 0 or node.attributes.get_int("to", 0) == 1


_RULES: tuple[tuple[frozenset[str], Callable[[ir.Node, float], bool]], ...] = (
    (MOVES | {"MaxPool"}, _always),
    (_ZERO_KEEPERS, _zero),
    (frozenset({"AveragePool"}), _average),
    (frozenset({"Pad"}), _pad),
    (frozenset({"Resize", "Upsample"}), _resize),
    (frozenset({"Cast"}), _cast),
)


# --- arrays and atoms -----------------------------------------------------------------------------


def _spread(known: Known, labels: Array) -> Array:
    """Return the constants of an axis: float64 (size,), NaN where there is none."""
    result = np.full(labels.size, np.nan)
    for atom, number in known.items():
        result[labels == atom] = number
    return result


def _gathered(constants: Array, labels: Array) -> dict[int, float]:
    """Return the constants by atom, where all indices of an atom agree."""
    found: dict[int, float] = {}
    for atom in np.unique(labels[np.isfinite(constants)]).tolist():
        numbers = constants[labels == atom]
        if atom >= 0 and (numbers == numbers[0]).all():
            found[atom] = float(numbers[0])
    return found


def _finite(known: Known) -> Known:
    return {atom: number for atom, number in known.items() if np.isfinite(number)}


def _elsewhere(axes: tuple[Array | None, ...], axis: int, atom: int) -> bool:
    """Tell whether an atom lies on another axis of the same value, too."""
    return any(a is not None and i != axis and (a == atom).any() for i, a in enumerate(axes))


def _atoms(axes: tuple[Array | None, ...]) -> set[int]:
    return {int(a) for labels in axes if labels is not None for a in np.unique(labels)} - {-1}


def _evaluate(
    node: ir.Node, numbers: Array, others: Sequence[Array | None], version: int
) -> Array | None:
    """Compute an elementwise function of some numbers in float64, as the specification says."""
    import onnx
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

    proto = ir.to_proto(node)
    names = [str(name) for name in proto.input]
    kind = onnx.TensorProto.DOUBLE
    takes = [onnx.helper.make_tensor_value_info(name, kind, None) for name in names if name]
    gives = [onnx.helper.make_tensor_value_info(name, kind, None) for name in proto.output]
    graph = onnx.helper.make_graph([proto], "function", takes, gives)
    opsets = [onnx.helper.make_opsetid("", version)]
    feeds = {names[0]: numbers.astype(np.float64)}
    pairs = zip(names[1:], others, strict=True)
    feeds |= {name: other.astype(np.float64) for name, other in pairs if other is not None}
    try:
        model = onnx.helper.make_model(graph, opset_imports=opsets)
        made: Any = ReferenceEvaluator(model).run(None, feeds)
    except Exception:  # noqa: BLE001 - what the reference cannot compute is not known
        return None
    return np.asarray(made[0], np.float64)
