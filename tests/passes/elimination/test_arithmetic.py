"""Rules of ``eliminate`` about numbers: hits, near misses, tempting wrong cases.

Every case compares outputs of onnxruntime before and after, bit for bit, with two random inputs.
"""

from __future__ import annotations

import numpy as np
import pytest
from rule_cases import Case, X, named, run

F32 = np.float32
ARITHMETIC = {
    "neutral for each element": Case(
        "t = Exp (x) a = Mul (t, c) y = Neg (a)", "Exp Neg", constants={"c": np.ones((4, 6), F32)}
    ),
    "neutral but wider": Case(
        "a = Mul (x, c) y = Neg (a)", "Mul Neg", "float[N,1,6] x",
        constants={"c": np.ones((4, 6), F32)},
    ),
    "nearly neutral": Case(
        "a = Mul (x, c) y = Neg (a)", "Mul Neg",
        constants={"c": np.array([1, 1, 1, 1, 1, 1.0000001], F32)},
    ),
    "times zero": Case("a = Mul (x, c) y = Neg (a)", "Mul Neg", constants={"c": F32(0)}),
    "to the power of one": Case("a = Pow (x, c) y = Neg (a)", "Neg", constants={"c": F32(1)}),
    "integer plus zero": Case(
        "a = Add (c, x) b = Sub (a, c) y = Neg (b)", "Neg", "int64[N,4] x", "int64 y",
        constants={"c": np.array([0])},
    ),
    "flags": Case(
        "a = And (x, t) b = Or (a, f) c = Xor (f, b) y = Not (c)", "Not", "bool[N,4] x", "bool y",
        constants={"t": np.array(True), "f": np.array(False)},
    ),
    "flags with the other constant": Case(
        "a = And (x, f) y = Not (a)", "And Not", "bool[N,4] x", "bool y",
        constants={"f": np.array(False)},
    ),
    "with itself": Case(
        "a = Max (x, x) b = Min (a, a) y = Neg (b)", "Neg"
    ),
    "of one": Case("a = Sum (x) b = Max (a) c = Mean (b) y = Neg (c)", "Neg"),
    "nested on the left": Case(
        "a = Max (x, z) b = Max (a, w) y = Neg (b)", "Max Neg", f"{X}, float[6] z, float[4,1] w"
    ),
    "nested sums on the right": Case(
        "a = Sum (x, z) b = Sum (w, a) y = Neg (b)", "Sum Sum Neg",
        f"{X}, float[6] z, float[4,1] w",
    ),
    "same on both sides": Case(
        "a = Where (c, x, x) y = Neg (a)", "Neg", f"{X}, bool[4,6] c",
    ),
    "same on both sides but wider": Case(
        "a = Where (c, x, x) y = Neg (a)", "Where Neg", f"{X}, bool[M,4,6] c", reason="widen"
    ),
    "always the first": Case(
        "a = Where (c, x, z) y = Neg (a)", "Neg", f"{X}, float[6] z",
        constants={"c": np.ones((4, 1), bool)},
    ),
    "never the first": Case(
        "a = Where (c, z, x) y = Neg (a)", "Neg", f"{X}, float[6] z",
        constants={"c": np.array(False)},
    ),
    "sometimes the first": Case(
        "a = Where (c, z, x) y = Neg (a)", "Where Neg", f"{X}, float[6] z",
        constants={"c": np.array([True] * 3 + [False] * 3)},
    ),
    "maximum of single numbers": Case(
        "a = ReduceMax <axes = [1]> (x) y = Neg (a)", "Neg", "float[N,1,6] x",
    ),
    "sum of single numbers": Case(
        "a = ReduceSum (x, k) y = Neg (a)", "ReduceSum Neg", "float[N,1,6] x",
        constants={"k": [1]}, reason="-0.0",
    ),
    "sum of single integers": Case(
        "a = ReduceSum (x, k) y = Neg (a)", "Neg", "int64[N,1,6] x", "int64 y",
        constants={"k": [1]},
    ),
    "maximum without kept axes": Case(
        "a = ReduceMax <axes = [1], keepdims = 0> (x) y = Neg (a)", "ReduceMax Neg",
        "float[N,1,6] x",
    ),
}  # fmt: skip

PAIRS = {
    "twice negative": Case("a = Neg (x) b = Neg (a) y = Exp (b)", "Exp"),
    "twice inverse is not exact": Case(
        "a = Reciprocal (x) b = Reciprocal (a) y = Exp (b)", "Reciprocal Reciprocal Exp"
    ),
    "idempotent": Case(
        "a = Relu (x) b = Relu (a) c = Floor (b) d = Ceil (c) e = Round (d) y = Neg (e)",
        "Relu Floor Neg",
    ),
    "Relu of what is positive": Case("a = Sigmoid (x) b = Relu (a) y = Neg (b)", "Sigmoid Neg"),
    "Abs after Relu would lose a sign": Case(
        "a = Relu (x) b = Abs (a) y = Neg (b)", "Relu Abs Neg"
    ),
    "Abs of the lowest integer is negative": Case(
        "a = Abs (x) b = Relu (a) y = Neg (b)", "Abs Relu Neg", "int8[N,4] x", "int8 y",
        reason="lowest integer",
    ),
    "Relu of an absolute value": Case("a = Abs (x) b = Relu (a) y = Neg (b)", "Abs Neg"),
    "Clip after Relu": Case(
        "a = Relu (x) b = Clip (a, z, b6) y = Neg (b)", "Clip Neg",
        constants={"z": F32(0), "b6": F32(6)},
    ),
    "Clip after Relu, only above": Case(
        'a = Relu (x) b = Clip (a, "", b6) y = Neg (b)', "Clip Neg",
        constants={"b6": F32(1), "name_that_is_not_used": F32(0)},
    ),
    "Relu after Clip": Case(
        "a = Clip (x, z, b6) b = Relu (a) y = Neg (b)", "Clip Neg",
        constants={"z": F32(0), "b6": F32(6)},
    ),
    "two Clips": Case(
        "a = Clip (x, l, b6) b = Clip (a, z, m) y = Neg (b)", "Clip Neg",
        constants={"l": F32(-1), "z": F32(0), "b6": F32(6), "m": F32(0.5)},
    ),
    "two Clips by attribute": Case(
        "a = Clip <min = -1.0, max = 1.0> (x) b = Clip <min = -2.0, max = 0.5> (a) y = Neg (b)",
        "Clip Neg", opset=9,
    ),
    "Clip with limits in the wrong order": Case(
        "a = Relu (x) b = Clip (a, l, h) y = Neg (b)", "Relu Clip Neg",
        constants={"l": F32(2), "h": F32(1)},
    ),
    "Clip with limits of the run": Case(
        "a = Relu (x) b = Clip (a, l) y = Neg (b)", "Relu Clip Neg", f"{X}, float l",
        reason="not certain",
    ),
    "Clip without limits is no identity": Case("a = Clip (x) y = Neg (a)", "Clip Neg"),
}  # fmt: skip

SHAPES = {
    "one size as a vector": Case(
        "r = Exp (x) the_shape = Shape (x) the_size = Gather (the_shape, i) "
        "b = Unsqueeze (the_size, k) c = Concat <axis = 0> (b, m) y = Expand (w, c) z = Neg (r)",
        "Exp Shape Concat Expand Neg", f"{X}, float[1] w", "float y, float z",
        constants={"i": 0, "k": [0], "m": [3]},
    ),
    "one size before operator set 15": Case(
        "the_shape = Shape (x) the_size = Gather (the_shape, i) b = Unsqueeze (the_size, k) "
        "c = Concat <axis = 0> (b, m) y = Expand (w, c)",
        "Shape Gather Unsqueeze Concat Expand", f"{X}, float[1] w", opset=14,
        constants={"i": 0, "k": [0], "m": [3]},
    ),
    "two sizes side by side": Case(
        "the_shape = Shape (x) the_size = Gather (the_shape, i) b = Unsqueeze (the_size, k) "
        "c = Gather (the_shape, j) d = Unsqueeze (c, k) e = Concat <axis = 0> (b, d, m) "
        "y = Expand (w, e)",
        "Shape Concat Expand", "float[N,M] x, float[1] w",
        constants={"i": 0, "j": 1, "k": [0], "m": [3]},
    ),
    "a range of sizes": Case(
        "the_shape = Shape (x) a = Slice (the_shape, i, j) y = Expand (w, a)",
        "Shape Expand",
        "float[N,M,3] x, float[1] w", constants={"i": [0], "j": [2]},
    ),
    "a range with steps": Case(
        "the_shape = Shape (x) a = Slice (the_shape, i, j, i, k) y = Expand (w, a)",
        "Shape Slice Expand",
        "float[N,M,L] x, float[1] w", constants={"i": [0], "j": [3], "k": [2]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", named(ARITHMETIC))
def test_arithmetic(case: Case) -> None:
    run(case)


@pytest.mark.parametrize("case", named(PAIRS))
def test_pairs(case: Case) -> None:
    run(case)


@pytest.mark.parametrize("case", named(SHAPES))
def test_shapes(case: Case) -> None:
    run(case)
