"""``fuse``: two linear layers as one where it pays, and zeros of Pad into the layer after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from exact import apply, check
from placed import PLACES, TOLERANCES, TYPES, Case, check_typed, nodes, place, weight
from support import model_from_text

from passes import Fuse

PAIRS = {
    "conv, then pointwise": Case(
        "N,4,7,7",
        "c = Conv <pads = [1,1,1,1], strides = [2,2], dilations = [2,2]> (x, w, b) y = Conv (c, v)",
        ["Conv"],
        {"w": weight(16, 4, 3, 3), "b": weight(16), "v": weight(3, 16, 1, 1)},
    ),
    "pointwise, then padded conv": Case(
        "N,8,7,7",
        "c = Conv (x, w) y = Conv <pads = [1,1,1,1], strides = [2,2]> (c, v, b)",
        ["Conv"],
        {"w": weight(16, 8, 1, 1), "v": weight(4, 16, 3, 3), "b": weight(4)},
    ),
    "pointwise with a bias, then conv": Case(
        "N,8,7,7",
        "c = Conv (x, w, b) y = Conv (c, v)",
        ["Conv"],
        {"w": weight(16, 8, 1, 1), "v": weight(4, 16, 3, 3), "b": weight(16)},
    ),
    "matmul twice": Case(
        "2,N,4",
        "c = MatMul (x, w) y = MatMul (c, v)",
        ["MatMul"],
        {"w": weight(4, 16), "v": weight(16, 3)},
    ),
    "gemm twice": Case(
        "4,N",
        """c = Gemm <transA = 1, alpha = 0.5, beta = 2.0> (x, w, b)
        y = Gemm <transB = 1, alpha = 1.5> (c, v, d)""",
        ["Gemm"],
        {"w": weight(4, 16), "b": weight(16), "v": weight(3, 16), "d": weight(3)},
    ),
    "matmul, then gemm": Case(
        "N,4",
        "c = MatMul (x, w) y = Gemm <transB = 1> (c, v, d)",
        ["Gemm"],
        {"w": weight(4, 16), "v": weight(3, 16), "d": weight(3)},
    ),
    "gemm, then matmul": Case(
        "N,4",
        "c = Gemm <transB = 1> (x, w, b) y = MatMul (c, v)",
        ["Gemm"],
        {"w": weight(16, 4), "b": weight(16), "v": weight(16, 3)},
    ),
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", PAIRS)
def test_two_layers_become_one(name: str, kind: str, where: str) -> None:
    model = place(PAIRS[name].model(kind), where)
    check_typed(Fuse(), model, kind)
    assert nodes(model) == PAIRS[name].after


APART: dict[str, tuple[Case, str]] = {
    "a bottleneck": (
        Case(
            "N,16",
            "c = MatMul (x, w) y = MatMul (c, v)",
            [],
            {"w": weight(16, 2), "v": weight(2, 16)},
        ),
        "more weights",
    ),
    "an activation in between": (
        Case(
            "N,4",
            "c = MatMul (x, w) r = Relu (c) y = MatMul (r, v)",
            [],
            {"w": weight(4, 16), "v": weight(16, 3)},
        ),
        "",
    ),
    "a bias that padding does not get": (
        Case(
            "N,8,7,7",
            "c = Conv (x, w, b) y = Conv <pads = [1,1,1,1]> (c, v)",
            [],
            {"w": weight(16, 8, 1, 1), "v": weight(4, 16, 3, 3), "b": weight(16)},
        ),
        "do not pass",
    ),
    "pointwise with padding": (
        Case(
            "N,4,7,7",
            "c = Conv (x, w, b) y = Conv <pads = [1,1,1,1]> (c, v)",
            [],
            {"w": weight(16, 4, 3, 3), "b": weight(16), "v": weight(3, 16, 1, 1)},
        ),
        "",
    ),
    "groups": (
        Case(
            "N,4,7,7",
            "c = Conv <group = 2> (x, w) y = Conv (c, v)",
            [],
            {"w": weight(16, 2, 3, 3), "v": weight(3, 16, 1, 1)},
        ),
        "",
    ),
    "a weight of two": (
        Case(
            "2,N,4",
            """c = MatMul (x, w) d = MatMul (c, v) e = MatMul (x, w) f = MatMul (e, v)
            y = Add (d, f)""",
            [],
            {"w": weight(4, 16), "v": weight(16, 3)},
        ),
        "",
    ),
    "used between": (
        Case(
            "2,N,3",
            "c = MatMul (x, w) d = MatMul (c, v) e = ReduceMean (c) y = Add (d, e)",
            [],
            {"w": weight(3, 16), "v": weight(16, 3)},
        ),
        "used elsewhere",
    ),
}


@pytest.mark.parametrize("name", APART)
def test_two_layers_stay(name: str) -> None:
    case, reason = APART[name]
    model = case.model("float")
    outcome = check(Fuse(), model)
    assert not outcome.modified
    found = [skip.reason for skip in outcome.skipped]
    assert any(reason in text for text in found) if reason else found == []


def pads(*amounts: int) -> dict[str, np.ndarray]:
    return {"p": np.array(amounts)}


def padded(case: Case, kind: str) -> ir.Model:
    """The amounts are integers whatever the type of the rest."""
    made = {
        k: np.asarray(a).astype(np.int64 if k in "pa" else TYPES[kind])
        for k, a in case.constants.items()
    }
    text = f"g ({kind}[{case.shape}] x) => ({kind}[A,B,C,D] y) {{ {case.body} }}"
    return model_from_text(text, opset=case.opset, **made)


CONV = {"w": weight(6, 4, 3, 3)}
PADDED = {
    "conv": Case(
        "N,4,7,7", "c = Pad (x, p) y = Conv (c, w)", ["Conv"], CONV | pads(0, 0, 1, 2, 0, 0, 3, 0)
    ),
    "conv with padding": Case(
        "N,4,7,7",
        "c = Pad (x, p, z) y = Conv <pads = [1,1,0,0], strides = [2,2]> (c, w)",
        ["Conv"],
        CONV | pads(0, 0, 1, 2, 0, 0, 3, 0) | {"z": np.array(0.0)},
    ),
    "conv that must not pad": Case(
        "N,4,7,7",
        'c = Pad (x, p) y = Conv <auto_pad = "VALID"> (c, w)',
        ["Conv"],
        CONV | pads(0, 0, 1, 1, 0, 0, 1, 1),
    ),
    "some axes": Case(
        "N,4,7,7",
        "c = Pad (x, p, , a) y = Conv (c, w)",
        ["Conv"],
        CONV | pads(2, 1, 0, 1) | {"a": np.array([-1, 2])},
        opset=18,
    ),
    "an old model": Case(
        "N,4,7,7", "c = Pad <pads = [0,0,1,1,0,0,1,1]> (x) y = Conv (c, w)", ["Conv"], CONV, opset=9
    ),
    "average": Case(
        "N,4,7,7",
        "c = Pad (x, p) y = AveragePool <kernel_shape = [3,3]> (c)",
        ["AveragePool"],
        pads(0, 0, 1, 1, 0, 0, 1, 1),
    ),
    "average that counts": Case(
        "N,4,7,7",
        """c = Pad (x, p)
        y = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1> (c)""",
        ["AveragePool"],
        pads(0, 0, 1, 0, 0, 0, 1, 0),
    ),
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("name", PADDED)
def test_zeros_become_padding(name: str, where: str) -> None:
    for kind in ("float", "float16"):
        if PADDED[name].opset < 11 and where == "branch":
            pytest.skip("branches of If had to have equal shapes before operator set 11")
        model = place(padded(PADDED[name], kind), where)
        check(Fuse(), model, tolerance=TOLERANCES[kind])
        assert nodes(model) == PADDED[name].after


OPEN: dict[str, tuple[Case, str]] = {
    "not zeros": (
        Case(
            "N,4,7,7",
            "c = Pad (x, p, z) y = Conv (c, w)",
            [],
            CONV | pads(0, 0, 1, 1, 0, 0, 1, 1) | {"z": np.array(0.5)},
        ),
        "does not add zeros",
    ),
    "a reflection": (
        Case(
            "N,4,7,7",
            'c = Pad <mode = "reflect"> (x, p) y = Conv (c, w)',
            [],
            CONV | pads(0, 0, 1, 1, 0, 0, 1, 1),
        ),
        "does not add zeros",
    ),
    "channels": (
        Case(
            "N,2,7,7",
            "c = Pad (x, p) y = Conv (c, w)",
            [],
            CONV | pads(0, 1, 1, 1, 0, 1, 1, 1),
        ),
        "samples or channels",
    ),
    "a crop": (
        Case("N,4,7,7", "c = Pad (x, p) y = Conv (c, w)", [], CONV | pads(0, 0, -1, 1, 0, 0, 1, 1)),
        "takes elements away",
    ),
    "automatic padding": (
        Case(
            "N,4,7,7",
            'c = Pad (x, p) y = Conv <auto_pad = "SAME_UPPER"> (c, w)',
            [],
            CONV | pads(0, 0, 1, 1, 0, 0, 1, 1),
        ),
        "by the size of its input",
    ),
    "average that does not count": (
        Case(
            "N,4,7,7",
            "c = Pad (x, p) y = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1]> (c)",
            [],
            pads(0, 0, 1, 1, 0, 0, 1, 1),
        ),
        "out of the average",
    ),
    "average padded by its window": (
        Case(
            "N,4,7,7",
            "c = Pad (x, p) y = AveragePool <kernel_shape = [2,2]> (c)",
            [],
            pads(0, 0, 2, 1, 0, 0, 1, 1),
        ),
        "as much as its window",
    ),
    "average that rounds up": (
        Case(
            "N,4,7,7",
            """c = Pad (x, p)
            y = AveragePool <kernel_shape = [3,3], strides = [2,2], ceil_mode = 1> (c)""",
            [],
            pads(0, 0, 1, 1, 0, 0, 0, 0),
        ),
        "rounds its size up",
    ),
    "the largest": (
        Case(
            "N,4,7,7",
            "c = Pad (x, p) y = MaxPool <kernel_shape = [3,3]> (c)",
            [],
            pads(0, 0, 1, 1, 0, 0, 1, 1),
        ),
        "",
    ),
    "used elsewhere": (
        Case(
            "N,4,7,7",
            "c = Pad (x, p) d = Conv (c, w) e = ReduceMean (c) y = Add (d, e)",
            [],
            CONV | pads(0, 0, 1, 1, 0, 0, 1, 1),
        ),
        "used elsewhere",
    ),
}


@pytest.mark.parametrize("name", OPEN)
def test_pad_stays(name: str) -> None:
    case, reason = OPEN[name]
    model: Any = padded(case, "float")
    outcome = check(Fuse(), model)
    assert not outcome.modified
    found = [skip.reason for skip in outcome.skipped]
    assert any(reason in text for text in found) if reason else found == []


def test_amounts_that_a_caller_may_change_stay() -> None:
    model = model_from_text(
        """g (float[N,4,7,7] x, int64[8] p) => (float[A,B,C,D] y) {
            c = Pad (x, p) y = Conv (c, w) }""",
        w=weight(6, 4, 3, 3).astype(np.float32),
    )
    assert not apply(Fuse(), model).modified
