"""Numbers of axes, for models without inferred shapes: what operators' definitions say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

_LIKE_FIRST = """
    Abs AveragePool BatchNormalization Cast CastLike Celu Clip Dropout Elu Erf Exp Floor Gelu
    GlobalAveragePool GlobalMaxPool GroupNormalization HardSigmoid HardSwish Hardmax Identity
    InstanceNormalization LRN LayerNormalization LeakyRelu Log LogSoftmax LpNormalization LpPool
    MaxPool Mish Neg Pad QuickGelu Reciprocal Relu Resize Round Selu Sigmoid Sign Softmax Softplus
    Softsign Split Sqrt Tanh ThresholdedRelu Transpose Upsample
"""
_BROADCAST = "Add Sub Mul Div Pow Max Min Mean Sum PRelu Where Equal"


def _most(inputs: Sequence[int | None]) -> int | None:
    """Return the rank after broadcasting; None if that of an input is not known."""
    known = [i for i in inputs if i is not None]
    return max(known) if len(known) == len(inputs) else None


_RULES: dict[str, Callable[[Sequence[int | None]], int | None]] = {
    **dict.fromkeys(_LIKE_FIRST.split(), lambda inputs: inputs[0]),
    **dict.fromkeys(_BROADCAST.split(), _most),
    **dict.fromkeys(("Flatten", "Gemm"), lambda _: 2),
    **dict.fromkeys(("Conv", "ConvTranspose"), lambda inputs: inputs[0] or inputs[1]),
    "Concat": lambda inputs: next((i for i in inputs if i is not None), None),
    "MatMul": lambda inputs: _most(inputs) if min(i or 0 for i in inputs) >= 2 else None,
}
"""From the ranks of an operator's inputs to that of its outputs."""


def ranks(graph: ir.Graph) -> dict[ir.Value, int]:
    """Return the number of axes of every value of the main graph for which it is certain.

    Args:
        graph: In topological order.
    """
    found: dict[ir.Value, int] = {}

    def rank(value: ir.Value | None) -> int | None:
        if value is None:
            return None
        if value not in found:
            shape = value.shape if value.const_value is None else value.const_value.shape
            if shape is not None:
                found[value] = len(shape)
        return found.get(value)

    for node in graph:
        rule = _RULES.get(node.op_type) if node.domain in {"", "ai.onnx"} else None
        made = rule(list(map(rank, node.inputs))) if rule is not None and node.inputs else None
        for output in node.outputs:
            if made is not None and rank(output) is None:
                found[output] = made
            rank(output)
    for value in graph.inputs:
        rank(value)
    return found
