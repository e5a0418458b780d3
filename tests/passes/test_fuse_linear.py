"""``fuse``: constants, scales and normalization into the weights of linear layers."""

from __future__ import annotations

import numpy as np
import pytest
from exact import apply, check
from placed import PLACES, TYPES, Case, check_typed, nodes, place, weight
from support import model_from_text, op_types

from passes import Fuse

CHANNELS = np.array([0.5, 2.0, -1.5, 0.75, 1.25, 3.0])
NORM = {
    "ns": np.array([0.5, 2.0, 1.5, 0.75]),
    "nb": np.array([0.1, -0.2, 0.3, 0.4]),
    "nm": np.array([0.2, 0.1, -0.3, 0.5]),
    "nv": np.array([0.5, 2.0, 1.5, 0.75]),
}


CONV = {"w": weight(6, 4, 3, 3)}
GEMM = {"w": weight(4, 6), "b": weight(6)}
HITS = {
    "conv, factor per channel": Case(
        "N,4,7,7",
        "c = Conv (x, w) y = Mul (c, s)",
        ["Conv"],
        CONV | {"s": CHANNELS.reshape(6, 1, 1)},
    ),
    "conv, factor of full rank": Case(
        "N,4,7,7",
        "c = Conv (x, w) y = Mul (s, c)",
        ["Conv"],
        CONV | {"s": CHANNELS.reshape(1, 6, 1, 1)},
    ),
    "conv, divided by one number": Case(
        "N,4,7,7",
        "c = Conv <pads=[1,1,1,1]> (x, w, b) y = Div (c, s)",
        ["Conv"],
        CONV | {"b": weight(6), "s": np.array(3.0)},
    ),
    "conv, a term per channel": Case(
        "N,4,7,7",
        "c = Conv (x, w) y = Add (s, c)",
        ["Conv"],
        CONV | {"s": CHANNELS.reshape(6, 1, 1)},
    ),
    "conv, taken from a constant": Case(
        "N,4,7,7",
        "c = Conv (x, w, b) y = Sub (s, c)",
        ["Conv"],
        CONV | {"b": weight(6), "s": CHANNELS.reshape(6, 1, 1)},
    ),
    "conv, a chain": Case(
        "N,4,7,7",
        "c = Conv (x, w, b) d = Mul (c, s) e = Add (d, s) f = Neg (e) y = Sub (f, t)",
        ["Conv"],
        CONV | {"b": weight(6), "s": CHANNELS.reshape(6, 1, 1), "t": np.array([[[0.5]]])},
    ),
    "grouped transposed conv": Case(
        "N,4,5,5",
        "c = ConvTranspose <group = 2> (x, w, b) d = Mul (c, s) y = Sub (d, s)",
        ["ConvTranspose"],
        {"w": weight(4, 3, 3, 3), "b": weight(6), "s": CHANNELS.reshape(6, 1, 1)},
    ),
    "gemm": Case(
        "N,4",
        "c = Gemm <alpha = 0.5, beta = 2.0> (x, w, b) d = Mul (c, s) y = Add (d, t)",
        ["Gemm"],
        GEMM | {"s": CHANNELS, "t": weight(1, 6)},
    ),
    "gemm, weight transposed": Case(
        "N,4",
        "c = Gemm <transB = 1> (x, w, b) y = Div (c, s)",
        ["Gemm"],
        {"w": weight(6, 4), "b": weight(6), "s": CHANNELS},
    ),
    "matmul of many axes": Case(
        "2,3,N,4",
        "c = MatMul (x, w) y = Mul (c, s)",
        ["MatMul"],
        {"w": weight(4, 6), "s": CHANNELS},
    ),
    "matmul with a bias in between": Case(
        "2,N,4",
        "c = MatMul (x, w) d = Add (b, c) y = Mul (d, s)",
        ["MatMul", "Add"],
        GEMM | {"s": np.array(0.125)},
    ),
    "scale before conv with padding": Case(
        "N,4,7,7",
        "c = Mul (x, s) y = Conv <pads = [1,1,1,1]> (c, w)",
        ["Conv"],
        CONV | {"s": np.array([1.0, 0.5, -2.0, 3.0]).reshape(1, 4, 1, 1)},
        needs_shapes=True,
    ),
    "scale before grouped conv": Case(
        "N,4,7,7",
        "c = Div (x, s) y = Conv <group = 2> (c, w)",
        ["Conv"],
        {"w": weight(6, 2, 3, 3), "s": np.array([1.0, 0.5, -2.0, 3.0]).reshape(4, 1, 1)},
        needs_shapes=True,
    ),
    "one factor before conv": Case(
        "N,4,7,7", "c = Div (x, s) y = Conv (c, w)", ["Conv"], CONV | {"s": np.array([[3.0]])}
    ),
    "scale before matmul": Case(
        "2,N,4",
        "c = Mul (x, s) y = MatMul (c, w)",
        ["MatMul"],
        {"w": weight(4, 6), "s": np.array([1.0, 0.5, -2.0, 3.0])},
        needs_shapes=True,
    ),
    "sign before transposed conv": Case(
        "N,4,5,5",
        "c = Neg (x) y = ConvTranspose (c, w)",
        ["ConvTranspose"],
        {"w": weight(4, 3, 3, 3)},
    ),
    "norm before conv": Case(
        "N,4,7,7",
        "c = BatchNormalization (x, ns, nb, nm, nv) y = Conv <group = 2> (c, w, b)",
        ["Conv"],
        {"w": weight(6, 2, 3, 3), "b": weight(6), **NORM},
    ),
    "norm before gemm": Case(
        "N,4",
        "c = BatchNormalization (x, ns, nb, nm, nv) y = Gemm <alpha = 0.5> (c, w, b)",
        ["Gemm"],
        GEMM | NORM,
    ),
    "norm before and after matmul": Case(
        "N,4",
        """c = BatchNormalization (x, ns, nb, nm, nv) d = MatMul (c, w)
        y = BatchNormalization (d, ms, mb, mm, mv)""",
        ["Gemm"],
        {"w": weight(4, 4), **NORM, **{f"m{name[1]}": array + 0.5 for name, array in NORM.items()}},
        needs_shapes=True,
    ),
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", HITS)
def test_folds(name: str, kind: str, where: str) -> None:
    case = HITS[name]
    model = place(case.model(kind), where)
    check_typed(Fuse(), model, kind)
    if where != "function" or not case.needs_shapes:
        assert nodes(model) == case.after
    elif nodes(model) == case.after:
        pytest.fail("a shape that no caller promises was relied on")


PUBLIC = ", float[A,B,C,D] c"
MISSES: dict[str, tuple[Case, str]] = {
    "weight shared": (
        Case(
            "N,4,7,7",
            "c = Conv (x, w) d = Mul (c, s) e = Conv (x, w) y = Add (d, e)",
            [],
            CONV | {"s": CHANNELS.reshape(6, 1, 1)},
        ),
        "shared",
    ),
    "output used elsewhere": (
        Case(
            "N,4,7,7",
            "c = Conv (x, w) d = Mul (c, s) y = Add (d, c)",
            [],
            CONV | {"s": np.array(3.0)},
        ),
        "used elsewhere",
    ),
    "constant along the width": (
        Case("N,4,7,7", "c = Conv (x, w) y = Mul (c, s)", [], CONV | {"s": np.arange(1.0, 6.0)}),
        "not one number per channel",
    ),
    "constant with another axis": (
        Case(
            "N,4,7,7",
            "c = Conv (x, w) y = Mul (c, s)",
            [],
            CONV | {"s": CHANNELS.reshape(1, 1, 6, 1, 1)},
        ),
        "not one number per channel",
    ),
    "one channel becomes six": (
        Case(
            "N,4,7,7",
            "c = Conv (x, w) y = Add (c, s)",
            [],
            {"w": weight(1, 4, 3, 3), "s": CHANNELS.reshape(6, 1, 1)},
        ),
        "not one number per channel",
    ),
    "one channel becomes four before the layer": (
        Case(
            "N,1,7,7",
            "c = Mul (x, s) y = Conv (c, w)",
            [],
            CONV | {"s": np.array([1.0, 0.5, -2.0, 3.0]).reshape(1, 4, 1, 1)},
        ),
        "may broadcast",
    ),
    "division by zero": (
        Case(
            "N,4,7,7",
            "c = Conv (x, w) y = Div (c, s)",
            [],
            CONV | {"s": np.array([1.0, 0, 1, 1, 1, 1]).reshape(6, 1, 1)},
        ),
        "not finite",
    ),
    "rounding on purpose": (
        Case(
            "N,4",
            "c = Gemm (x, w, b) y = Sub (c, s)",
            [],
            {"w": weight(4, 6), "b": np.full(6, 12582912.0), "s": np.array(12582912.0)},
        ),
        "cancel",
    ),
    "padding is not normalized": (
        Case(
            "N,4,7,7",
            "c = BatchNormalization (x, ns, nb, nm, nv) y = Conv <pads = [1,1,1,1]> (c, w)",
            [],
            CONV | NORM,
        ),
        "beside its input",
    ),
    "automatic padding is not normalized": (
        Case(
            "N,4,7,7",
            'c = BatchNormalization (x, ns, nb, nm, nv) y = Conv <auto_pad = "SAME_UPPER"> (c, w)',
            [],
            CONV | NORM,
        ),
        "beside its input",
    ),
    "borders of a transposed conv": (
        Case(
            "N,4,7,7",
            "c = BatchNormalization (x, ns, nb, nm, nv) y = ConvTranspose (c, w)",
            [],
            {"w": weight(4, 3, 3, 3), **NORM},
        ),
        "borders",
    ),
    "norm of axis 1 before matmul of axis 2": (
        Case(
            "N,4,4",
            "c = BatchNormalization (x, ns, nb, nm, nv) y = MatMul (c, w)",
            [],
            {"w": weight(4, 6), **NORM},
        ),
        "more than two axes",
    ),
    "gemm reads its input transposed": (
        Case(
            "4,4",
            "c = Mul (x, s) y = Gemm <transA = 1> (c, w, b)",
            [],
            GEMM | {"s": np.array([1.0, 0.5, -2.0, 3.0])},
        ),
        "transposed",
    ),
}


@pytest.mark.parametrize("name", MISSES)
def test_stays(name: str) -> None:
    case, reason = MISSES[name]
    model = case.model("float")
    outcome = check(Fuse(), model, tolerance=1e-6)
    assert not outcome.modified, outcome.counts
    reasons = [skip.reason for skip in outcome.skipped]
    assert any(reason in text for text in reasons) if reason else reasons == []


def test_integers_stay() -> None:
    model = model_from_text(
        "g (int32[N,4] x) => (int32[N,6] y) { c = MatMul (x, w) y = Mul (c, s) }",
        w=np.ones((4, 6), np.int32),
        s=np.arange(6, dtype=np.int32),
    )
    assert not check(Fuse(), model).modified


def test_old_arithmetic_broadcasts_otherwise() -> None:
    case = Case(
        "N,4,7,7",
        "c = Conv (x, w) y = Mul <axis = 1, broadcast = 1> (c, s)",
        [],
        CONV | {"s": CHANNELS},
        opset=6,
    )
    assert not apply(Fuse(), case.model("float")).modified


@pytest.mark.parametrize(
    ("size", "factor", "word"), [(4.0, 60000.0, "do not fit"), (0.01, 1e-4, "too small")]
)
def test_half_weights_neither_overflow_nor_vanish(size: float, factor: float, word: str) -> None:
    made = {"w": np.full((6, 4, 3, 3), size), "s": np.array(factor)}
    model = Case("N,4,7,7", "c = Conv (x, w) y = Mul (c, s)", [], made).model("float16")
    outcome = apply(Fuse(), model)
    assert not outcome.modified
    assert [word in skip.reason for skip in outcome.skipped] == [True]


def test_a_dead_channel_may_vanish() -> None:
    made = weight(6, 4, 3, 3).astype(np.float32)
    scale = np.array([1, 1, 1e-42, 0, 1, 1], np.float32).reshape(6, 1, 1)
    model = model_from_text(
        "g (float[N,4,5,5] x) => (float[A,B,C,D] y) { c = Conv (x, w) y = Mul (c, s) }",
        w=made,
        s=scale,
    )
    check(Fuse(), model, tolerance=1e-6)
    assert op_types(model) == ["Conv"]


def test_what_grows_the_file_stays() -> None:
    made = {"w": weight(300, 1, 1, 1).astype(np.float32), "s": np.array(0.5, np.float32)}
    model = model_from_text(
        "g (float[N,1,2,2] x) => (float[A,B,C,D] y) { c = Conv (x, w) y = Add (c, s) }", **made
    )
    outcome = check(Fuse(), model)
    assert not outcome.modified
    assert [skip.reason for skip in outcome.skipped] == ["the new bias would make the file bigger"]
