"""Rules of ``eliminate`` about what copies or cuts data: hits, near misses, tempting wrong cases.

Every case compares outputs of onnxruntime before and after, bit for bit, with two random inputs.
"""

from __future__ import annotations

import numpy as np
import pytest
from rule_cases import Case, X, named, run

F32 = np.float32
COPIES = {
    "Tile by ones": Case("a = Tile (x, k) y = Neg (a)", "Neg", constants={"k": [1, 1, 1]}),
    "Tile": Case("a = Tile (x, k) y = Neg (a)", "Tile Neg", constants={"k": [1, 2, 1]}),
    "Expand before broadcasting": Case(
        "s = Shape (x) a = Expand (z, s) y = Mul (x, a)", "Mul", f"{X}, float[6] z"
    ),
    "Expand that decides the shape": Case(
        "s = Shape (x) a = Expand (z, s) y = Mul (w, a)", "Shape Expand Mul",
        f"{X}, float[6] z, float[1,6] w",
    ),
    "Expand for two of which one needs it": Case(
        "s = Shape (x) a = Expand (z, s) b = Mul (x, a) c = Exp (a) y = Add (b, c)",
        "Shape Expand Mul Exp Add", f"{X}, float[6] z",
    ),
    "Resize by ones": Case(
        'a = Resize <mode = "cubic", coordinate_transformation_mode = "align_corners"> (x, "", k) '
        "y = Neg (a)",
        "Neg", "float[N,2,5,7] x", constants={"k": np.ones(4, F32)},
    ),
    "Resize to its size": Case(
        'a = Resize <mode = "linear"> (x, "", "", k) y = Neg (a)',
        "Neg", "float[2,2,5,7] x", constants={"k": [2, 2, 5, 7]},
    ),
    "Resize of some axes": Case(
        'a = Resize <mode = "linear", axes = [2, 3]> (x, "", "", k) y = Neg (a)',
        "Neg", "float[N,2,5,7] x", constants={"k": [5, 7]}, opset=18,
    ),
    "Resize to twice its size": Case(
        'a = Resize (x, "", k) y = Neg (a)',
        "Resize Neg", "float[N,2,5,7] x", constants={"k": np.array([1, 1, 1, 2], F32)},
    ),
    "Resize that crops": Case(
        'a = Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (x, r, k) y = Neg (a)',
        "Resize Neg", "float[1,1,4,4] x",
        constants={"k": np.ones(4, F32), "r": np.array([0, 0, 0, 0, 1, 1, 0.5, 0.5], F32)},
    ),
    "Upsample by ones": Case(
        "a = Upsample (x, k) y = Neg (a)", "Neg", "float[N,2,5,7] x", opset=9,
        constants={"k": np.ones(4, F32)},
    ),
    "Upsample by an attribute": Case(
        "a = Upsample <scales = [1.0, 1.0, 1.0, 1.0]> (x) y = Neg (a)", "Neg", "float[N,2,5,7] x",
        opset=8,
    ),
}  # fmt: skip

PARTS = {
    "one part": Case("a = Split <axis = 1> (x) y = Neg (a)", "Neg", opset=13),
    "split and joined": Case(
        "a, b = Split <axis = 1> (x) c = Concat <axis = 1> (a, b) y = Neg (c)", "Neg", opset=13
    ),
    "split and joined differently": Case(
        "a, b = Split <axis = 1> (x) c = Concat <axis = 1> (b, a) y = Neg (c)",
        "Split Concat Neg", opset=13,
    ),
    "Concat of Concat": Case(
        "a = Exp (x) b = Concat <axis = 1> (x, a) c = Concat <axis = -2> (b, x) y = Neg (c)",
        "Exp Concat Neg",
    ),
    "Concat of Concat of another axis": Case(
        "b = Concat <axis = 2> (x, x) c = Concat <axis = 1> (b, b) d = Concat <axis = 1> (b, c) "
        "y = Neg (d)",
        "Concat Concat Neg",
    ),
    "Concat with an empty part": Case(
        "a = Slice (x, k, k, l) b = Concat <axis = 1> (a, x) y = Neg (b)", "Neg",
        constants={"k": [0], "l": [1]},
    ),
    "two Pads": Case(
        "a = Pad (x, k) b = Pad (a, l, z) y = Neg (b)", "Pad Neg",
        constants={"k": [0, 0, 1, 0, 0, 2], "l": [0, 1, 1, 0, 1, 0], "z": F32(0)},
    ),
    "two Pads with two numbers": Case(
        "a = Pad (x, k) b = Pad (a, k, z) y = Neg (b)", "Pad Pad Neg", reason="different numbers",
        constants={"k": [0, 0, 1, 0, 0, 2], "z": F32(1)},
    ),
    "two Pads that reflect": Case(
        'a = Pad <mode = "reflect"> (x, k) b = Pad <mode = "reflect"> (a, k) y = Neg (b)',
        "Pad Pad Neg", constants={"k": [0, 0, 1, 0, 0, 2]}, reason="constant",
    ),
    "two Pads by attribute": Case(
        "a = Pad <pads = [0, 0, 1, 0, 0, 2]> (x) b = Pad <pads = [0, 1, 0, 0, 1, 0]> (a) "
        "y = Neg (b)",
        "Pad Neg", opset=9,
    ),
    "two Slices": Case(
        "a = Slice (x, s, e, k, t) b = Slice (a, s2, e2, k2, t2) y = Neg (b)", "Slice Neg",
        constants={
            "s": [0], "e": [2**63 - 1], "k": [1], "t": [2],
            "s2": [0], "e2": [2**63 - 1], "k2": [2], "t2": [2],
        },
    ),
    "two Slices of one axis": Case(
        "a = Slice (x, s, e, k) b = Slice (a, s, s2, k) y = Neg (b)", "Slice Neg",
        "float[M,4] x", constants={"s": [0], "e": [3], "k": [0], "s2": [2]},
    ),
    "two Slices from the end": Case(
        "a = Slice (x, s, e, k) b = Slice (a, s, e, k) y = Neg (b)", "Slice Slice Neg",
        "float[M,4] x", constants={"s": [0], "e": [-1], "k": [0]}, reason="without knowing",
    ),
    "two Slices by attribute": Case(
        "a = Slice <starts = [1], ends = [4], axes = [1]> (x) "
        "b = Slice <starts = [1], ends = [9], axes = [2]> (a) y = Neg (b)",
        "Slice Neg", opset=9,
    ),
    "Gather of a Slice": Case(
        "a = Slice (x, s, e, k) b = Gather <axis = 1> (a, i) y = Neg (b)", "Gather Neg",
        constants={"s": [1], "e": [3], "k": [1], "i": 1},
    ),
    "Gather from the end of a Slice of unknown length": Case(
        "a = Slice (x, s, e, k) b = Gather <axis = 0> (a, i) y = Neg (b)", "Slice Gather Neg",
        constants={"s": [1], "e": [3], "k": [0], "i": -1}, reason="not certain",
    ),
    "Gather of everything": Case(
        "a = Gather <axis = 1> (x, i) y = Neg (a)", "Neg", constants={"i": [0, 1, -2, 3]}
    ),
    "Gather in another order": Case(
        "a = Gather <axis = 1> (x, i) y = Neg (a)", "Gather Neg", constants={"i": [0, 1, 3, 2]}
    ),
    "blocks of one": Case(
        "a = DepthToSpace <blocksize = 1> (x) b = SpaceToDepth <blocksize = 1> (a) y = Neg (b)",
        "Neg", "float[N,4,2,2] x",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", named(COPIES))
def test_copies(case: Case) -> None:
    run(case)


@pytest.mark.parametrize("case", named(PARTS))
def test_parts(case: Case) -> None:
    run(case)
