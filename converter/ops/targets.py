"""What the programs that run quantized models expect: one row of rules per target.

A row says where QuantizeLinear/DequantizeLinear pairs go, on which integer grids, and what is left
in float. ``ort-cpu`` follows what onnxruntime's CPU provider was observed to fuse
(:mod:`converter.execution.fusion_probe`); the other rows follow the documents of their makers and
are not measured here, so no estimate of speed is made for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.ops.quantizable import QUANTIZABLE, QuantizableOp, Role
from converter.ops.table import Entry, Table

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Target:
    """Rules of one target.

    Attributes:
        name: As users write it.
        label: For people.
        activations: Types that activations may have; the first is the default.
        table: What runs on integers there.
        centred: Grids of activations have zero points of 0.
        inputs_only: Only what goes into a product is rounded. The compiler of the target decides
            itself how far integers reach, and fuses activations, biases and residual sums in float.
        residual: The operand of a sum that is on a grid anyway is read from it.
        everything: Operators without weights follow although nobody reads their integers.
        priced: :mod:`converter.ops.integer_cost` holds for it.
    """

    name: str
    label: str
    activations: tuple[str, ...] = ("uint8", "int8")
    table: Table[QuantizableOp] = QUANTIZABLE
    centred: bool = False
    inputs_only: bool = False
    residual: bool = False
    everything: bool = False
    priced: bool = False


def _ungrouped(node: ir.Node) -> bool:
    """With groups, the second axis of the weight holds the channels of one group only."""
    return node.attributes.get_int("group", 1) == 1


def _second_axis(_: ir.Node) -> int:
    return 1


_TRANSPOSED = QuantizableOp(
    Role.WEIGHTED,
    weight=1,
    channel_axis=_second_axis,
    weight_ranks=(3, 4, 5),
    bias=2,
    accepts=_ungrouped,
)
_UNARY = QuantizableOp(Role.GRID)
_BINARY = QuantizableOp(Role.GRID, activations=(0, 1), constant_input=True)
_PRODUCTS = ("Conv", "Gemm", "MatMul")

COMPILED: Table[QuantizableOp] = Table(
    "quantizable by compilers",
    (
        *(e for e in QUANTIZABLE if e.op_type in {*_PRODUCTS, "Add"}),
        Entry("ConvTranspose", _TRANSPOSED, since=10),
    ),
)
"""Products, and the sum that a residual operand goes into."""

_WHOLE_UNARY = (
    "Tanh", "HardSwish", "HardSigmoid", "Elu", "Gelu", "Relu", "Clip", "ReduceMean", "ReduceMax",
    "ReduceMin", "Pad", "Sqrt", "Abs", "Neg", "Exp", "Log", "GlobalMaxPool", "Softplus",
)  # fmt: skip
_KNOWN_RANGE = {"Softmax": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Tanh": (-1.0, 1.0)}
WHOLE: Table[QuantizableOp] = Table(
    "quantizable on processors without float",
    (
        *QUANTIZABLE,
        Entry("ConvTranspose", _TRANSPOSED, since=10),
        *(Entry(name, _BINARY, since=10) for name in ("Sub", "Div", "Max", "Min")),
        *(
            Entry(name, QuantizableOp(Role.GRID, output_range=_KNOWN_RANGE.get(name)), since=10)
            for name in (*_WHOLE_UNARY, "Softmax")
        ),
    ),
)
"""Everything that an integer-only processor has a kernel for."""

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "ort-cpu",
            "onnxruntime on the CPU",
            activations=("uint8", "int8", "uint16", "int16"),
            priced=True,
        ),
        Target(
            "ort-cuda",
            "onnxruntime on NVIDIA GPUs",
            activations=("int8",),
            table=COMPILED,
            centred=True,
            inputs_only=True,
            residual=True,
        ),
        Target(
            "tensorrt",
            "TensorRT",
            activations=("int8",),
            table=COMPILED,
            centred=True,
            inputs_only=True,
            residual=True,
        ),
        Target(
            "qnn",
            "Qualcomm processors (QNN)",
            activations=("uint8", "uint16"),
            table=WHOLE,
            everything=True,
        ),
        Target("openvino", "OpenVINO", table=COMPILED, inputs_only=True),
    )
}
ORT_CPU = TARGETS["ort-cpu"]
FUSED_TYPES = ("uint8", "int8")
"""Types of activations that onnxruntime's CPU provider has integer kernels for."""
