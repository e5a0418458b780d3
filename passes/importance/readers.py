"""Layers as ``rows @ weight.T``: which rows, which matrix, and where a bias goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.calibration.patches import Geometry
from converter.core import graph as g

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.coupling.structure import Coupling, Sink

Array = np.ndarray[Any, Any]
MOST_COLUMNS = 6144
"""Layers with more inputs per output are ranked without a Gram matrix."""


@dataclass(frozen=True)
class Slot:
    """An input of a node that takes a bias, one number per output."""

    node: ir.Node
    position: int


@dataclass(frozen=True, eq=False)
class Layer:
    """A node that multiplies rows of an activation with a constant.

    Attributes:
        node: The node.
        position: Of the activation.
        constant: Position of the weight.
        axis: Of the activation that is summed over.
        geometry: How rows are cut; with no kernel the summed axis is the row.
        bias: Where a bias goes, or None.
        forward: Weight to matrices (groups, outputs, K).
        backward: Matrices to weight.
        states: The rows are the states of a recurrent node, which it makes itself.
    """

    node: ir.Node
    position: int
    constant: int
    axis: int
    geometry: Geometry
    bias: Slot | None
    forward: Callable[[Array], Array]
    backward: Callable[[Array], Array]
    states: bool = False

    @property
    def key(self) -> tuple[str, Geometry, int]:
        """What decides the rows: layers with equal keys share a Gram matrix."""
        value = self.node.inputs[self.position]
        assert value is not None
        return value.name or "", self.geometry, 0 if self.geometry.kernel else self.axis

    def matrices(self) -> Array:
        """Return the weight as float64 (groups, outputs, K), with the bias as a last column."""
        weight = g.constant_array(self.node.inputs[self.constant])
        assert weight is not None
        found = self.forward(np.asarray(weight, np.float64))
        if self.bias is None:
            return found
        groups, outputs = found.shape[:2]
        inputs = self.bias.node.inputs
        given = inputs[self.bias.position] if self.bias.position < len(inputs) else None
        bias = None if given is None else g.constant_array(given)
        column = np.zeros(groups * outputs)
        if bias is not None:
            column = np.broadcast_to(np.asarray(bias, np.float64).reshape(-1), column.shape)
        return np.concatenate([found, column.reshape(groups, outputs, 1)], axis=2)

    def owners(self, coupling: Coupling) -> Array | None:
        """Return the atom of every column: int64 (groups, K), -1 where it stays; None: no atoms."""
        atoms = coupling.uses[self.node, self.position][self.axis]
        if atoms is None:
            return None
        return np.repeat(
            atoms.reshape(self.geometry.groups, -1), int(np.prod(self.geometry.kernel)), axis=1
        )

    def rows_of(self, array: Array) -> Array:
        """Turn an activation so that :func:`converter.calibration.patches.patches` cuts rows."""
        if self.geometry.kernel or self.states:
            return array
        return np.moveaxis(array, self.axis, -1)


def layer_of(sink: Sink) -> Layer | None:
    """Return the layer behind a sink with weights; None where it is of another form."""
    if sink.kind not in ("weights", "recurrent") or sink.weight is None:
        return None
    weight = g.constant_array(sink.node.inputs[sink.weight])
    build = _BUILD.get(sink.node.op_type)
    if build is None or weight is None or weight.dtype.kind != "f" or not weight.size:
        return None
    found = build(sink, weight.shape)
    if found is None or found.forward(weight).shape[2] > MOST_COLUMNS:
        return None
    return found


def _conv(sink: Sink, shape: tuple[int, ...]) -> Layer | None:
    if len(shape) not in (3, 4, 5) or sink.weight != 1:
        return None
    node = sink.node
    groups = node.attributes.get_int("group", 1)
    kernel = shape[2:]
    read = node.attributes
    pads = tuple(read.get_ints("pads", ())) or (0,) * (2 * len(kernel))
    geometry = Geometry(
        kernel,
        tuple(read.get_ints("strides", ())) or (1,) * len(kernel),
        tuple(read.get_ints("dilations", ())) or (1,) * len(kernel),
        tuple(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)),
        read.get_string("auto_pad", "NOTSET") or "NOTSET",
        groups,
    )
    return Layer(
        node,
        0,
        1,
        1,
        geometry,
        _own_bias(node, shape[0]),
        lambda w: w.reshape(groups, shape[0] // groups, -1),
        lambda m: m.reshape(shape),
    )


def _conv_transpose(sink: Sink, shape: tuple[int, ...]) -> Layer | None:
    """Every input pixel is a row: overlaps of the windows are left out of account."""
    if len(shape) < 3 or sink.weight != 1:
        return None
    groups = sink.node.attributes.get_int("group", 1)
    if groups > 1:
        return None
    return Layer(
        sink.node,
        0,
        1,
        1,
        Geometry(),
        None,
        lambda w: w.reshape(1, shape[0], -1).swapaxes(1, 2),
        lambda m: m.swapaxes(1, 2).reshape(shape),
    )


def _gemm(sink: Sink, shape: tuple[int, ...]) -> Layer | None:
    node = sink.node
    if sink.weight != 1 or node.attributes.get_int("transA", 0) != 0:
        return None
    turned = node.attributes.get_int("transB", 0) != 0
    outputs = shape[0 if turned else 1]
    alpha = node.attributes.get_float("alpha", 1.0) or 1.0
    plain = node.attributes.get_float("beta", 1.0) == 1.0
    return Layer(
        node,
        0,
        1,
        1,
        Geometry(),
        _own_bias(node, outputs) if plain else None,
        lambda w: (w if turned else w.T)[None] * alpha,
        lambda m: (m[0] if turned else m[0].T) / alpha,
    )


def _mat_mul(sink: Sink, shape: tuple[int, ...]) -> Layer | None:
    if len(shape) != 2:
        return None
    node = sink.node
    if sink.weight == 1:
        return Layer(
            node,
            0,
            1,
            sink.axis,
            Geometry(),
            _bias_behind(node, shape[1]),
            lambda w: w.T[None],
            lambda m: m[0].T,
        )
    return Layer(node, 1, 0, sink.axis, Geometry(), None, lambda w: w[None], lambda m: m[0])


def _recurrent(sink: Sink, shape: tuple[int, ...]) -> Layer | None:
    """The gates of all directions are the outputs, of the input or of the states before."""
    node, states = sink.node, sink.kind == "recurrent"
    if sink.weight_axis != 2 or (states and not node.outputs[0].name):
        return None
    return Layer(
        node,
        sink.position,
        2 if states else 1,
        sink.axis,
        Geometry(),
        None,
        lambda w: w.reshape(1, -1, shape[2]),
        lambda m: m.reshape(shape),
        states,
    )


_BUILD: dict[str, Callable[[Sink, tuple[int, ...]], Layer | None]] = {
    "Conv": _conv,
    "FusedConv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "MatMul": _mat_mul,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
}


def _own_bias(node: ir.Node, outputs: int) -> Slot | None:
    """Return the third input where it is absent or a constant vector."""
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is None:
        return Slot(node, 2)
    bias = g.constant_array(given)
    return Slot(node, 2) if _vector(bias, outputs) else None


def _bias_behind(node: ir.Node, outputs: int) -> Slot | None:
    """Return the constant that the only reader, an Add, adds to every row."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    follower, position = uses[0].node, uses[0].idx
    if not g.is_op(follower, "Add"):
        return None
    bias = g.constant_array(follower.inputs[1 - position])
    return Slot(follower, 1 - position) if _vector(bias, outputs) else None


def _vector(bias: Array | None, outputs: int) -> bool:
    """Tell whether a constant adds one number to every output."""
    if bias is None or bias.size not in (1, outputs):
        return False
    return all(size == 1 for size in bias.shape[:-1])
