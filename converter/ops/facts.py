"""Facts about operators that the schemas of ONNX do not state and that passes rely on.

A row looks at one node, at what is known of its inputs without running anything, and says what is
wrong. What is not known is never held against a node. Operators without a row are not looked at.
"""

from __future__ import annotations

from converter.ops import facts_layers as layers
from converter.ops import facts_shapes as shapes
from converter.ops.node_facts import Rule
from converter.ops.table import NEWEST, Entry, Table


def _entries(
    rule: Rule, *op_types: str, since: int = 1, until: int = NEWEST, domain: str = ""
) -> list[Entry[Rule]]:
    return [Entry(op_type, rule, domain, since, until) for op_type in op_types]


def _both(*rules: Rule) -> Rule:
    return lambda node: (problem for rule in rules for problem in rule(node))


_POOL = layers.Window(w=None, bias=None)
_ELEMENTWISE = (
    *("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less"),
)
_REDUCTIONS = (
    *("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
)
_VARIADIC = ("Max", "Min", "Sum", "Mean")
_TREES = ("nodes_", "target_", "class_", "leaf_")

FACTS: Table[Rule] = Table(
    "facts",
    [
        *_entries(_both(layers.positive_group, layers.Window()), "Conv"),
        *_entries(_both(layers.positive_group, layers.Window(transposed=True)), "ConvTranspose"),
        *_entries(_both(layers.positive_group, layers.Window(bias=None)), "ConvInteger"),
        *_entries(_both(layers.positive_group, layers.Window(w=3, bias=8)), "QLinearConv"),
        *_entries(_POOL, "MaxPool", "AveragePool", "LpPool"),
        Entry("QuantizeLinear", layers.per_tensor, until=12),
        Entry("DequantizeLinear", layers.per_tensor, until=12),
        *_entries(layers.quantized, "QuantizeLinear", "DequantizeLinear", since=13),
        *_entries(layers.quantized, "QuantizeLinear", "DequantizeLinear", domain="com.microsoft"),
        *_entries(layers.gemm, "Gemm", since=7),
        *_entries(layers.matmul, "MatMul", "MatMulInteger"),
        *_entries(layers.vectors(1, 2, 3, 4), "BatchNormalization", since=9),
        *_entries(layers.vectors(1, 2), "InstanceNormalization"),
        *_entries(layers.normalized, "LayerNormalization", since=17),
        *_entries(shapes.transpose, "Transpose"),
        *_entries(shapes.reshape, "Reshape"),
        *_entries(shapes.concat, "Concat"),
        *_entries(shapes.split, "Split"),
        *_entries(shapes.axis_in_range(0), "Gather", "GatherElements", "ArgMax", "ArgMin"),
        *_entries(shapes.axis_in_range(-1), "Softmax", "LogSoftmax", "Hardmax", since=13),
        *_entries(shapes.axis_in_range(-1), "TopK"),
        *_entries(shapes.axis_in_range(1, past=1), "Flatten"),
        *_entries(shapes.axes_in_range(1), "Squeeze", "ReduceSum", since=13),
        *_entries(shapes.axes_in_range(None), "Squeeze", "ReduceSum", until=12),
        *_entries(shapes.axes_in_range(1), *_REDUCTIONS, since=18),
        *_entries(shapes.axes_in_range(None), *_REDUCTIONS, until=17),
        *_entries(shapes.unsqueeze, "Unsqueeze"),
        *_entries(shapes.sliced, "Slice", since=10),
        *_entries(shapes.pad, "Pad", since=11),
        *_entries(layers.recurrent(1), "RNN", since=14),
        *_entries(layers.recurrent(3), "GRU", since=14),
        *_entries(layers.recurrent(4), "LSTM", since=14),
        *_entries(shapes.depth_to_space, "DepthToSpace"),
        *_entries(shapes.block, "SpaceToDepth"),
        *_entries(shapes.elementwise, *_ELEMENTWISE, since=7),
        *_entries(shapes.elementwise, *_VARIADIC, since=8),
        *_entries(shapes.elementwise, "Where"),
        *_entries(shapes.constant_of_shape, "ConstantOfShape"),
        *_entries(shapes.expand, "Expand"),
        *_entries(shapes.tile, "Tile", since=6),
        *_entries(shapes.constant, "Constant"),
        *_entries(shapes.loop, "Loop"),
        *_entries(shapes.cast, "Cast", since=6),
        *_entries(
            shapes.same_lengths(*_TREES),
            "TreeEnsembleClassifier",
            "TreeEnsembleRegressor",
            domain="ai.onnx.ml",
        ),
        *_entries(
            shapes.same_lengths("keys_", "values_"), "LabelEncoder", domain="ai.onnx.ml", since=2
        ),
    ],
)
"""Operator -> what must hold for its attributes and inputs; yields one sentence per problem."""
