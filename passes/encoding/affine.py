"""Weights as integers and scales in the file, as a float tensor or a fused product at run time.

============ ====================================================== ==============================
form          nodes in front of the operator                         what onnxruntime makes of it
============ ====================================================== ==============================
cast          Cast, (Sub), Mul, (Reshape)                            a float constant, at load
packed        Cast, Mul, Floor, Sub, Concat, Reshape, (Sub), Mul     a float constant, at load
dequantize    (Cast of the scales), DequantizeLinear                 MatMulNBits on the integers
lookup        Gather of integers and of scales, Cast, (Sub), Mul     itself: the table stays small
============ ====================================================== ==============================

A DequantizeLinear in front of Conv is not fused and keeps the convolution off its fast layout, so
it is used for matrix products alone.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from passes.encoding.build import Builder, drop, replace
from passes.encoding.codes import Codes
from passes.encoding.packed import pack, unpack
from passes.encoding.weights import View, Weight

Array = np.ndarray[Any, Any]

_SIGNED = {8: np.dtype(np.int8), 4: np.dtype(ml_dtypes.int4)}
_UNSIGNED = {8: np.dtype(np.uint8), 4: np.dtype(ml_dtypes.uint4)}


def write_cast(build: Builder, weight: Weight, codes: Codes) -> None:
    """Store integers of 4 or 8 bits with Cast and Mul; 4 bits need opset 21.

    The blocks of ``codes`` divide the columns evenly.
    """
    kind = weight.tensor.dtype
    cube = _blocked(weight.view, codes.integers, codes.block)
    stored = _small(build, f"{weight.name}_quantized", cube, codes)
    steps = build.node("Cast", [stored], kind, {"to": int(kind)})
    if codes.zeros is not None:
        zeros = _small(build, f"{weight.name}_zero_point", _per_block(weight, codes.zeros), codes)
        shift = build.node("Cast", [zeros], kind, {"to": int(kind)})
        steps = build.node("Sub", [steps, shift], kind)
    _finish(build, weight, steps, codes)


def write_packed(build: Builder, weight: Weight, codes: Codes) -> None:
    """Store integers of 2, 4 or 8 bits in bytes with operators of opset 7 alone.

    The blocks of ``codes`` divide the columns evenly. Zero points lie behind the integers.
    """
    kind = weight.tensor.dtype
    cube = _blocked(weight.view, codes.integers - codes.low, codes.block)
    if codes.zeros is None:
        steps = _unpacked(build, weight.name, [cube], codes.bits, kind)[0]
        steps = build.node("Add", [steps, build.scalar(float(codes.low), kind)], kind)
    else:
        both = [cube, _per_block(weight, codes.zeros)]
        steps, shift = _unpacked(build, weight.name, both, codes.bits, kind)
        steps = build.node("Sub", [steps, shift], kind)
    _finish(build, weight, steps, codes)


def write_dequantize(build: Builder, weight: Weight, codes: Codes) -> None:
    """Store integers of 4 or 8 bits with DequantizeLinear, for right-hand matrices of products.

    Blocks need opset 21, one scale per channel opset 13 (8 bits) or 21 (4 bits). A Gemm that
    transposes its weight gets it transposed: only then it is fused.
    """
    view = weight.view
    if view.inner == 1:  # (channels, summed), read by Gemm with transB
        for node in {use.node for use in weight.value.uses()}:
            node.attributes["transB"] = ir.AttrInt64("transB", 0)
    matrix = codes.integers.T
    per_channel = codes.scales.shape[1] == 1
    integers = _small(build, f"{weight.name}_quantized", matrix, codes)
    scales = codes.scales[:, 0] if per_channel else codes.scales.T
    inputs = [integers, _scales(build, weight, scales, codes.half)]
    if codes.zeros is not None:
        zeros = codes.zeros[:, 0] if per_channel else codes.zeros.T
        inputs.append(_small(build, f"{weight.name}_zero_point", zeros, codes))
    attributes = {"axis": 1} if per_channel else {"axis": 0, "block_size": codes.block}
    name, kind = f"{weight.name}_dequantized", weight.tensor.dtype
    result = build.node("DequantizeLinear", inputs, kind, attributes, name)
    replace(weight.value, result)
    result.shape = ir.Shape(matrix.shape)


def write_lookup(build: Builder, weight: Weight, codes: Codes) -> None:
    """Store a table whose rows are looked up as integers, and turn only those looked up to floats.

    ``codes`` has one scale per row and no zero points. 4 bits need opset 11 and an even last axis.
    """
    shape = weight.shape
    if codes.bits == 8:
        table = codes.integers.astype(np.int8).reshape(shape)
    else:
        table = pack((codes.integers - codes.low).reshape(shape), codes.bits)
    stored = build.constant(f"{weight.name}_quantized", table)
    per_row = codes.scales.reshape(-1, *[1] * (len(shape) - 1))
    scales = build.constant(f"{weight.name}_scale", _stored_scales(weight, per_row, codes.half))
    for use in list(weight.value.uses()):
        _look_up(build.before(use.node), use.node, (stored, scales), codes, weight.tensor.dtype)
    drop(weight.value)


def _look_up(
    build: Builder,
    node: ir.Node,
    table: tuple[ir.Value, ir.Value],
    codes: Codes,
    kind: ir.DataType,
) -> None:
    """Replace one Gather; its output keeps its name."""
    integers, scales = table
    indices, output = node.inputs[1], node.outputs[0]
    assert indices is not None
    assert node.graph is not None
    axis = {"axis": 0}
    rows = build.node("Gather", [integers, indices], integers.dtype or kind, axis)
    if codes.bits == 8:
        steps = build.node("Cast", [rows], kind, {"to": int(kind)})
    else:
        unsigned = unpack(build, rows, codes.bits, kind)
        middle = build.scalar(float(codes.low), kind)
        steps = build.node("Add", [unsigned, middle], kind)
    scale = build.node("Gather", [scales, indices], scales.dtype or kind, axis)
    if scales.dtype != kind:
        scale = build.node("Cast", [scale], kind, {"to": int(kind)})
    result = build.node("Mul", [steps, scale], kind)
    result.shape = output.shape
    g.redirect(output, result)
    node.graph.remove(node, safe=True)


def _blocked(view: View, integers: Array, block: int) -> Array:
    """Return (outer, blocks, block, inner)."""
    return view.to_cube(integers).reshape(view.outer, -1, block, view.inner)


def _per_block(weight: Weight, figures: Array) -> Array:
    """Return figures (rows, blocks) as (outer, blocks, 1, inner), to be broadcast."""
    return weight.view.to_cube(figures)[:, :, None]


def _finish(build: Builder, weight: Weight, steps: ir.Value, codes: Codes) -> None:
    """Multiply by the scales and give the result the shape of the weight."""
    kind = weight.tensor.dtype
    scales = _scales(build, weight, _per_block(weight, codes.scales), codes.half)
    product = build.node("Mul", [steps, scales], kind)
    shape = build.sizes(weight.shape)
    decoded = build.node("Reshape", [product, shape], kind, name=f"{weight.name}_decoded")
    replace(weight.value, decoded)


def _scales(build: Builder, weight: Weight, scales: Array, half: bool) -> ir.Value:  # noqa: FBT001
    """Add the scales; float16 ones of a float32 weight come through a Cast, folded at load."""
    stored = build.constant(f"{weight.name}_scale", _stored_scales(weight, scales, half))
    kind = weight.tensor.dtype
    if stored.dtype == kind:
        return stored
    return build.node("Cast", [stored], kind, {"to": int(kind)})


def _stored_scales(weight: Weight, scales: Array, half: bool) -> Array:  # noqa: FBT001
    kind = np.float16 if half or not weight.single else np.float32
    return np.ascontiguousarray(scales.astype(kind))


def _small(build: Builder, name: str, integers: Array, codes: Codes) -> ir.Value:
    """Add integers of the codes' width, signed where there are no zero points."""
    kind = (_SIGNED if codes.zeros is None else _UNSIGNED)[codes.bits]
    whole = np.ascontiguousarray(integers.astype(np.int8 if codes.zeros is None else np.uint8))
    return build.constant(name, whole.astype(kind))


def _unpacked(
    build: Builder, name: str, cubes: list[Array], bits: int, kind: ir.DataType
) -> list[ir.Value]:
    """Add unsigned integers in one string of bytes and the nodes that make them tensors again."""
    flat = np.concatenate([cube.reshape(-1) for cube in cubes])
    spare = -flat.size % (8 // bits)
    packed = build.constant(f"{name}_packed", pack(np.pad(flat, (0, spare)), bits))
    codes = unpack(build, packed, bits, kind)
    found, start = [], 0
    for cube in cubes:
        whole = cube.size == flat.size + spare
        part = codes if whole else build.part(codes, start, start + cube.size, kind)
        found.append(build.node("Reshape", [part, build.sizes(cube.shape)], kind))
        start += cube.size
    return found
