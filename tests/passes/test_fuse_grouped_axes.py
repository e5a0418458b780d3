"""``fuse``: a Transpose between Reshapes that join the first axes and split them again."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from exact import check
from support import model_from_text, op_types

from passes import Eliminate, Fuse, Simplify

BODY = "a = Reshape (x, s) b = Transpose <perm = [0, 2, 1]> (a) y = Reshape (b, t)"


def build(first: list[int], then: list[int], shape: str = "2,3,4,5", body: str = BODY) -> ir.Model:
    text = f"g (float[{shape}] x) => (float y) {{ {body} }}"
    model = model_from_text(text, s=np.array(first), t=np.array(then))
    model.graph.outputs[0].shape = None
    for index, node in enumerate(model.graph):
        node.name = f"/encoder/block.0/attention/self/{node.op_type}_{index}"
    return model


@pytest.mark.parametrize("first", [[-1, 4, 5], [6, 4, 5]])
@pytest.mark.parametrize("then", [[2, 3, 5, 4], [-1, 3, 5, 4], [2, 3, -1, 4]])
def test_merges(first: list[int], then: list[int]) -> None:
    model = build(first, then)
    check(Fuse(), model)
    assert op_types(model) == ["Transpose"]
    assert model.graph.node(0).attributes["perm"].as_ints() == (0, 1, 3, 2)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ([3, -1, 5], [2, 3, 5, 4]),  # joins the wrong axes
        ([-1, 4, 5], [3, 2, 5, 4]),
        ([-1, 4, 5], [2, 3, 4, 5]),
        ([-1, 5, 4], [2, 3, 4, 5]),
        ([-1, 4, 5], [6, 5, 4]),
    ],
)
def test_leaves_other_shapes(first: list[int], then: list[int]) -> None:
    model = build(first, then)
    check(Fuse(), model)
    assert op_types(model) == ["Reshape", "Transpose", "Reshape"]


def test_leaves_a_permutation_of_the_joined_axis() -> None:
    body = BODY.replace("[0, 2, 1]", "[1, 0, 2]")
    model = build([-1, 4, 5], [4, 2, 3, 5], body=body)
    check(Fuse(), model)
    assert len(op_types(model)) == 3


SHAPED = """
    z = Shape (x) n = Slice (z, zero, one) m = Slice (z, two, three)
    s = Concat <axis = 0> (minus, m, five) t = Concat <axis = 0> (n, three, five, m)
"""


def test_merges_with_unknown_sizes() -> None:
    text = f"g (float[N,3,M,5] x) => (float[N,3,5,M] y) {{ {SHAPED} {BODY} }}"
    sizes = {"minus": -1, "zero": 0, "one": 1, "two": 2, "three": 3, "five": 5}
    model = model_from_text(text, **{name: np.array([size]) for name, size in sizes.items()})
    check(Simplify(), model)
    assert op_types(model) == ["Transpose"]


def test_leaves_unknown_sizes_that_could_copy_others() -> None:
    text = f"g (float[3,N,M,5] x) => (float[3,N,5,M] y) {{ {SHAPED} {BODY} }}"
    text = text.replace("(n, three, five, m)", "(three, n, five, m)")
    text = text.replace("(z, zero, one)", "(z, one, two)")
    sizes = {"minus": -1, "one": 1, "two": 2, "three": 3, "five": 5}
    model = model_from_text(text, **{name: np.array([size]) for name, size in sizes.items()})
    check(Simplify(), model)
    assert op_types(model).count("Reshape") == 2


def test_names_the_type_of_a_cast() -> None:
    body = "number_of_heads = Relu (x) h = CastLike (n, number_of_heads) r = Sqrt (h)"
    model = model_from_text(f"g (float[4] x, int64 n) => (float y) {{ {body} y = Sqrt (r) }}")
    check(Eliminate(), model)
    assert op_types(model) == ["Cast", "Sqrt", "Sqrt"]


def test_leaves_a_cast_to_a_type_that_depends() -> None:
    model = model_from_text("""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[4] x, int64[4] n) => (float[4] y) { y = local.f (n, x) }
        <domain: "local", opset_import: ["" : 17]> f (a, b) => (c) { c = CastLike (a, b) }
    """)
    assert not check(Eliminate(), model).modified
