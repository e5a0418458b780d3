"""Adding zeros: biases that were never trained, shifts of ones that were merged away.

``x + 0.0`` is not quite ``x``: it makes ``-0.0`` to ``0.0``, which a division downstream can tell
apart. So the addition goes only where nobody can: the order of a sum decides the sign of a zero
that it gives, and the specification leaves that order open, so MatMul and its like never have to
give ``-0.0``; and what sums, compares or takes exponentials of the result does not see the sign.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converter.core.graph import DEFAULT_DOMAINS, constant, is_op
from passes.rewriting.question import broadcast
from passes.rewriting.rule import Result, Rule
from passes.rewriting.work import Work

_FLOATS = frozenset(
    {ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16}
)
_SUMS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_VIEWS = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_POSITIVE = ("Abs", "Exp", "Sigmoid", "Softmax", "Softplus")
_BLIND = frozenset(
    {"ArgMax", "ArgMin", "Conv", "ConvTranspose", "Cos", "Equal", "Exp", "Gemm", "Greater"}
    | {"GreaterOrEqual", "Less", "LessOrEqual", "LogSoftmax", "MatMul", "Sigmoid", "Softmax"}
)
"""Operators whose results do not depend on the sign of a zero."""
_LARGEST = 1 << 20  # no bias has more bytes, and reading tables of weights would take time
_DEEPEST = 8  # a bound on the search keeps the pass linear


def _never_negative_zero(value: ir.Value | None, depth: int = _DEEPEST) -> bool:
    """Tell whether a value need not hold ``-0.0``, whatever the inputs."""
    node = value.producer() if value is not None else None
    if node is None or not depth or node.domain not in DEFAULT_DOMAINS:
        return False
    if is_op(node, *_SUMS, *_POSITIVE):
        return True
    if is_op(node, *_VIEWS):
        return _never_negative_zero(node.inputs[0], depth - 1)
    if is_op(node, "Add"):
        return any(_never_negative_zero(v, depth // 2) for v in node.inputs)
    return False


def _unseen(value: ir.Value) -> bool:
    """Tell whether every user gives the same result for both zeros."""
    if value.is_graph_output():
        return False
    return all(_is_blind(use.node, value) for use in value.uses())


def _is_blind(user: ir.Node, value: ir.Value) -> bool:
    if user.domain not in DEFAULT_DOMAINS or user.overload:
        return False
    if user.op_type in _BLIND:
        return True
    if user.op_type != "Add":
        return False
    return any(v is not value and _never_negative_zero(v) for v in user.inputs)


def _term(node: ir.Node, work: Work) -> Result:
    if work.opset(node) < 7 or len(node.inputs) != 2:
        return None
    for index in (1, 0) if node.op_type == "Add" else (1,):
        if _is_zero(node.inputs[index]):
            return _drop(node, node.inputs[1 - index], node.inputs[index], work)
    return None


def _is_zero(value: ir.Value | None) -> bool:
    tensor = constant(value)
    if tensor is None or tensor.dtype not in _FLOATS or not 0 < tensor.nbytes <= _LARGEST:
        return False
    return not np.asarray(tensor.numpy()).any()


def _drop(node: ir.Node, source: ir.Value | None, zeros: ir.Value | None, work: Work) -> Result:
    if source is None or zeros is None or constant(source) is not None:
        return None
    dims = work.facts.of(source).dims
    if dims is None or broadcast(dims, work.facts.of(zeros).dims) != dims:
        return "the zeros that it adds may make it larger"
    if not (_never_negative_zero(source) or _unseen(node.outputs[0])):
        return "0.0 in place of -0.0 may make a difference"
    return work.replace(node, source) or "its output is public, and so is its input"


RULES = (Rule("zeros_added_removed", ("Add", "Sub"), _term),)
"""All rules of this family; they change at most the sign of zeros."""
