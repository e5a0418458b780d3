"""Declarations of inner values that follow from the rest of a model."""

from __future__ import annotations

import onnx_ir as ir

from converter.core.context import Limits
from converter.measure.declared import redundant
from tests.support import model_from_text


def model() -> ir.Model:
    made = model_from_text(
        "g (float[2, 3] x) => (float[3, 2] y) { a = Relu(x)\nb = Abs(a)\ny = Transpose(b) }"
    )
    for node in list(made.graph)[:2]:
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape([2, 3])
    return made


def test_sizes_that_are_inferred_again_are_named_with_their_bytes() -> None:
    found = redundant(model(), ["a", "b", "c"], Limits())
    assert list(found) == ["a", "b"]
    assert all(size > 0 for size in found.values())
    assert list(redundant(model(), ["b"], Limits())) == ["b"]


def test_a_claim_that_says_more_than_inference_stays_with_what_follows_from_it() -> None:
    given = model()
    given.graph.inputs[0].shape = ir.Shape(["n", 3])
    assert list(redundant(given, ["a", "b"], Limits())) == []
