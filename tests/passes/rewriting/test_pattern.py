"""Patterns as text: what they match, what they do not, and why an attempt failed."""

from __future__ import annotations

import time

import numpy as np
import onnx_ir as ir
import pytest
from support import model_from_text

from passes.rewriting.pattern import Match, Matcher, PatternError, is_close, parse


def matched(pattern: str, body: str, **constants: float) -> Match | None:
    return attempt(pattern, body, **constants)[0]


def attempt(pattern: str, body: str, **constants: float) -> tuple[Match | None, str]:
    """Search for the pattern at the node that makes y."""
    made = {name: np.array(value, np.float32) for name, value in constants.items()}
    model = model_from_text(f"g (float[N] x, float[N] z) => (float[N] y) {{ {body} }}", **made)
    root = model.graph.outputs[0].producer()
    assert root is not None
    matcher = Matcher(parse(pattern), 17)
    return matcher.match(root), matcher.farthest[1]


HITS = {
    "an operator": ("Relu(x)", "y = Relu (x)"),
    "below the root": ("Relu(Neg(x))", "t = Neg (x) y = Relu (t)"),
    "the same value twice": ("Mul(x, Sigmoid(x))", "t = Sigmoid (x) y = Mul (x, t)"),
    "swapped operands": ("Mul(x, Sigmoid(x))", "t = Sigmoid (x) y = Mul (t, x)"),
    "swapped twice": ("Add(Mul(x, 2.0), Neg(z))", "t = Mul (c, x) u = Neg (z) y = Add (u, t)"),
    "a number": ("Mul(x, 2.0)", "y = Mul (x, c)"),
    "a constant": ("Mul(x, W)", "y = Mul (c, x)"),
    "one or the other": ("Sqrt(Relu(x) | Neg(x))", "t = Neg (x) y = Sqrt (t)"),
    "an attribute": ("Softmax(x, axis=0)", "y = Softmax <axis = 0> (x)"),
    "an attribute by default": ("Softmax(x, axis=-1)", "y = Softmax (x)"),
    "another output": ("Relu(Split(x)[1])", "s, t = Split <axis = 0> (x) y = Relu (t)"),
    "more inputs": ("Concat(x, ...)", "y = Concat <axis = 0> (x, z, x)"),
    "an input that is left out": ("Clip(x, None, 2.0)", "y = Clip (x, , c)"),
    "an input at the end that is left out": ("Clip(x, None, None)", "y = Clip (x)"),
    "whatever is there": ("Clip(x, _, _)", "y = Clip (x, , c)"),
}


@pytest.mark.parametrize("name", HITS)
def test_matches(name: str) -> None:
    pattern, body = HITS[name]
    assert matched(pattern, body, c=2.0) is not None


MISSES = {
    "another operator": ("Relu(x)", "y = Neg (x)", "instead of Relu"),
    "another domain": ("Relu(Neg(x))", "t = Abs (x) y = Relu (t)", "instead of Neg"),
    "two values for one name": ("Mul(x, Sigmoid(x))", "t = Sigmoid (z) y = Mul (x, t)", ""),
    "operands that do not swap": ("Sub(x, Neg(x))", "t = Neg (x) y = Sub (t, x)", "no Neg"),
    "another number": ("Mul(x, 3.0)", "y = Mul (x, c)", "no constant 3"),
    "no constant": ("Mul(x, W)", "y = Mul (x, z)", "is no constant"),
    "another attribute": ("Softmax(x, axis=0)", "y = Softmax (x)", "axis of"),
    "the first output": ("Relu(Split(x)[1])", "s, t = Split (x) y = Relu (s)", "no Split"),
    "more inputs than wanted": ("Clip(x, None)", "y = Clip (x, , c)", "more inputs"),
    "an input that is given": ("Clip(x, None, None)", "y = Clip (x, , c)", ""),
}


@pytest.mark.parametrize("name", MISSES)
def test_says_why_not(name: str) -> None:
    pattern, body, reason = MISSES[name]
    match, why = attempt(pattern, body, c=2.0)
    assert match is None
    assert reason in why or not why


def test_binds_names_to_values_and_nodes() -> None:
    match = matched("(top := Add((low := Mul(x, W)), z))", "t = Mul (c, x) y = Add (z, t)", c=2.0)
    assert match is not None
    assert {name: value.name for name, value in match.values.items()} == {
        "x": "x",
        "W": "c",
        "z": "z",
    }
    assert match.nodes["top"] is match.root
    assert match.inner == (match.nodes["low"],)
    assert match.number("W") == 2.0


def test_a_node_that_stays_is_not_removed() -> None:
    match = matched("Relu(+Neg(x))", "t = Neg (x) y = Relu (t)")
    assert match is not None
    assert match.inner == ()


def test_one_node_found_twice_is_removed_once() -> None:
    match = matched("Mul(Neg(x), Neg(x))", "t = Neg (x) y = Mul (t, t)")
    assert match is not None
    assert len(match.inner) == 1


MISTAKES = [
    "Relu(x",
    "x",
    "2.0",
    "Relu(x + z)",
    "Relu(x < z)",
    "Relu(-x)",
    'Relu("text")',
    "Softmax(x, axis=other)",
    "Softmax(x, **rest)",
    "Split(x)[one]",
    "a.b(x)",
    "(n := x)",
    "Relu(+x)",
    "Relu(lambda: x)",
    "",
]


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_are_pattern_errors(text: str) -> None:
    with pytest.raises(PatternError):
        parse(text)


def test_numbers_are_rounded_to_their_type() -> None:
    assert is_close(float(np.float16(0.7071)), 0.70710678, ir.DataType.FLOAT16)
    assert not is_close(0.708, 0.70710678, ir.DataType.FLOAT)
    assert not is_close(3, 2, ir.DataType.INT64)


def test_a_hopeless_search_ends() -> None:
    pattern, body, depth = "Neg(x)", "t0 = Abs (x) ", 12
    for index in range(depth):
        pattern = f"Add({pattern}, {pattern})"
        body += f"t{index + 1} = Add (t{index}, t{index}) "
    body += f"y = Relu (t{depth})"
    started = time.process_time()
    assert matched(f"Relu({pattern})", body) is None
    assert time.process_time() - started < 2
