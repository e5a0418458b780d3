"""``fuse``: Transposes that move axes of size 1 only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from exact import check
from support import model_from_text, op_types

from passes import Fuse


def build(body: str, shape: list[int], inputs: str = "float[N,6,8] x") -> ir.Model:
    model = model_from_text(f"g ({inputs}) => (float y) {{ {body} }}", s=np.array(shape))
    model.graph.outputs[0].shape = None
    for index, node in enumerate(model.graph):
        node.name = f"/encoder/block.0/attention/self/{node.op_type}_{index}"
    return model


BODY = "a = Reshape (x, s) y = Transpose <perm = [0, 2, 1, 3]> (a)"


@pytest.mark.parametrize("inputs", ["float[N,6,8] x", "float[2,6,8] x", "int64[2,6,8] x"])
@pytest.mark.parametrize("shape", [[0, 6, 1, 8], [-1, 6, 1, 8], [-1, 1, 12, 4]])
def test_merges(inputs: str, shape: list[int]) -> None:
    model = build(BODY, shape, inputs)
    if inputs.startswith("int64"):
        model.graph.outputs[0].dtype = ir.DataType.INT64
    check(Fuse(), model)
    assert op_types(model) == ["Reshape"]


@pytest.mark.parametrize("shape", [[0, 6, 2, 4], [0, 2, 3, 8]])
def test_leaves_what_moves_elements(shape: list[int]) -> None:
    model = build(BODY, shape)
    assert not check(Fuse(), model).modified


def test_leaves_a_view_that_is_used_elsewhere() -> None:
    body = BODY.replace("y =", "t =") + " b = Transpose <perm = [0, 2, 1, 3]> (t) y = Add (a, b)"
    model = build(body, [0, 6, 1, 8])
    check(Fuse(), model)
    assert "Transpose" in op_types(model)


def test_leaves_two_unknown_sizes() -> None:
    model = build(BODY, [0, 0, 1, 8], "float[N,M,8] x")
    check(Fuse(), model)
    assert op_types(model) == ["Reshape", "Transpose"]
