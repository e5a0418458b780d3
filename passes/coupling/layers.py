"""Layers with constant weights in one form: a matrix times inputs, plus a bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core.graph import Names, add_initializer, is_op, set_constant
from passes.importance.weights import weight_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Linear:
    """A Conv, ConvTranspose, Gemm or MatMul that reads an activation and a constant weight.

    Attributes:
        node: The layer; the activation is input 0, the weight input 1.
        axis: Of the activation that is summed over, not negative.
        out_axis: Of the output that has one index per row of the weight, not negative.
        weight: (groups, rows per group, columns per group, kernel elements).
        bias: float64 (rows,), as it is added; None: it is not constant.
        uneven: An input that is constant everywhere gives no constant output: there is padding.
        scale: Of products with the weight.
        bias_scale: Of the bias.
    """

    node: ir.Node
    axis: int
    out_axis: int
    weight: Array
    bias: Array | None
    uneven: bool = False
    scale: float = 1.0
    bias_scale: float = 1.0

    @property
    def rows(self) -> int:
        """Number of outputs."""
        return int(self.weight.shape[0] * self.weight.shape[1])

    @property
    def columns(self) -> int:
        """Number of inputs."""
        return int(self.weight.shape[0] * self.weight.shape[2])

    def sums(self) -> Array:
        """Return what an input of 1 everywhere adds: float64 (groups, rows, columns)."""
        return np.asarray(self.weight.sum(axis=3, dtype=np.float64) * self.scale)


def linear_of(node: ir.Node, ranks: Callable[[ir.Value], int | None]) -> Linear | None:
    """Return the layer in one form, or None for what is none.

    Args:
        node: Any node.
        ranks: Gives the number of axes of a value.
    """
    make = _FORMS.get(node.op_type)
    if make is None or not is_op(node, node.op_type) or node.inputs[0] is None:
        return None
    weight, rank = weight_of(node.inputs[1]), ranks(node.inputs[0])
    if weight is None or rank is None or weight.dtype.kind not in "fV":
        return None
    return make(node, weight, rank)


def _conv(node: ir.Node, weight: Array, rank: int) -> Linear | None:
    groups = node.attributes.get_int("group", 1)
    if weight.ndim < 3 or groups < 1 or weight.shape[0] % groups:
        return None
    form = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    bias = _bias(node, weight.shape[0])
    return Linear(node, 1, 1, form, bias, uneven=pads_with_zeros(node))


def _conv_transpose(node: ir.Node, weight: Array, rank: int) -> Linear | None:
    groups = node.attributes.get_int("group", 1)
    if weight.ndim < 3 or groups < 1 or weight.shape[0] % groups:
        return None
    form = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).swapaxes(1, 2)
    return Linear(node, 1, 1, form, _bias(node, form.shape[0] * form.shape[1]), uneven=True)


def _gemm(node: ir.Node, weight: Array, rank: int) -> Linear | None:
    read = node.attributes
    if weight.ndim != 2 or read.get_int("transA", 0) != 0:
        return None
    matrix = weight if read.get_int("transB", 0) != 0 else weight.T
    beta = read.get_float("beta", 1.0)
    bias = _bias(node, matrix.shape[0])
    return Linear(
        node,
        1,
        1,
        matrix[None, :, :, None],
        None if bias is None else bias * beta,
        scale=read.get_float("alpha", 1.0),
        bias_scale=beta,
    )


def _matmul(node: ir.Node, weight: Array, rank: int) -> Linear | None:
    if weight.ndim != 2 or rank < 2:
        return None
    rows = weight.T.shape[0]
    return Linear(node, rank - 1, rank - 1, weight.T[None, :, :, None], np.zeros(rows))


_FORMS: dict[str, Callable[[ir.Node, Array, int], Linear | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}


def pads_with_zeros(node: ir.Node) -> bool:
    """Tell whether a Conv or pooling may read beyond the border of its input."""
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto in {"SAME_UPPER", "SAME_LOWER"}:
        return True
    return auto == "NOTSET" and any(node.attributes.get_ints("pads", ()))


def _bias(node: ir.Node, rows: int) -> Array | None:
    """Return the bias of a layer: float64 (rows,); None: not constant, or not one per row."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(rows)
    found = weight_of(value)
    if found is None or found.size not in {1, rows} or (found.size > 1 and found.shape[-1] != rows):
        return None
    wide = found.astype(np.float64).reshape(-1)
    return np.asarray(np.broadcast_to(wide, (rows,)))


# --- edits --------------------------------------------------------------------------------------


def can_shift(layer: Linear) -> bool:
    """Tell whether a constant can be added to every output of a layer."""
    if is_op(layer.node, "MatMul"):
        return _add_behind(layer) is not None
    return layer.bias is not None and layer.bias_scale != 0


def shift(layer: Linear, amount: Array, names: Names) -> None:
    """Add constants to the outputs of a layer, in place; see :func:`can_shift`.

    Args:
        layer: The layer.
        amount: float64 (rows,).
        names: Of the model.
    """
    if is_op(layer.node, "MatMul"):
        found = _add_behind(layer)
        assert found is not None
        node, position = found
        old = weight_of(node.inputs[position])
        assert old is not None
        replace_constant(node, position, (old.astype(np.float64) + amount).astype(old.dtype), names)
        return
    assert layer.bias is not None
    kind = layer.weight.dtype
    wide = (layer.bias + amount) / layer.bias_scale
    if len(layer.node.inputs) < 3:
        layer.node.resize_inputs(3)
    replace_constant(layer.node, 2, wide.astype(kind), names)


def replace_constant(node: ir.Node, position: int, array: Array, names: Names) -> None:
    """Give a node another constant input; other readers of the old one keep it.

    Args:
        node: The reader.
        position: Of the input.
        array: The new numbers.
        names: Of the model.
    """
    old = node.inputs[position]
    if old is not None and _only_here(old):
        set_constant(old, array)
        return
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    base = old.name if old is not None and old.name else f"{node.outputs[0].name}_bias"
    node.replace_input_with(position, add_initializer(graph, names.fresh(base), array))


def _only_here(value: ir.Value) -> bool:
    """Tell whether a constant is an initializer with one reader."""
    alone = len(list(value.uses())) == 1
    return alone and value.is_initializer() and not value.is_graph_output()


def _add_behind(layer: Linear) -> tuple[ir.Node, int] | None:
    """Return the Add of a constant right behind a MatMul, with the position of the constant."""
    output = layer.node.outputs[0]
    users = list(output.uses())
    if len(users) != 1 or output.is_graph_output() or not is_op(users[0][0], "Add"):
        return None
    node, index = users[0]
    found = weight_of(node.inputs[1 - index])
    if found is None or found.size != layer.rows or found.shape[-1:] != (layer.rows,):
        return None
    return node, 1 - index
