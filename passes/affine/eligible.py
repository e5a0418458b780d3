"""What a node looks like to quantization: why it must stay in float, and what may merge with it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from converter.ops.quantizable import QUANTIZING_OPS, QuantizableOp

_GELU_DEPTH = 3


def refusal(node: ir.Node, row: QuantizableOp) -> str:
    """Say why a weighted node stays as it is; "" when it need not."""
    weight = node.inputs[row.weight] if row.weight is not None else None
    x = node.inputs[0]
    if x is None or weight is None:
        return "an input is missing"
    if _touches_integers(node, x, weight):
        return "already quantized"
    return _weight_refusal(weight, row) or _form_refusal(node, x, row)


def _touches_integers(node: ir.Node, x: ir.Value, weight: ir.Value) -> bool:
    makers = (x.producer(), weight.producer())
    return any(g.is_op(maker, *QUANTIZING_OPS) for maker in makers) or any(
        g.is_op(user, "QuantizeLinear") for user in node.outputs[0].consumers()
    )


def _weight_refusal(weight: ir.Value, row: QuantizableOp) -> str:
    tensor = g.constant(weight)
    if tensor is None:
        overridable = weight.is_graph_input() and weight.is_initializer()
        return g.OVERRIDABLE if overridable else "the weight is not constant"
    if tensor.dtype != ir.DataType.FLOAT:
        return f"the weight is {tensor.dtype.name.lower()}, not float32"
    if (row.weight_ranks and len(tensor.shape) not in row.weight_ranks) or tensor.size == 0:
        return "the shape of the weight is not fused by onnxruntime"
    return ""


def _form_refusal(node: ir.Node, x: ir.Value, row: QuantizableOp) -> str:
    if g.constant(x) is not None:
        return "both inputs are constant"
    if not row.accepts(node):
        return "its attributes are not fused by onnxruntime"
    if row.float_output and after_gelu(x):
        return "its input comes from GELU, whose range 8 bits cannot hold"
    return ""


def bias_add(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Return the Add of a constant vector that is the only user of a MatMul, and its position."""
    user, output = only_user(node.outputs[0]), node.outputs[0]
    if not g.is_op(user, "Add") or user is None or user.graph is not node.graph:
        return None
    position = 1 if user.inputs[0] is output else 0
    tensor, weight = g.constant(user.inputs[position]), g.constant(node.inputs[1])
    if tensor is None or weight is None:
        return None
    shape, rank = tuple(tensor.shape.numpy()), _rank(node.inputs[0])
    if shape[-1:] != (weight.shape.numpy()[-1],) or tensor.size != shape[-1]:
        return None
    return (user, position) if len(shape) == 1 or len(shape) <= rank else None


def becomes_gemm(node: ir.Node) -> bool:
    """Tell whether onnxruntime may join MatMul and the Add after it to a Gemm that stays float.

    It does so before it looks for integers, and a Gemm whose third input is float is not fused.
    Rounding the product of the two to 8 bits keeps them apart.
    """
    return (
        g.is_op(node, "MatMul")
        and g.is_op(only_user(node.outputs[0]), "Add")
        and (_rank(node.inputs[0]) < 3 or any(_rank(v) < 2 for v in _only_inputs(node)))
    )


def _only_inputs(node: ir.Node) -> list[ir.Value | None]:
    user = only_user(node.outputs[0])
    return [] if user is None else [v for v in user.inputs if v is not node.outputs[0]]


def _rank(value: ir.Value | None) -> int:
    """Return the number of axes; 0 when it is not known."""
    return 0 if value is None or value.shape is None else len(value.shape)


def only_user(value: ir.Value) -> ir.Node | None:
    """Return the node that alone reads the value, or None."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def bound(node: ir.Node, position: int, attribute: str, missing: float) -> float | None:
    """Read a bound of Clip from its attribute (to opset 10) or its input; None if not constant."""
    if attribute in node.attributes:
        return node.attributes.get_float(attribute, missing)
    value = node.inputs[position] if len(node.inputs) > position else None
    if value is None:
        return missing
    array = g.constant_array(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def usable_constant(value: ir.Value | None) -> bool:
    """Tell whether the value is a constant that a grid can hold."""
    tensor = g.constant(value)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size == 0:
        return False
    return bool(np.isfinite(tensor.numpy()).all())


def after_gelu(value: ir.Value) -> bool:
    """Tell whether GELU made the value: one node, or a product with 1 + erf(..) or 1 + tanh(..)."""
    node = value.producer()
    if g.is_op(node, "Gelu"):
        return True
    if node is None or not g.is_op(node, "Mul"):
        return False
    front = [node]
    for _ in range(_GELU_DEPTH):
        front = [p for n in front for p in n.predecessors() if g.is_op(p, "Mul", "Add")]
        if any(
            g.is_op(p, "Erf", "Tanh") for n in front if n.op_type == "Add" for p in n.predecessors()
        ):
            return True
    return False
