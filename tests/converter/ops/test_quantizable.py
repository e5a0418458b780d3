"""Every row of the table, observed in the installed onnxruntime on a graph of that one operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from fusion import optimised_ops

from converter.ops.quantizable import QUANTIZABLE, Role

# Attributes and constant inputs (None: absent) that make each operator valid on (1, 8, 6, 6).
FORMS: dict[str, tuple[dict[str, Any], list[np.ndarray | None]]] = {
    "Conv": ({}, []),
    "Gemm": ({}, []),
    "MatMul": ({}, []),
    "Add": ({}, []),
    "Mul": ({}, []),
    "Concat": ({"axis": 1}, []),
    "AveragePool": ({"kernel_shape": [2, 2]}, []),
    "GlobalAveragePool": ({}, []),
    "LeakyRelu": ({"alpha": 0.1}, []),
    "Sigmoid": ({}, []),
    "MaxPool": ({"kernel_shape": [2, 2]}, []),
    "Resize": ({"mode": "nearest"}, [None, np.array([1, 1, 2, 2], np.float32)]),
    "Reshape": ({}, [np.array([1, -1])]),
    "Transpose": ({"perm": [0, 2, 3, 1]}, []),
    "Flatten": ({}, []),
    "Squeeze": ({}, [np.array([0])]),
    "Unsqueeze": ({}, [np.array([0])]),
    "Slice": ({}, [np.array([0]), np.array([4]), np.array([1])]),
    "Gather": ({"axis": 1}, [np.array([0, 3])]),
    "Expand": ({}, [np.array([2, 8, 6, 6])]),
    "Tile": ({}, [np.array([2, 1, 1, 1])]),
    "DepthToSpace": ({"blocksize": 2}, []),
    "Split": ({"axis": 1}, [np.array([3, 5])]),
}


class Graph:
    """A graph of one operator between grids."""

    def __init__(self, shape: list[int]) -> None:
        self.inputs: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self.shape = shape

    def input(self) -> ir.Value:
        name = f"x{len(self.inputs)}"
        kind = ir.TensorType(ir.DataType.FLOAT)
        value = ir.Value(name=name, type=kind, shape=ir.Shape(self.shape))
        self.inputs.append(value)
        return value

    def constant(self, array: np.ndarray) -> ir.Value:
        name = f"c{len(self.constants)}"
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
        )
        self.constants.append(value)
        return value

    def node(self, op: str, inputs: list[ir.Value | None], count: int = 1, **a: Any) -> ir.Node:
        node = ir.node(op, inputs, a, num_outputs=count, name=f"n{len(self.nodes)}")
        for i, value in enumerate(node.outputs):
            value.name = f"v{len(self.nodes)}_{i}"
        self.nodes.append(node)
        return node

    def on_grid(self, value: ir.Value, scale: float = 0.02) -> ir.Value:
        grid = [self.constant(np.float32(scale)), self.constant(np.uint8(128))]
        integers = self.node("QuantizeLinear", [value, *grid]).outputs[0]
        return self.node("DequantizeLinear", [integers, *grid]).outputs[0]

    def weight(self, array: np.ndarray, axis: int) -> ir.Value:
        # A bias lies on the product of both other grids, else onnxruntime does not fuse.
        scale = np.full(array.shape[axis], 0.01 if array.dtype == np.int8 else 0.0002, np.float32)
        inputs: list[ir.Value | None] = [self.constant(array), self.constant(scale)]
        if array.dtype == np.int8:
            inputs.append(self.constant(np.zeros_like(scale, np.int8)))
        return self.node("DequantizeLinear", inputs, axis=axis).outputs[0]

    def model(self, outputs: list[ir.Value], opset: int) -> ir.Model:
        for value in outputs:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            self.inputs,
            outputs,
            nodes=self.nodes,
            initializers=self.constants,
            opset_imports={"": opset},
            name="probe",
        )
        return ir.Model(graph, ir_version=8)


def probe(op_type: str, opset: int, *, float_output: bool = False) -> ir.Model:
    row = QUANTIZABLE.find("", op_type, opset)
    assert row is not None
    if row.role is Role.WEIGHTED:
        return _weighted_probe(op_type, opset, float_output=float_output)
    attributes, constants = FORMS[op_type]
    graph = Graph([1, 8, 6, 6])
    count = 2 if row.activations in {None, (0, 1)} else 1
    inputs: list[ir.Value | None] = [graph.on_grid(graph.input()) for _ in range(count)]
    if op_type in {"Squeeze", "Unsqueeze", "Split"} and opset < 13:
        attributes = {**attributes, "axes": [0]}
        constants = []
    inputs += [None if c is None else graph.constant(c) for c in constants]
    node = graph.node(op_type, inputs, 2 if op_type == "Split" else 1, **attributes)
    scale = 0.02 if row.role is Role.SHARED else 0.01
    return graph.model([graph.on_grid(v, scale) for v in node.outputs], opset)


def _weighted_probe(op_type: str, opset: int, *, float_output: bool) -> ir.Model:
    graph = Graph([1, 8, 6, 6] if op_type == "Conv" else [3, 8])
    shape, axis = ((4, 8, 3, 3), 0) if op_type == "Conv" else ((8, 4), 1)
    weight = graph.weight(np.ones(shape, np.int8), axis)
    inputs: list[ir.Value | None] = [graph.on_grid(graph.input()), weight]
    if op_type != "MatMul":
        inputs.append(graph.weight(np.ones(4, np.int32), 0))
    output = graph.node(op_type, inputs).outputs[0]
    return graph.model([output if float_output else graph.on_grid(output)], opset)


@pytest.mark.parametrize("op_type", sorted({entry.op_type for entry in QUANTIZABLE}))
def test_onnxruntime_fuses_what_the_table_says(op_type: str) -> None:
    row = QUANTIZABLE.find("", op_type, 17)
    assert row is not None
    found = optimised_ops(probe(op_type, 17))
    inputs = 2 if row.activations in {None, (0, 1)} else 1
    assert found.pop("QuantizeLinear") == inputs
    assert found.pop("DequantizeLinear") == (2 if op_type == "Split" else 1)
    assert found == {row.fused or op_type: 1}


@pytest.mark.parametrize("op_type", ["Gemm", "MatMul"])
def test_float_output_is_fused_where_the_table_says(op_type: str) -> None:
    found = optimised_ops(probe(op_type, 17, float_output=True))
    assert "DequantizeLinear" not in found
    assert "Conv" not in found
    assert op_type not in found


def test_conv_needs_an_integer_output() -> None:
    row = QUANTIZABLE.find("", "Conv", 17)
    assert row is not None
    assert not row.float_output
    assert "QLinearConv" not in optimised_ops(probe("Conv", 17, float_output=True))


def test_every_operator_has_a_form() -> None:
    assert {entry.op_type for entry in QUANTIZABLE} == set(FORMS)


@pytest.mark.parametrize("op_type", ["Sub", "Div", "Tanh", "ConvTranspose", "HardSwish", "Pad"])
def test_operators_that_are_not_fused_have_no_row(op_type: str) -> None:
    assert QUANTIZABLE.find("", op_type, 17) is None
