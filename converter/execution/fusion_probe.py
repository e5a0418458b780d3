"""Facts about integers in onnxruntime, observed: each row of the table on a graph of its own.

Every row of :data:`converter.ops.quantizable.QUANTIZABLE` states what onnxruntime makes of an
operator between conversions. :func:`deviations` builds that graph for each row, opens it in the
installed onnxruntime, and reads the graph that it would run: a version that fuses differently is
noticed before users are. Facts on which the placement relies beside the rows (operators that are
not fused, types that are not) are probed in the same way.
"""

from __future__ import annotations

import collections
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converter.execution.session import Session
from converter.ops.quantizable import QUANTIZABLE, QuantizableOp, Role

OPSET, WIDE_OPSET = 17, 21
"""Versions of the probes; 16-bit integers need the second."""
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
_SHAPE = (1, 8, 6, 6)
_STEP = 0.01
_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Form:
    """What makes an operator valid on a float tensor of shape (1, 8, 6, 6).

    Attributes:
        attributes: Of the node.
        constants: Inputs after the activations; None: left out.
        before: Inputs before the activations, in bool.
        outputs: Number of outputs.
    """

    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: tuple[_Array | None, ...] = ()
    before: int = 0
    outputs: int = 1


FORMS: dict[str, Form] = {
    "Conv": Form(),
    "Gemm": Form(),
    "MatMul": Form(),
    "Concat": Form({"axis": 1}),
    "AveragePool": Form({"kernel_shape": [2, 2]}),
    "LeakyRelu": Form({"alpha": 0.1}),
    "MaxPool": Form({"kernel_shape": [2, 2]}),
    "Resize": Form({"mode": "nearest"}, (None, np.array([1, 1, 2, 2], np.float32))),
    "Reshape": Form(constants=(np.array([1, -1]),)),
    "Transpose": Form({"perm": [0, 2, 3, 1]}),
    "Squeeze": Form(constants=(np.array([0]),)),
    "Unsqueeze": Form(constants=(np.array([0]),)),
    "Slice": Form(constants=(np.array([0]), np.array([4]), np.array([1]))),
    "Gather": Form({"axis": 1}, (np.array([0, 3]),)),
    "Expand": Form(constants=(np.array([2, 8, 6, 6]),)),
    "Tile": Form(constants=(np.array([2, 1, 1, 1]),)),
    "DepthToSpace": Form({"blocksize": 2}),
    "Split": Form({"axis": 1}, (np.array([3, 5]),), outputs=2),
    "Where": Form(before=1),
    "Pad": Form(constants=(np.array([0, 0, 1, 1, 0, 0, 1, 1]),)),
    "ReduceMean": Form({"axes": [2, 3]}),
    "ConvTranspose": Form(),
}
"""Operators that need no form of their own are missing."""

NOT_FUSED = (
    "Sub", "Div", "Tanh", "HardSwish", "HardSigmoid", "Pad", "ReduceMean", "ConvTranspose", "Elu",
)  # fmt: skip
"""Operators without a row, because conversions stay around them."""


@dataclass(frozen=True)
class Probe:
    """A graph and what onnxruntime should make of it.

    Attributes:
        name: What is probed, for people.
        model: The graph.
        fused: Operators that must be there, beside the conversions at the borders.
        conversions: Number of QuantizeLinear and of DequantizeLinear that may stay; None: any.
        absent: Operators that must not be there.
    """

    name: str
    model: onnx.ModelProto
    fused: tuple[str, ...] = ()
    conversions: tuple[int, int] | None = None
    absent: tuple[str, ...] = ()


class _Graph:
    """Builds one probe."""

    def __init__(self, kind: str = "uint8") -> None:
        self.kind = np.dtype(kind)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.constants: list[onnx.TensorProto] = []

    def input(self, shape: Sequence[int], kind: int = TensorProto.FLOAT) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, inputs: Sequence[str], count: int = 1, **a: Any) -> list[str]:
        names = [f"v{len(self.nodes)}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(op, inputs, names, **a))
        return names

    def on_grid(self, value: str, scale: float = 2 * _STEP, zero: int | None = None) -> str:
        limits = np.iinfo(self.kind)
        middle = (int(limits.min) + int(limits.max) + 1) // 2 if zero is None else zero
        grid = [self.constant(np.float32(scale)), self.constant(np.asarray(middle, self.kind))]
        (integers,) = self.node("QuantizeLinear", [value, *grid])
        return self.node("DequantizeLinear", [integers, *grid])[0]

    def weight(self, array: _Array, axis: int) -> str:
        bias = array.dtype == np.int32
        # A bias lies on the product of both other grids, else onnxruntime does not fuse.
        step = np.float32(2 * _STEP) * np.float32(_STEP) if bias else np.float32(_STEP)
        scale = np.full(array.shape[axis], step, np.float32)
        inputs = [self.constant(array), self.constant(scale)]
        if not bias:
            inputs.append(self.constant(np.zeros(scale.shape, np.int8)))
        return self.node("DequantizeLinear", inputs, axis=axis)[0]

    def model(self, outputs: Sequence[str], opset: int) -> onnx.ModelProto:
        ends = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, "probe", self.inputs, ends, self.constants)
        versions = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=versions, ir_version=10)


def operator_model(
    op_type: str, row: QuantizableOp | None, opset: int = OPSET, kind: str = "uint8"
) -> onnx.ModelProto:
    """Return an operator between conversions of activations.

    Args:
        op_type: The operator; weighted ones get a constant int8 weight and an int32 bias.
        row: What the table says of it; None: one activation, or two where the operator needs them.
        opset: Version of the operator set.
        kind: Type of the integers.
    """
    if op_type in _WEIGHTS:
        return weighted_model(op_type, opset, kind)
    form, graph = FORMS.get(op_type, Form()), _Graph(kind)
    pair = op_type in {"Sub", "Div"} or (row is not None and _activations(row) == 2)
    inputs = [graph.input(_SHAPE, TensorProto.BOOL) for _ in range(form.before)]
    inputs += [graph.on_grid(graph.input(_SHAPE)) for _ in range(2 if pair else 1)]
    inputs += ["" if c is None else graph.constant(c) for c in form.constants]
    made = graph.node(op_type, inputs, form.outputs, **form.attributes)
    same = row is not None and row.role is Role.SHARED
    return graph.model([graph.on_grid(v, 2 * _STEP if same else _STEP) for v in made], opset)


_WEIGHTS: dict[str, tuple[tuple[int, ...], int]] = {
    "Conv": ((4, 8, 3, 3), 0),
    "ConvTranspose": ((8, 4, 3, 3), 1),
    "Gemm": ((8, 4), 1),
    "MatMul": ((8, 4), 1),
}
"""Shape of the weight in a probe, and the axis of its channels."""


def weighted_model(
    op_type: str,
    opset: int = OPSET,
    kind: str = "uint8",
    *,
    rounded: bool = True,
    between: str = "",
    zero: int | None = None,
) -> onnx.ModelProto:
    """Return an operator with an int8 weight on an activation that lies on a grid.

    Args:
        op_type: Key of the table of weights.
        opset: Version of the operator set.
        kind: Type of the integers.
        rounded: The result is rounded too; else it stays float.
        between: An activation between the operator and its rounding.
        zero: Zero point of the result; None: the middle.
    """
    graph, (shape, axis) = _Graph(kind), _WEIGHTS[op_type]
    x = graph.input(_SHAPE if len(shape) > 2 else (3, 8))
    inputs = [graph.on_grid(x), graph.weight(np.ones(shape, np.int8), axis)]
    if op_type != "MatMul":
        inputs.append(graph.weight(np.ones(4, np.int32), 0))
    (output,) = graph.node(op_type, inputs)
    if between:
        (output,) = graph.node(between, [output])
    return graph.model([graph.on_grid(output, _STEP, zero) if rounded else output], opset)


def _activations(row: QuantizableOp) -> int:
    return 2 if row.activations is None or len(row.activations) == 2 else 1


def probes() -> Iterator[Probe]:
    """Yield everything that the placement for ``ort-cpu`` relies on."""
    for op_type in sorted({entry.op_type for entry in QUANTIZABLE}):
        row = QUANTIZABLE.find("", op_type, OPSET)
        if row is None:
            continue
        form, name = FORMS.get(op_type, Form()), row.fused or op_type
        for kind in ("uint8", "int8"):
            model = operator_model(op_type, row, kind=kind)
            borders = (_activations(row), form.outputs)
            yield Probe(f"{op_type} on {kind}", model, (name,), borders)
        if row.float_output:
            model = weighted_model(op_type, rounded=False)
            yield Probe(f"{op_type} with float results", model, absent=(op_type,))
    yield from _refusals()


def _refusals() -> Iterator[Probe]:
    for op_type in NOT_FUSED:
        model = operator_model(op_type, None)
        # HardSwish becomes HardSigmoid and Mul, which are in float then.
        kept = () if op_type == "HardSwish" else (op_type,)
        yield Probe(f"{op_type} in float", model, kept)
    for kind in ("uint16", "int16"):
        model = weighted_model("Conv", WIDE_OPSET, kind)
        yield Probe(f"Conv on {kind} in float", model, ("Conv",), absent=("QLinearConv",))
    model = weighted_model("Conv", rounded=False)
    yield Probe("Conv with float results in float", model, absent=("QLinearConv",))
    model = weighted_model("Conv", between="Relu", zero=0)
    yield Probe("Conv, and Relu at the end of the grid", model, ("QLinearConv",), (1, 1), ("Relu",))
    model = weighted_model("Conv", between="Relu", zero=3)
    yield Probe("Conv, and Relu within the grid, in float", model, absent=("QLinearConv",))


def fused_operators(model: onnx.ModelProto) -> collections.Counter[str]:
    """Count the operators of the main graph that onnxruntime would run.

    Only for models of our own: the model is opened in this process.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "probe.onnx", Path(folder) / "optimized.onnx"
        onnx.save(model, str(source))
        Session(source, optimized=target)
        found = onnx.load(str(target), load_external_data=False)
        return collections.Counter(node.op_type for node in found.graph.node)


def deviations() -> dict[str, str]:
    """Return what the installed onnxruntime does otherwise, by the name of the probe."""
    found = {}
    for probe in probes():
        reason = _deviation(probe, fused_operators(probe.model))
        if reason:
            found[probe.name] = reason
    return found


def _deviation(probe: Probe, found: Mapping[str, int]) -> str:
    missing = [op for op in probe.fused if not found.get(op)]
    present = [op for op in probe.absent if found.get(op)]
    left = tuple(found.get(op, 0) for op in _CONVERSIONS)
    if not missing and not present and probe.conversions in {None, left}:
        return ""
    shown = ", ".join(f"{count} {op}" for op, count in sorted(found.items()))
    return f"onnxruntime runs {shown}"
