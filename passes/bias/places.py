"""Where a constant can be added to the output channels of a node, whatever form the model has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converter.core import graph as g

Array = g.Array
_INT32_ENDS = (-(2**31), 2**31 - 1)
_BIASED = ("Conv", "ConvTranspose", "Gemm")
_MEAN = 3  # position of the running mean of BatchNormalization; the variance follows
_NOWHERE = "it has no bias that a correction could go to"


@dataclass(frozen=True, eq=False)
class Place:
    """A number per channel that is added to a value.

    Attributes:
        node: Reads the constant.
        position: Which input it is; it may be missing yet.
        channels: How many numbers.
        sign: -1 where the constant is subtracted: the mean of BatchNormalization.
    """

    node: ir.Node
    position: int
    channels: int
    sign: int = 1

    def add(self, model: ir.Model, amount: Array) -> bool:
        """Add to the constant; return whether any stored bit changed.

        Args:
            model: Holds the node.
            amount: float64 (channels,).
        """
        value = self._value()
        if value is None:
            return self._create(model, amount)
        producer = value.producer()
        if producer is not None and g.is_op(producer, "DequantizeLinear"):
            return _add_steps(producer, self.sign * amount)
        array = g.constant_array(value)
        assert array is not None
        moved = array.astype(np.float64) + (self.sign * amount).reshape(array.shape)
        return _replace(model, self.node, self.position, moved.astype(array.dtype))

    def current(self) -> Array:
        """Return what is added now: float64 (channels,)."""
        value = self._value()
        producer = None if value is None else value.producer()
        if producer is not None and g.is_op(producer, "DequantizeLinear"):
            integers, scale = (g.constant_array(v) for v in producer.inputs[:2])
            assert integers is not None
            assert scale is not None
            return self.sign * integers.astype(np.float64) * scale.reshape(-1)
        array = g.constant_array(value)
        if array is None:
            return np.zeros(self.channels)
        return self.sign * array.astype(np.float64).reshape(-1)

    def rescale_variance(self, model: ir.Model, ratio: Array) -> bool:
        """Multiply the variance of BatchNormalization; ``ratio`` is (channels,), above zero."""
        array = g.constant_array(self.node.inputs[_MEAN + 1])
        assert array is not None
        scaled = (array.astype(np.float64) * ratio).astype(array.dtype)
        return _replace(model, self.node, _MEAN + 1, scaled)

    @property
    def normalizes(self) -> bool:
        """Tell whether the place is a BatchNormalization, which has a variance too."""
        return self.node.op_type == "BatchNormalization"

    def _value(self) -> ir.Value | None:
        return self.node.inputs[self.position] if self.position < len(self.node.inputs) else None

    def _create(self, model: ir.Model, amount: Array) -> bool:
        """Give a node without bias one, on the grid that its integers want."""
        numbers = amount.astype(np.float32)
        if not numbers.any():
            return False
        name = f"{self.node.outputs[0].name or 'layer'}_bias"
        names = g.Names(model)
        if len(self.node.inputs) <= self.position:
            self.node.resize_inputs(self.position + 1)
        scale = _product_scale(self.node)
        graph = model.graph
        if scale is None:
            made = g.add_initializer(graph, names.fresh(name), numbers)
        else:
            made = _dequantized(graph, names, name, amount, np.broadcast_to(scale, amount.shape))
        self.node.replace_input_with(self.position, made)
        return True


def place_of(node: ir.Node, channels: int) -> Place | str:
    """Find where a constant can be added to what a node computes, or say why nowhere."""
    user = _only_user(node.outputs[0])
    if g.is_op(user, "BatchNormalization") and user is not None:
        return norm_place(user, channels)
    if g.is_op(node, "Add"):
        constants = [i for i in (0, 1) if _is_constant(node.inputs[i])]
        return _checked(Place(node, constants[0], channels)) if constants else _NOWHERE
    if g.is_op(node, *_BIASED):
        return _checked(Place(node, 2, channels), missing=True)
    if g.is_op(user, "Add") and user is not None:
        return _checked(Place(user, 1 if user.inputs[0] is node.outputs[0] else 0, channels))
    return _NOWHERE


def norm_place(node: ir.Node, channels: int) -> Place | str:
    """Return the running mean of a BatchNormalization, or why it cannot be changed."""
    if len(node.inputs) != 5 or node.attributes.get_int("training_mode", 0) != 0:
        return "its BatchNormalization is in training mode"
    for position in (_MEAN, _MEAN + 1):
        array = g.constant_array(node.inputs[position])
        if array is None or array.dtype != np.float32 or array.shape != (channels,):
            return "the statistics of its BatchNormalization are not constant"
    return Place(node, _MEAN, channels, sign=-1)


def _checked(place: Place, *, missing: bool = False) -> Place | str:
    """Return the place if its constant can be changed, else the reason."""
    node, position = place.node, place.position
    value = node.inputs[position] if position < len(node.inputs) else None
    if any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return "its factors alpha and beta are not 1"
    if value is None:
        return place if missing else _NOWHERE
    producer = value.producer()
    if producer is not None and g.is_op(producer, "DequantizeLinear"):
        return _checked_steps(place, producer)
    array = g.constant_array(value)
    if array is None:
        return "its bias is not constant"
    fits = array.dtype == np.float32 and array.size == place.channels and _is_vector(array)
    return place if fits else "its bias is not float32 with one number per channel"


def _checked_steps(place: Place, node: ir.Node) -> Place | str:
    integers, scale = (g.constant_array(value) for value in node.inputs[:2])
    if integers is None or scale is None or integers.dtype != np.int32:
        return "its bias is not constant"
    if integers.shape != (place.channels,) or scale.size not in {1, place.channels}:
        return "its bias is not stored with one number per channel"
    shared = len(tuple(node.outputs[0].uses())) != 1 or len(tuple(node.inputs[0].uses())) != 1  # type: ignore[union-attr]
    return "its bias is used elsewhere too" if shared else place


def _is_constant(value: ir.Value | None) -> bool:
    maker = None if value is None else value.producer()
    if maker is not None and g.is_op(maker, "DequantizeLinear"):
        return g.constant(maker.inputs[0]) is not None
    return g.constant(value) is not None


def _is_vector(array: Array) -> bool:
    return sum(1 for size in array.shape if size > 1) <= 1


def _only_user(value: ir.Value) -> ir.Node | None:
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _add_steps(node: ir.Node, amount: Array) -> bool:
    """Move an int32 bias by whole steps of its grid."""
    integers, scale = (g.constant_array(value) for value in node.inputs[:2])
    assert integers is not None
    assert scale is not None
    steps = np.rint(amount / scale.astype(np.float64).reshape(-1))
    moved = np.clip(integers.astype(np.float64) + steps, *_INT32_ENDS).astype(np.int32)
    if (moved == integers).all():
        return False
    _overwrite(node.inputs[0], moved)
    return True


def _product_scale(node: ir.Node) -> Array | None:
    """Return scale of the input times scales of the weight, if both come from integers."""
    scales = []
    for value in node.inputs[:2]:
        maker = None if value is None else value.producer()
        if maker is None or not g.is_op(maker, "DequantizeLinear"):
            return None
        scale = g.constant_array(maker.inputs[1])
        if scale is None or scale.ndim > 1:
            return None
        scales.append(scale.astype(np.float32).reshape(-1))
    # A weight in blocks, or an input with a scale per channel, is not computed on integers.
    return np.asarray(scales[0] * scales[1]) if scales[0].size == 1 else None


def _dequantized(
    graph: ir.Graph, names: g.Names, name: str, amount: Array, scale: Array
) -> ir.Value:
    """Store a bias as int32 behind DequantizeLinear."""
    steps = np.clip(np.rint(amount / scale.astype(np.float64)), *_INT32_ENDS).astype(np.int32)
    inputs: Sequence[ir.Value] = [
        g.add_initializer(graph, names.fresh(f"{name}_quantized"), steps),
        g.add_initializer(graph, names.fresh(f"{name}_scale"), np.array(scale, np.float32)),
    ]
    output = ir.Value(
        name=names.fresh(f"{name}_dequantized"),
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(steps.shape),
    )
    node_name = names.fresh(f"{output.name}_DequantizeLinear")
    attributes = [ir.AttrInt64("axis", 0)]
    node = ir.Node("", "DequantizeLinear", inputs, attributes, outputs=[output], name=node_name)
    graph.insert_before(next(iter(graph)), [node])
    return output


def _replace(model: ir.Model, node: ir.Node, position: int, array: Array) -> bool:
    """Give one node another constant; whoever shares the old one keeps it."""
    value = node.inputs[position]
    old = g.constant_array(value)
    assert value is not None
    assert old is not None
    if (array == old).all():
        return False
    if len(tuple(value.uses())) == 1 and not value.is_graph_output():
        _overwrite(value, array)
    else:
        name = g.Names(model).fresh(f"{value.name or 'constant'}_corrected")
        assert node.graph is not None
        node.replace_input_with(position, g.add_initializer(model.graph, name, array))
    return True


def _overwrite(value: ir.Value | None, array: Array) -> None:
    assert value is not None
    g.replace_tensor(value, ir.tensor(array))
