"""A layer whose weight can be replaced: as a matrix per group, and where its bias is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.calibration.patches import Geometry, patches
from converter.core import graph as g
from passes.reconstruction.transposed import Stuffing, from_matrices, matrices, stuffing_of

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
_FLOATS = ("f2", "f4", "f8")
_MATRIX = 2


@dataclass(frozen=True, eq=False)
class Home:
    """The input that a bias is, or would be.

    Attributes:
        node: Reads it.
        position: Which input.
        shape: Its shape; None: there is none yet.
    """

    node: ir.Node
    position: int
    shape: tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class Linear:
    """Conv, Gemm or MatMul with a constant weight.

    Attributes:
        node: The layer; its first input is the activation.
        geometry: How rows are cut from its input.
        swapped: The weight is stored as (inputs, outputs).
        weight: float64 (groups, outputs of a group, inputs of a group).
        bias: float64 (outputs,); zeros where it has none.
        home: Where the bias is; None: it has none and can have none.
        stuffing: Of a ConvTranspose; None: another layer.
    """

    node: ir.Node
    geometry: Geometry
    swapped: bool
    weight: Array
    bias: Array
    home: Home | None
    stuffing: Stuffing | None = None

    @property
    def outputs(self) -> int:
        """Output channels."""
        return int(self.weight.shape[0] * self.weight.shape[1])

    @property
    def depth(self) -> int:
        """Inputs of one output."""
        return int(self.weight.shape[2])

    @property
    def axis(self) -> int:
        """Axis of the channels in input and output."""
        return 1 if self.geometry.kernel else -1

    @property
    def pointwise(self) -> Geometry:
        """How rows are cut from something of the output's shape, at the same positions."""
        ones = (1,) * len(self.geometry.kernel)
        return Geometry(ones, ones, ones, ((0, 0),) * len(ones))

    def rows(self, x: Array, most: int, seed: int) -> Array:
        """Return the rows that are multiplied with the weight; see :func:`patches`."""
        return patches(x if self.stuffing is None else self.stuffing(x), self.geometry, most, seed)

    def shape(self, x: Array) -> tuple[int, ...]:
        """Return the shape of the output for an input."""
        if not self.geometry.kernel:
            return (*x.shape[:-1], self.outputs)
        sizes = x.shape[2:] if self.stuffing is None else self.stuffing.sizes(x.shape[2:])
        return (len(x), self.outputs, *self.geometry.positions(sizes))

    def last(self) -> ir.Value:
        """Return the value that holds weight and bias."""
        outside = self.home is not None and self.home.node is not self.node
        node = self.home.node if outside and self.home is not None else self.node
        return node.outputs[0]

    def stored(self, weight: Array) -> Array:
        """Bring a weight (groups, outputs of a group, inputs of a group) to the stored form."""
        array = g.constant_array(self.node.inputs[1])
        assert array is not None
        if self.stuffing is not None:
            made = from_matrices(weight, array.shape)
            return np.ascontiguousarray(made, array.dtype)
        matrix = weight.reshape(self.outputs, self.depth)
        made = matrix.T if self.swapped else matrix.reshape(array.shape)
        return np.ascontiguousarray(made, array.dtype)


def linear_of(node: ir.Node) -> Linear | str | None:
    """Describe a node; the reason why its weight cannot be replaced; None: it has none."""
    if not g.is_op(node, "Conv", "ConvTranspose", "Gemm", "MatMul") or len(node.inputs) < 2:
        return None
    array = g.constant_array(node.inputs[1])
    if array is None or node.inputs[0] is None:
        return _foreign(node)
    reason = _obstacle(node, array)
    if reason:
        return reason
    if node.op_type == "ConvTranspose":
        return _transposed(node, array)
    try:
        geometry = Geometry.of(node, array.shape)
    except ValueError:
        return "its input is transposed"
    return _described(node, geometry, array)


def _transposed(node: ir.Node, array: Array) -> Linear | str:
    found = stuffing_of(node, array.shape)
    if isinstance(found, str):
        return found
    stuffing, geometry = found
    weight = matrices(array, geometry.groups)
    outputs = weight.shape[0] * weight.shape[1]
    home = _home(node, outputs)
    if isinstance(home, str):
        return home
    return Linear(node, geometry, False, weight, _bias(home, outputs), home, stuffing)  # noqa: FBT003


def _obstacle(node: ir.Node, array: Array) -> str:
    if array.dtype.str[1:] not in _FLOATS:
        return f"its weight is {array.dtype}"
    if node.op_type == "MatMul" and array.ndim != _MATRIX:
        return "its weight is no matrix"
    if any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return "its factors alpha and beta are not 1"
    return ""


def _described(node: ir.Node, geometry: Geometry, array: Array) -> Linear | str:
    swapped = not geometry.kernel and not node.attributes.get_int("transB", 0)
    matrix = array.T if swapped else array
    outputs, groups = matrix.shape[0], geometry.groups
    if not array.size or outputs % groups:
        return "its weight is empty"
    home = _home(node, outputs)
    if isinstance(home, str):
        return home
    weight = matrix.astype(np.float64).reshape(groups, outputs // groups, -1)
    return Linear(node, geometry, swapped, weight, _bias(home, outputs), home)


def _foreign(node: ir.Node) -> str | None:
    """Say why a layer without a plain constant weight is left alone."""
    weight = node.inputs[1]
    if weight is not None and weight.is_initializer():
        return g.OVERRIDABLE
    maker = None if weight is None else weight.producer()
    if maker is not None and g.is_op(maker, "DequantizeLinear") and g.constant(maker.inputs[0]):
        return "its weight is quantized"
    return None


def _home(node: ir.Node, outputs: int) -> Home | str | None:
    """Find the bias of a layer; a text says what is in the way."""
    if node.op_type != "MatMul":
        value = node.inputs[2] if len(node.inputs) > 2 else None
        if value is None:
            return Home(node, 2, None)
        return _vector(node, 2, _fixed(value), outputs) or "its bias is not constant, or no vector"
    user = only_user(node.outputs[0])
    if user is None or not g.is_op(user, "Add"):
        return None
    position = 1 if user.inputs[0] is node.outputs[0] else 0
    return _vector(user, position, g.constant_array(user.inputs[position]), outputs)


def _fixed(value: ir.Value | None) -> Array | None:
    """Return a constant; exporters put Identity before one that several layers share."""
    maker = None if value is None else value.producer()
    while maker is not None and g.is_op(maker, "Identity"):
        value = maker.inputs[0]
        maker = None if value is None else value.producer()
    return g.constant_array(value)


def _vector(node: ir.Node, position: int, array: Array | None, outputs: int) -> Home | None:
    fits = array is not None and array.size == outputs == array.shape[-1] if outputs > 1 else False
    fits = fits or (array is not None and array.size == 1 == outputs)
    return Home(node, position, array.shape) if fits and array is not None else None


def _bias(home: Home | None, outputs: int) -> Array:
    if home is None or home.shape is None:
        return np.zeros(outputs)
    array = _fixed(home.node.inputs[home.position])
    assert array is not None
    return array.astype(np.float64).reshape(-1)


def only_user(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads a value; None when there are several or outputs."""
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def install(model: ir.Model, node: ir.Node, position: int, array: Array, name: str) -> None:
    """Give a node a constant of its own: other readers of the old one keep it."""
    value = node.inputs[position] if position < len(node.inputs) else None
    if value is not None and value.is_initializer():
        alone = len(tuple(value.uses())) == 1 and not value.is_graph_output()
        if alone and not value.is_graph_input():
            g.set_constant(value, array)
            return
    if len(node.inputs) <= position:
        node.resize_inputs(position + 1)
    fresh = g.Names(model).fresh(name)
    node.replace_input_with(position, g.add_initializer(model.graph, fresh, array))
    _tidy(value)


def _tidy(value: ir.Value | None) -> None:
    """Remove what made a constant that nobody reads any more."""
    while value is not None and not tuple(value.uses()) and not value.is_graph_output():
        node = value.producer()
        if node is None or node.graph is None or not g.is_op(node, "Constant", "Identity"):
            return
        before = node.inputs[0] if node.inputs else None
        node.graph.remove(node, safe=True)
        value = before
