"""What operators cost in float and on 8-bit integers: a small formula per kernel of onnxruntime.

An operator's time is a sum of amounts (multiplications, elements written, ...) times rates in
nanoseconds. The amounts follow from how onnxruntime 1.31 computes: float convolutions in blocks of
16 channels, integer ones as a matrix product over gathered columns, channels last, so that few
channels or many groups cost more than their multiplications. The rates were measured by
``benchmarks/quantize_costs.py`` with one thread on a processor with AVX-512 VNNI, and are kept here
so that the same model gives the same placement on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_BLOCK = 16
_CACHE = 1 << 20
"""Bytes of a weight that stay near the processor between two runs."""

Amounts = Mapping[str, float]


@dataclass(frozen=True)
class Product:
    """Sizes of a convolution or matrix product.

    Attributes:
        rows: Output positions: batch times spatial size, or rows of the left matrix.
        inputs: Input channels, or columns of the left matrix.
        outputs: Output channels.
        taps: Positions of the kernel.
        groups: Groups of a convolution.
        planar: A convolution over two spatial axes.
    """

    rows: int
    inputs: int
    outputs: int
    taps: int = 1
    groups: int = 1
    planar: bool = True

    @property
    def inner(self) -> int:
        """Products per output element."""
        return self.inputs // self.groups * self.taps

    @property
    def depthwise(self) -> bool:
        """Every channel has a kernel of its own."""
        return self.groups == self.inputs == self.outputs and self.groups > 1


def _padded(channels: int) -> int:
    return math.ceil(channels / _BLOCK) * _BLOCK


def float_conv(p: Product) -> tuple[str, Amounts]:
    """Return the float kernel that runs a convolution, and its amounts."""
    out = p.rows * _padded(p.outputs)
    if p.planar and p.depthwise:
        return "depthwise", {"node": 1, "mac": p.taps * out, "out": out}
    if p.planar and p.groups == 1 and p.inputs < _BLOCK:
        # Reads plain channels, so what comes before has to undo its blocks.
        return "direct", {"node": 1, "mac": p.inner * out, "in": p.rows * p.inputs}
    whole = p.inputs // p.groups % _BLOCK == 0 == p.outputs // p.groups % _BLOCK
    if p.planar and (p.inputs % 4 == 0 if p.groups == 1 else whole):
        inner = _padded(p.inputs) // p.groups * p.taps
        return "blocked", {"node": 1, "mac": inner * out, "out": out}
    macs = p.rows * p.inner * p.outputs
    columns = p.rows * p.inner * p.groups if p.taps > 1 else 0
    return "plain", {"node": 1, "mac": macs, "columns": columns, "out": p.rows * p.outputs}


def integer_conv(p: Product) -> tuple[str, Amounts]:
    """Return the integer kernel that runs a convolution, and its amounts."""
    ragged = p.rows if p.outputs // p.groups % _BLOCK else 0
    out = p.rows * p.outputs
    if p.depthwise:
        ragged = p.rows if p.outputs % _BLOCK else 0
        return "depthwise", {"node": 1, "row": p.rows, "mac": p.taps * out, "ragged": ragged}
    macs = p.rows * p.inner * _padded(p.outputs // p.groups) * p.groups
    gathers = p.rows * p.taps * p.groups if p.taps > 1 else 0
    amounts = {
        "node": 1.0,
        "mac": macs,
        "gather": gathers,
        "columns": p.rows * p.inner * p.groups if p.taps > 1 else 0,
        "out": out,
        "ragged": ragged * p.groups,
        "group": p.rows * p.groups if p.groups > 1 else 0,
    }
    return "columns", amounts


def matrix(p: Product, bytes_each: int) -> Amounts:
    """Return the amounts of a matrix product with a weight of 4 or 1 bytes per element."""
    weight = p.inputs * p.outputs
    return {
        "node": 1,
        "mac": p.rows * weight,
        "weight": weight,
        "cold": max(0.0, weight * bytes_each - _CACHE),
        "in": p.rows * p.inputs,
        "out": p.rows * p.outputs,
    }


def cost(kernel: str, amounts: Amounts) -> float:
    """Return nanoseconds for the amounts of one run of a kernel.

    Args:
        kernel: ``float:NAME`` or ``integer:NAME``, a key of :data:`RATES`.
        amounts: By the names in the kernel's row; others cost nothing.
    """
    rates = RATES[kernel]
    return sum(rates.get(name, 0.0) * amount for name, amount in amounts.items())


RATES: dict[str, dict[str, float]] = {
    "float:Add": {"element": 0.286, "node": 622.0},
    "float:AveragePool": {"element": 0.0219, "node": 411.0},
    "float:Concat": {"element": 0.0942, "node": 2140.0},
    "float:Gemm": {
        "cold": 0.0284,
        "in": 0.0549,
        "mac": 0.0167,
        "node": 243.0,
        "out": 0.0549,
        "weight": 0.0241,
    },
    "float:GlobalAveragePool": {"element": 0.156, "node": 1210.0},
    "float:LeakyRelu": {"element": 0.148},
    "float:MatMul": {
        "cold": 0.0325,
        "in": 0.00498,
        "mac": 0.0167,
        "node": 305.0,
        "out": 0.00498,
        "weight": 0.0238,
    },
    "float:MaxPool": {"element": 0.0238, "node": 280.0},
    "float:Mul": {"element": 0.297, "node": 685.0},
    "float:Resize": {"element": 0.73, "node": 971.0},
    "float:Sigmoid": {"element": 0.27},
    "float:Transpose": {"element": 0.183, "node": 1860.0},
    "float:blocked": {"mac": 0.0174, "node": 434.0, "out": 0.0137},
    "float:depthwise": {"mac": 0.0207, "node": 518.0, "out": 0.0711},
    "float:direct": {"in": 0.75, "mac": 0.0148, "node": 943.0},
    "float:layout": {"element": 0.144, "node": 614.0},
    "float:plain": {"columns": 0.162, "mac": 0.0187, "node": 1380.0, "out": 0.167},
    "integer:Add": {"element": 0.217, "node": 856.0},
    "integer:AveragePool": {"element": 0.678, "node": 1100.0},
    "integer:Concat": {"element": 0.0892, "node": 2720.0},
    "integer:DequantizeLinear": {"element": 0.108, "node": 417.0},
    "integer:Gemm": {
        "cold": 0.0548,
        "in": 0.168,
        "mac": 0.00425,
        "node": 920.0,
        "out": 0.168,
        "weight": 0.0249,
    },
    "integer:GlobalAveragePool": {"element": 0.0385, "node": 741.0},
    "integer:LeakyRelu": {"element": 0.231, "node": 244.0},
    "integer:MatMul": {
        "cold": 0.0622,
        "in": 0.105,
        "mac": 0.00446,
        "node": 786.0,
        "out": 0.105,
        "weight": 0.0117,
    },
    "integer:MaxPool": {"element": 0.031, "node": 999.0},
    "integer:Mul": {"element": 0.286, "node": 853.0},
    "integer:QuantizeLinear": {"element": 0.113, "node": 484.0},
    "integer:Resize": {"element": 0.892, "node": 1450.0},
    "integer:Sigmoid": {"element": 0.225, "node": 239.0},
    "integer:Transpose": {"element": 0.125, "node": 503.0},
    "integer:columns": {
        "gather": 1.52,
        "group": 20.4,
        "mac": 0.00421,
        "node": 762.0,
        "out": 0.0729,
        "ragged": 4.02,
    },
    "integer:depthwise": {"mac": 0.0399, "node": 1010.0, "ragged": 10.7, "row": 4.51},
    "integer:layout": {"element": 0.107, "node": 872.0},
}
