"""Weights as integers inside onnxruntime's own operator MatMulNBits, at any opset."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from passes.encoding.build import Builder, drop
from passes.encoding.codes import Codes
from passes.encoding.weights import Weight

Array = np.ndarray[Any, Any]

_DOMAIN = "com.microsoft"
_LEVEL = 4
"""Products of 8-bit activations; any other level is slow at 2 and 8 bits."""


def write_nbits(build: Builder, model: ir.Model, weight: Weight, codes: Codes) -> None:
    """Replace every product with the weight; blocks are powers of two from 16 on.

    A Gemm becomes a product and an Add.
    """
    rows, columns = codes.integers.shape
    model.graph.opset_imports.setdefault(_DOMAIN, 1)
    blocks = codes.scales.shape[1]
    stored = build.constant(f"{weight.name}_quantized", _blobs(codes))
    scales = build.constant(f"{weight.name}_scale", codes.scales.reshape(-1).astype(np.float32))
    inputs = [stored, scales]
    if codes.zeros is not None:
        per_byte = 8 // codes.bits
        padded = np.pad(codes.zeros, ((0, 0), (0, -blocks % per_byte)))
        zeros = _interleaved(padded, codes.bits)
        inputs.append(build.constant(f"{weight.name}_zero_point", zeros.reshape(-1)))
    attributes = {
        "K": columns,
        "N": rows,
        "bits": codes.bits,
        "block_size": codes.block,
        "accuracy_level": _LEVEL,
    }
    for node in {use.node: None for use in weight.value.uses()}:
        _replace(build.before(node), node, inputs, attributes)
    drop(weight.value)


def _replace(
    build: Builder, node: ir.Node, inputs: list[ir.Value], attributes: dict[str, int]
) -> None:
    x, output = node.inputs[0], node.outputs[0]
    assert x is not None
    assert node.graph is not None
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    name = output.name or "product"
    product = ir.Value(name=build.fresh(f"{name}_product"), type=output.type, shape=output.shape)
    build.place(
        ir.node(
            "MatMulNBits",
            [x, *inputs],
            attributes,
            domain=_DOMAIN,
            outputs=[product],
            name=build.fresh(f"{name}_MatMulNBits"),
        )
    )
    result = product
    if bias is not None:
        result = build.node("Add", [product, bias], ir.DataType.FLOAT)
        result.shape = output.shape
    g.redirect(output, result)
    node.graph.remove(node, safe=True)


def _blobs(codes: Codes) -> Array:
    """Return uint8 (rows, blocks, bytes); the last block is filled with zeros' integers."""
    middle = 2 ** (codes.bits - 1)
    unsigned = codes.integers + (middle if codes.zeros is None else 0)
    rows, columns = unsigned.shape
    spare = -columns % codes.block
    padded = np.pad(unsigned, ((0, 0), (0, spare)), constant_values=middle)
    return _interleaved(padded.reshape(rows, -1, codes.block), codes.bits)


def _interleaved(integers: Array, bits: int) -> Array:
    """Pack neighbours into one byte, the first one lowest."""
    per_byte = 8 // bits
    parts = integers.astype(np.uint8).reshape(*integers.shape[:-1], -1, per_byte)
    packed = np.zeros(parts.shape[:-1], np.uint8)
    for position in range(per_byte):
        packed |= parts[..., position] << np.uint8(position * bits)
    return packed
