"""Concatenated ranges that differ much, and weights without an integer form."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from samples import context_for, feeds_for
from support import model_from_text, run

from passes.quantize import Quantize


def head(end: str) -> ir.Model:
    rng = np.random.default_rng(0)
    text = f"""g (float[1,4,6,6] x) => (float y) {{
        boxes = Conv (x, large)
        logits = Conv (x, small)
        shares = Sigmoid (logits)
        both = Concat <axis = 1> (boxes, shares)
        {end}
    }}"""
    constants = {
        "large": (rng.standard_normal((4, 4, 1, 1)) * 200).astype(np.float32),
        "small": rng.standard_normal((3, 4, 1, 1)).astype(np.float32),
        "next": (rng.standard_normal((2, 7, 1, 1)) / 3).astype(np.float32),
    }
    kept = {name: array for name, array in constants.items() if name in text}
    return model_from_text(text, opset=17, **kept)


def quantized(model: ir.Model) -> str:
    settings = Quantize(method="minmax", speed="max")
    return " ".join(settings.apply(model, context_for(model)).notes)


def test_parts_keep_their_grids_where_float_reads_the_whole() -> None:
    end = "z = Conv (both, next)\n t = Tanh (both)\n m = Tanh (z)\n y = Concat <axis = 1> (t, m)"
    model, before = head(end), head(end)
    quantized(model)
    first = next(n for n in model.graph if n.op_type == "Concat" and len(n.outputs[0].uses()) > 1)
    assert [value.producer().op_type for value in first.inputs][1] == "Sigmoid"
    feed = feeds_for(before, 1)[0]
    exact, found = run(before, feed)["y"], run(model, feed)["y"]
    # tanh of shares: wrong by half a step of a grid of 256 steps over 0..1, not over 0..1000
    np.testing.assert_allclose(found[:, 4:7], exact[:, 4:7], atol=0.02)


def test_integers_only_is_said() -> None:
    model = head("y = Conv (both, next)")
    notes = quantized(model)
    assert "1 Concat join ranges that differ more than 16-fold" in notes
    assert any(node.op_type == "Concat" for node in model.graph)


def test_even_ranges_are_joined_silently() -> None:
    text = """g (float[1,4,6,6] x) => (float y) {
        a = Conv (x, w)
        b = Conv (x, v)
        c = Concat <axis = 1> (a, b)
        y = Conv (c, u)
    }"""
    shapes = {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1), "u": (2, 8, 1, 1)}
    rng = np.random.default_rng(1)
    constants = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    assert "Concat" not in quantized(model_from_text(text, opset=17, **constants))


def test_transposed_convolutions_are_named() -> None:
    weight = np.ones((4, 2, 2, 2), np.float32)
    text = "g (float[1,4,6,6] x) => (float y) { y = ConvTranspose (x, w) \n}"
    model = model_from_text(text, opset=17, w=weight)
    outcome = Quantize(method="minmax").apply(model, context_for(model))
    assert [skip.reason for skip in outcome.skipped] == [
        "no integer form in onnxruntime; quantize_weights makes its weights smaller"
    ]
