"""``fuse``: MatMul of two matrices as Gemm, and when it is not certain to be one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from exact import apply, check
from placed import PLACES, TYPES, Case, check_typed, nodes, place, weight
from support import model_from_text

from passes import Fuse

LAYER = {"w": weight(4, 6), "b": weight(6)}
HITS = {
    "bias": Case("N,4", "c = MatMul (x, w) y = Add (c, b)", ["Gemm"], LAYER),
    "bias first": Case("N,4", "c = MatMul (x, w) y = Add (b, c)", ["Gemm"], LAYER),
    "one number": Case(
        "N,4", "c = MatMul (x, w) y = Add (c, b)", ["Gemm"], {"w": weight(4, 6), "b": np.array(0.5)}
    ),
    "what is added is computed": Case(
        "N,4",
        "r = Relu (x) a = MatMul (r, w) c = MatMul (x, w) y = Add (c, a)",
        ["Relu", "MatMul", "Gemm"],
        {"w": weight(4, 6)},
    ),
    "shared weight, factor": Case(
        "N,4",
        "r = Relu (x) a = MatMul (r, w) c = MatMul (x, w) d = Div (c, s) y = Sub (d, a)",
        ["Relu", "MatMul", "Gemm", "Sub"],
        {"w": weight(4, 6), "s": np.array(8.0)},
    ),
    "product of activations, transposed and scaled": Case(
        "N,4",
        "r = Relu (x) t = Transpose <perm = [1, 0]> (r) c = MatMul (x, t) y = Mul (c, s)",
        ["Relu", "Gemm"],
        {"s": np.array(0.125)},
    ),
    "both sides transposed": Case(
        "5,5",
        """r = Relu (x) t = Transpose (r) u = Transpose (x) y = Gemm <transB = 1, alpha = 0.5>
        (u, t, b)""",
        ["Relu", "Gemm"],
        {"b": weight(5)},
    ),
    "gemm without bias": Case(
        "N,4",
        "r = Relu (x) c = Gemm <transB = 1> (x, r) y = Add (c, s)",
        ["Relu", "Gemm"],
        {"s": np.array([[0.5]])},
    ),
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", HITS)
def test_becomes_gemm(name: str, kind: str, where: str) -> None:
    case = HITS[name]
    model = place(case.model(kind), where)
    check_typed(Fuse(), model, kind)
    if where != "function":
        # The factor of Gemm is a float32, which is not enough beside double.
        scaled = kind == "double" and "s" in case.constants and "Add" not in case.body
        assert (nodes(model) == case.after) != scaled


MISSES = {
    "three axes": ("2,N,4", "c = MatMul (x, w) y = Add (c, b)", LAYER, ""),
    "a bias that enlarges the product": (
        "1,4",
        "c = MatMul (x, w) y = Add (c, b)",
        {"w": weight(4, 6), "b": weight(3, 6)},
        "more rows",
    ),
    "a bias of unknown height": (
        "N,4",
        "c = MatMul (x, w) y = Add (c, b)",
        {"w": weight(4, 6), "b": weight(3, 6)},
        "more rows",
    ),
    "a bias of more axes": (
        "N,4",
        "c = MatMul (x, w) y = Add (c, b)",
        {"w": weight(4, 6), "b": weight(1, 1, 6)},
        "more rows",
    ),
    "the product added to itself": (
        "N,4",
        "c = MatMul (x, w) y = Add (c, c)",
        {"w": weight(4, 6)},
        "needed by what would replace it",
    ),
    "product used elsewhere": (
        "N,4",
        "c = MatMul (x, w) d = Add (c, b) y = Mul (c, d)",
        LAYER,
        "used elsewhere",
    ),
}


@pytest.mark.parametrize("name", MISSES)
def test_stays(name: str) -> None:
    shape, body, constants, reason = MISSES[name]
    model = Case(shape, body, [], constants).model("float")
    outcome = (check if "3" not in name and "unknown" not in name else apply)(Fuse(), model)
    assert not outcome.modified
    found = [skip.reason for skip in outcome.skipped]
    assert any(reason in text for text in found) if reason else found == []


def test_integers_and_old_models_stay() -> None:
    text = "g ({0}[N,4] x) => ({0}[N,6] y) {{ c = MatMul (x, w) y = Add (c, b) }}"
    model = model_from_text(
        text.format("int32"), w=np.ones((4, 6), np.int32), b=np.arange(6, dtype=np.int32)
    )
    assert not check(Fuse(), model).modified
    made = {name: array.astype(np.float32) for name, array in LAYER.items()}
    assert not apply(Fuse(), model_from_text(text.format("float"), opset=6, **made)).modified


def test_quantized_values_are_left_to_the_runtime() -> None:
    text = """g (uint8[N,4] q) => (float[N,6] y) {
        x = DequantizeLinear (q, s) c = MatMul (x, w) y = Add (c, b) }"""
    made = {name: array.astype(np.float32) for name, array in LAYER.items()}
    model = model_from_text(text, s=np.array(0.1, np.float32), **made)
    outcome = check(Fuse(), model)
    assert not outcome.modified
    assert any("quantized" in skip.reason for skip in outcome.skipped)


def test_names_and_notes_survive() -> None:
    model = Case("N,4", "c = MatMul (x, w) y = Add (c, b)", [], LAYER).model("float")
    add = model.graph[1]
    add.name, add.doc_string = "dense/add", "of the last block"
    add.metadata_props["layer"] = "7"
    apply(Fuse(), model)
    (gemm,) = list(model.graph)
    assert (gemm.op_type, gemm.name, gemm.doc_string) == ("Gemm", "dense/add", "of the last block")
    assert gemm.metadata_props == {"layer": "7"}
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert isinstance(gemm.inputs[1], ir.Value)
    assert gemm.inputs[1].name == "w"
