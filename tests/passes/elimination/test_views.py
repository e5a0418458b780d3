"""Rules of ``eliminate`` about what moves data: hits, near misses, tempting wrong cases.

Every case compares outputs of onnxruntime before and after, bit for bit, with two random inputs.
"""

from __future__ import annotations

import numpy as np
import pytest
from rule_cases import Case, named, run

F32 = np.float32
CASTS = {
    "over a wider type": Case(
        "a = Cast <to = 11> (x) y = Cast <to = 10> (a)", "Cast", outputs="float16 y"
    ),
    "there and back": Case(
        "t = Relu (x) a = Cast <to = 11> (t) b = Cast <to = 1> (a) y = Neg (b)", "Relu Neg"
    ),
    "there and back with loss": Case(
        "a = Cast <to = 10> (x) b = Cast <to = 1> (a) y = Neg (b)",
        "Cast Cast Neg",
        reason="lose digits",
    ),
    "small integers over floats": Case(
        "a = Cast <to = 1> (x) b = Cast <to = 7> (a) y = Neg (b)", "Cast Neg", "uint8[N,4] x",
        "int64 y",
    ),
    "integers over floats to a smaller type": Case(
        "a = Cast <to = 1> (x) y = Cast <to = 3> (a)", "Cast Cast", "uint8[N,4] x", "int8 y"
    ),
    "flags": Case(
        "a = Cast <to = 7> (x) b = Cast <to = 9> (a) y = Not (b)", "Not", "bool[N,4] x", "bool y"
    ),
    "numbers over flags": Case(
        "a = Cast <to = 9> (x) b = Cast <to = 7> (a) y = Neg (b)", "Cast Cast Neg",
        "int64[N,4] x", "int64 y",
    ),
    "after a look-up of the type": Case(
        "q = QuantizeLinear (x, s, z) c = Cast <to = 2> (q) y = DequantizeLinear (c, s, z)",
        "QuantizeLinear DequantizeLinear",
        constants={"s": F32(0.1), "z": np.uint8(3)},
    ),
}  # fmt: skip

VIEWS = {
    "two Squeezes": Case(
        "a = Squeeze (x, k) b = Squeeze (a, l) y = Neg (b)", "Squeeze Neg",
        "float[N,1,M,1] x", constants={"k": [1], "l": [2]},
    ),
    "two Unsqueezes of unknown rank": Case(
        "r = NonZero (x) a = Unsqueeze (r, k) b = Unsqueeze (a, l) y = Neg (b)",
        "NonZero Unsqueeze Neg", outputs="int64 y", constants={"k": [0], "l": [1]},
    ),
    "two Unsqueezes by attribute": Case(
        "a = Unsqueeze <axes = [0]> (x) b = Unsqueeze <axes = [1]> (a) y = Neg (b)",
        "Unsqueeze Neg", opset=11,
    ),
    "Reshape twice with zeros": Case(
        "a = Reshape (x, s) b = Reshape (a, t) y = Neg (b)", "Reshape Neg",
        constants={"s": [0, 24], "t": [0, 2, 12]},
    ),
    "Flatten after Reshape": Case(
        "a = Reshape (x, s) b = Flatten <axis = 1> (a) y = Neg (b)", "Reshape Neg",
        constants={"s": [0, 2, 3, 4]},
    ),
    "Transpose that moves only ones, then Reshape": Case(
        "a = Transpose <perm = [1, 0, 2]> (x) b = Reshape (a, s) y = Neg (b)", "Reshape Neg",
        "float[1,4,6] x", constants={"s": [6, 4]},
    ),
    "Transpose that moves, then Reshape": Case(
        "a = Transpose <perm = [1, 0, 2]> (x) b = Reshape (a, s) y = Neg (b)",
        "Transpose Reshape Neg", "float[2,4,6] x", constants={"s": [12, 4]},
    ),
    "a view that others use": Case(
        "a = Reshape (x, s) b = Reshape (a, t) c = Exp (a) d = ReduceMax <keepdims = 0> (c) "
        "e = Neg (b) y = Add (d, e)",
        "Reshape Reshape Exp ReduceMax Neg Add", constants={"s": [0, 24], "t": [0, 2, 12]},
    ),
    "two unknown sizes": Case(
        "a = Reshape (x, s) b = Reshape (a, t) y = Neg (b)", "Reshape Reshape Neg",
        "float[N,M,6] x", constants={"s": [0, -1], "t": [0, -1, 3]},
    ),
}  # fmt: skip

TRANSPOSES = {
    "around one operator": Case(
        "a = Transpose <perm = [0, 2, 1]> (x) b = Exp (a) y = Transpose <perm = [0, 2, 1]> (b)",
        "Exp",
    ),
    "around a chain with numbers": Case(
        "a = Transpose <perm = [0, 2, 1]> (x) b = Mul (a, k) c = Tanh (b) d = Clip (c, k) "
        "y = Transpose <perm = [0, 2, 1]> (d)",
        "Mul Tanh Clip", constants={"k": F32(0.5)},
    ),
    "of both operands": Case(
        "a = Transpose <perm = [0, 2, 1]> (x) b = Transpose <perm = [0, 2, 1]> (z) "
        "c = Add (a, b) y = Neg (c)",
        "Add Transpose Neg", "float[N,4,6] x, float[N,1,6] z",
    ),
    "of operands, differently": Case(
        "a = Transpose <perm = [0, 2, 1]> (x) b = Transpose <perm = [1, 2, 0]> (z) "
        "c = Add (a, b) y = Neg (c)",
        "Transpose Transpose Add Neg", "float[N,4,6] x, float[4,N,6] z",
    ),
    "of one operand only": Case(
        "a = Transpose <perm = [0, 2, 1]> (x) c = Add (a, z) y = Transpose <perm = [0, 2, 1]> (c)",
        "Transpose Add Transpose", "float[N,4,6] x, float[N,6,4] z",
    ),
    "of which another node needs the result": Case(
        "a = Transpose <perm = [0, 2, 1]> (x) b = Exp (a) c = Transpose <perm = [0, 2, 1]> (b) "
        "d = ReduceMax <keepdims = 0> (a) y = Add (c, d)",
        "Transpose Exp Transpose ReduceMax Add",
    ),
    "of the whole, once": Case(
        "a = Transpose <perm = [0, 2, 1]> (x) y = Exp (a)", "Transpose Exp"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", named(CASTS))
def test_casts(case: Case) -> None:
    run(case)


@pytest.mark.parametrize("case", named(VIEWS))
def test_views(case: Case) -> None:
    run(case)


@pytest.mark.parametrize("case", named(TRANSPOSES))
def test_transposes(case: Case) -> None:
    run(case)
