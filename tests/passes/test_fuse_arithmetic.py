"""``fuse``: constants of consecutive arithmetic merged, and what merging would get wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from exact import apply, check
from placed import PLACES, TYPES, Case, check_typed, nodes, place
from support import model_from_text, run

from passes import Fuse

A, B, C = np.array([1.5, 0.5, 2.0]), np.array([0.75, 2.5, 1.25]), np.array(4.0)
PAIRS = {
    "Add": ["Add (x, A) y = Add (B, {})", "Sub (A, x) y = Sub (B, {})", "Neg (x) y = Sub (A, {})"],
    "Sub": [
        "Sub (x, A) y = Sub ({}, B)",
        "Sub (A, x) y = Add ({}, B)",
        "Add (A, x) y = Neg ({})",
        "Neg (x) y = Add (A, {})",
    ],
    "Mul": [
        "Mul (x, A) y = Mul ({}, B)",
        "Mul (A, x) y = Div ({}, B)",
        "Div (x, A) y = Mul ({}, C)",
        "Mul (x, A) y = Neg ({})",
        "Neg (x) y = Mul ({}, A)",
    ],
    "Div": [
        "Div (x, A) y = Div ({}, B)",
        "Div (A, q) y = Mul ({}, C)",
        "Div (A, q) y = Div ({}, C)",
        "Neg (x) y = Div ({}, A)",
    ],
}
CASES = {body: (body, after) for after, bodies in PAIRS.items() for body in bodies}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", CASES)
def test_two_become_one(name: str, kind: str, where: str) -> None:
    body, after = CASES[name]
    lead = "p = Abs (x) q = Exp (p) " if "q)" in body else ""
    constants = {
        k: v for k, v in {"A": A, "B": B, "C": C}.items() if f" {k}" in body or f"({k}" in body
    }
    model = place(Case("2,3", f"{lead}t = {body.format('t')}", [], constants).model(kind), where)
    check_typed(Fuse(), model, kind)
    if where == "function" and "Neg" in body:
        return  # a new Constant node may take more bytes than Neg
    assert nodes(model)[-1:] == [after]
    assert len(nodes(model)) == 1 + 2 * bool(lead)


CHAINS = [
    "t = Mul (x, A) u = Add (B, t) y = Mul (u, C)",
    "t = Div (x, A) u = Sub (t, B) y = Div (u, C)",
    "t = Mul (x, A) u = Sub (t, B) y = Mul (u, C)",
    "t = Add (x, A) u = Mul (t, B) y = Add (u, C)",
    "t = Sub (x, A) u = Div (t, B) y = Sub (u, C)",
]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("body", CHAINS)
def test_three_become_two(body: str, kind: str) -> None:
    model = Case("2,3", body, [], {"A": A, "B": B, "C": C}).model(kind)
    check_typed(Fuse(), model, kind)
    assert nodes(model) == ["Mul", "Add"]


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_integers_wrap_around(kind: Any) -> None:
    top = np.iinfo(kind).max
    name = np.dtype(kind).name
    model = model_from_text(
        f"""g ({name}[N] x) => ({name}[N] y) {{
            t = Mul (x, a) u = Mul (t, a) v = Add (u, b) y = Add (v, b) }}""",
        a=np.array(top, kind),
        b=np.array(top - 3, kind),
    )
    check(Fuse(), model)
    assert nodes(model) == ["Mul", "Add"]


def test_integers_do_not_divide_twice() -> None:
    model = model_from_text(
        "g (int32[N] x) => (int32[N] y) { t = Mul (x, a) y = Div (t, b) }",
        a=np.array(3, np.int32),
        b=np.array(2, np.int32),
    )
    outcome = check(Fuse(), model)
    assert not outcome.modified
    assert any("integers" in skip.reason for skip in outcome.skipped)


MISSES = {
    "rounds to integers": ("t = Add (x, a) y = Sub (t, a)", {"a": 12582912.0}, "cancel"),
    "far from zero": (
        "t = Sub (x, a) u = Mul (t, b) y = Add (u, c)",
        {"a": 1.6e9, "b": 1e-3, "c": 0.5},
        "may cancel",
    ),
    "overflows in between": ("t = Mul (x, a) y = Mul (t, b)", {"a": 1e30, "b": 1e-30}, "overflow"),
    "vanishes in between": ("t = Div (x, a) y = Mul (t, b)", {"a": 1e30, "b": 1e30}, "vanish"),
    "is infinite": ("t = Add (x, a) y = Add (t, b)", {"a": np.inf, "b": 1.0}, "do not fit"),
    "one factor is zero": ("t = Mul (x, a) y = Mul (t, b)", {"a": 0.0, "b": 2.0}, "vanish"),
    "used elsewhere": (
        "t = Mul (x, a) u = Mul (t, b) y = Add (t, u)",
        {"a": 3.0, "b": 5.0},
        None,
    ),
}


@pytest.mark.parametrize("name", MISSES)
def test_stays(name: str) -> None:
    body, numbers, reason = MISSES[name]
    made = {key: np.array(value, np.float32) for key, value in numbers.items()}
    model = model_from_text(f"g (float[N] x) => (float[N] y) {{ {body} }}", **made)
    before = model.clone()
    outcome = apply(Fuse(), model)
    assert not outcome.modified
    assert reason is None or any(reason in skip.reason for skip in outcome.skipped)
    feed = {"x": np.array([-1e20, -1.5, 0.25, 1.6e9, 1e20], np.float32)}
    np.testing.assert_array_equal(run(model, feed)["y"], run(before, feed)["y"])


def test_constants_that_would_spread_stay() -> None:
    made = {"a": np.ones((40, 1), np.float32) * 2, "b": np.ones((1, 40), np.float32) * 3}
    model = model_from_text(
        "g (float[40,40] x) => (float[40,40] y) { t = Mul (x, a) y = Mul (t, b) }", **made
    )
    outcome = check(Fuse(), model)
    assert not outcome.modified
    assert any("bigger" in skip.reason for skip in outcome.skipped)


def test_shapes_that_grow_on_the_way_still_do() -> None:
    made = {"a": np.full((3, 1), 2, np.float32), "b": np.full((2, 1, 1), 3, np.float32)}
    model = model_from_text(
        "g (float[N] x) => (float[A,B,C] y) { t = Mul (x, a) y = Mul (t, b) }", **made
    )
    check(Fuse(), model, free=4)
    assert nodes(model) == ["Mul"]
