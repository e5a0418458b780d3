"""MatMul of two matrices as Gemm: with what is added, with transposed operands, with a factor."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converter.core.graph import is_op
from passes.fusion.layer import FLOATS
from passes.rewriting.facts import Dims
from passes.rewriting.substitute import Found, New, Substitution

_BIAS_MAY_MISS = 11  # operator set from which on Gemm needs no bias
_BROADCASTS = 7


def _matrices(found: Found) -> str | None:
    """Return why the product is not certain to be one of two float matrices."""
    for name in ("a", "b"):
        dims = found.dims(name)
        if dims is None:
            return f"{found[name].name} is not certain to have two axes"
        if len(dims) != 2:
            return ""
        if is_op(found[name].producer(), "DequantizeLinear"):
            return "it reads quantized values; runtimes look for MatMul there"
    return None if found.dtype("a") in FLOATS else "Gemm is for floating point"


def _addable(found: Found) -> str | None:
    """Return why ``c`` is not certain to fit Gemm, where only it may be broadcast."""
    reason = _matrices(found)
    if reason is not None:
        return reason
    added, a, b = found.dims("c"), found.dims("a"), found.dims("b")
    if added is None or a is None or b is None:
        return "the shape of what is added is not certain"
    if not _spreads(added, (a[0], b[1])):
        return "what is added may have more rows or columns than the product"
    return None


def _spreads(dims: Dims, target: Dims) -> bool:
    """Tell whether dimensions are certain to be broadcast to the target, and not the reverse."""
    if len(dims) > len(target):
        return False
    pairs = zip(reversed(dims), reversed(target), strict=False)
    return all(size == 1 or size is wanted or size == wanted for size, wanted in pairs)


def _add(found: Found) -> New:
    return New("Gemm", (found["a"], found["b"], found["c"]))


MATMUL_ADD = Substitution(
    name="gemms_fused",
    patterns=("Add(MatMul(a, b), c)",),
    rewrite=_add,
    check=_addable,
    since=_BROADCASTS,
    tolerance="float rounding of one operator: relative 1e-6 for float32",
)


def _gemm_addable(found: Found) -> str | None:
    """The same for a Gemm without bias, whose operands may be transposed."""
    a, b, added = found.dims("a"), found.dims("b"), found.dims("c")
    if added is None or a is None or b is None or len(a) != 2 or len(b) != 2:
        return "the shape of what is added is not certain"
    rows = a[1] if found.attribute("g", "transA") else a[0]
    columns = b[0] if found.attribute("g", "transB") else b[1]
    if not _spreads(added, (rows, columns)):
        return "what is added may have more rows or columns than the product"
    return None


def _gemm_add(found: Found) -> New:
    kept = _given(found.node("g"), "alpha", "transA", "transB")
    return New("Gemm", (found["a"], found["b"], found["c"]), kept)


GEMM_ADD = Substitution(
    name="gemms_fused",
    patterns=("Add((g := Gemm(a, b)), c)",),
    rewrite=_gemm_add,
    check=_gemm_addable,
    since=_BIAS_MAY_MISS,
    tolerance="float rounding of one operator: relative 1e-6 for float32",
)


def _given(node: ir.Node, *names: str) -> dict[str, float | int]:
    """Return those attributes that the node has."""
    return {name: node.attributes[name].value for name in names if name in node.attributes}


def _factor(found: Found) -> float | None:
    """Return the factor that the root applies, if a float32 attribute can hold it."""
    number = found.number("S")
    if number is None or len(found.array("S").shape) > 2:
        return None
    with np.errstate(all="ignore"):
        factor = float(
            np.float32(number if found.root.op_type == "Mul" else 1 / np.float64(number))
        )
    limits = np.finfo(np.float32)
    return factor if float(limits.tiny) <= abs(factor) <= float(limits.max) else None


def _scalable(found: Found) -> str | None:
    if found.dtype("a") == ir.DataType.DOUBLE:
        return "the factor of Gemm has only single precision"
    if _factor(found) is None:
        return "the factor is not one number"
    return _matrices(found)


def _scale(found: Found) -> New | str:
    node, factor = found.node("g"), _factor(found)
    assert factor is not None
    kept = _given(node, "transA", "transB")
    if node.op_type == "MatMul":
        return New("Gemm", (found["a"], found["b"]), {"alpha": factor})
    for name in ("alpha", "beta"):
        new = float(np.float32(found.attribute("g", name) * factor))
        if not np.isfinite(new) or (new == 0) != (found.attribute("g", name) == 0):
            return "the factors of Gemm do not fit its attributes"
        kept |= {name: new} if name == "alpha" or "c" in found else {}
    return New("Gemm", tuple(found[n] for n in ("a", "b", "c") if n in found), kept)


GEMM_SCALED = Substitution(
    name="gemms_scaled",
    patterns=tuple(
        f"{root}((g := {inner}), S)"
        for root in ("Mul", "Div")
        for inner in ("MatMul(a, b)", "Gemm(a, b)", "Gemm(a, b, c)")
    ),
    rewrite=_scale,
    check=_scalable,
    since=_BIAS_MAY_MISS,
    tolerance="float rounding of one operator: relative 1e-6 for float32",
)


def _transposed(found: Found) -> New | str:
    """Let Gemm read a matrix as it lies."""
    root = found.root
    flags = {"transA": 0, "transB": 0}
    if root.op_type == "Gemm":
        flags |= {name: int(found.attribute("g", name)) for name in flags}
    for name, kind in (("transA", "left"), ("transB", "right")):
        if kind in found.match.nodes:
            flags[name] ^= 1
    kept = _given(root, "alpha", "beta") if root.op_type == "Gemm" else {}
    inputs = tuple(found[n] for n in ("a", "b", "c") if n in found)
    return New("Gemm", inputs, kept | {name: 1 for name, flag in flags.items() if flag})


def _turned(found: Found) -> str | None:
    for node in found.match.inner:
        order = node.attributes.get("perm")
        if order is not None and tuple(order.as_ints()) != (1, 0):
            return ""
    return _matrices(found)


_LEFT = "(left := Transpose(a))"
_RIGHT = "(right := Transpose(b))"
GEMM_TRANSPOSED = Substitution(
    name="transposes_into_gemm",
    patterns=tuple(
        f"(g := {root}({left}, {right}{rest}))"
        for root, rest in (("MatMul", ""), ("Gemm", ""), ("Gemm", ", c"))
        for left, right in ((_LEFT, _RIGHT), (_LEFT, "b"), ("a", _RIGHT))
    ),
    rewrite=_transposed,
    check=_turned,
    since=_BIAS_MAY_MISS,
    tolerance="float rounding of one operator: relative 1e-6 for float32",
)


RULES = tuple(rule.rule() for rule in (MATMUL_ADD, GEMM_ADD, GEMM_SCALED, GEMM_TRANSPOSED))
