"""``fuse``: BatchNormalization into weights, for every layout, and when it must stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from exact import check
from support import model_from_text, op_types

from converter.core.tensors import MappedTensor
from passes import Fuse
from passes.fusion.batch_norm import ScaleChannels

RNG = np.random.default_rng(3)


def arrays(channels: int, dtype: Any = np.float32, **more: np.ndarray) -> dict[str, np.ndarray]:
    norm = {
        "scale": RNG.uniform(0.5, 2, channels),
        "shift": RNG.standard_normal(channels),
        "mean": RNG.standard_normal(channels),
        "var": RNG.uniform(0.2, 3, channels),
    }
    return {name: np.asarray(a).astype(dtype) for name, a in {**norm, **more}.items()}


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape) / 4


BN = "y = BatchNormalization <epsilon = 0.001> (c, scale, shift, mean, var)"

LAYERS = {
    "conv": ("c = Conv (x, w)", "N,4,7,7", 6, {"w": weight(6, 4, 3, 3)}),
    "conv with bias": (
        "c = Conv (x, w, b)",
        "N,4,7,7",
        6,
        {"w": weight(6, 4, 3, 3), "b": weight(6)},
    ),
    "padded, strided, grouped conv": (
        "c = Conv <group = 2, pads = [1, 1, 1, 1], strides = [2, 2]> (x, w)",
        "N,4,7,7",
        6,
        {"w": weight(6, 2, 3, 3)},
    ),
    "depthwise conv": ("c = Conv <group = 4> (x, w)", "N,4,7,7", 4, {"w": weight(4, 1, 3, 3)}),
    "conv in one dimension": ("c = Conv (x, w)", "N,4,9", 5, {"w": weight(5, 4, 3)}),
    "conv in three": ("c = Conv (x, w)", "N,2,4,4,4", 3, {"w": weight(3, 2, 2, 2, 2)}),
    "transposed conv": ("c = ConvTranspose (x, w)", "N,4,5,5", 6, {"w": weight(4, 6, 3, 3)}),
    "grouped transposed conv": (
        "c = ConvTranspose <group = 2> (x, w, b)",
        "N,4,5,5",
        6,
        {"w": weight(4, 3, 3, 3), "b": weight(6)},
    ),
    "gemm": ("c = Gemm (x, w, b)", "N,4", 6, {"w": weight(4, 6), "b": weight(6)}),
    "gemm, weight transposed": ("c = Gemm <transB = 1> (x, w)", "N,4", 6, {"w": weight(6, 4)}),
    "gemm with factors and one bias for all": (
        "c = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)",
        "N,4",
        6,
        {"w": weight(6, 4), "b": np.array(0.7)},
    ),
    "gemm with a bias row": (
        "c = Gemm (x, w, b)",
        "N,4",
        6,
        {"w": weight(4, 6), "b": weight(1, 6)},
    ),
}


@pytest.mark.parametrize("opset", [9, 14, 17])
@pytest.mark.parametrize("case", LAYERS)
def test_folds_into(case: str, opset: int) -> None:
    body, shape, channels, constants = LAYERS[case]
    if opset < 11 and case == "gemm, weight transposed":
        pytest.skip("Gemm needs its bias before operator set 11")
    text = f"g (float[{shape}] x) => (float y) {{ {body} {BN} }}"
    model = model_from_text(text, opset=opset, **arrays(channels, **constants))
    model.graph.outputs[0].shape = None
    outcome = check(Fuse(), model, tolerance=2e-6)
    assert outcome.counts == {"batch_norms_fused": 1.0}
    assert len(op_types(model)) == 1
    assert "w" in model.graph.initializers  # names of weights survive


def test_half_precision() -> None:
    text = f"g (float16[N,4,7,7] x) => (float16 y) {{ c = Conv (x, w) {BN} }}"
    model = model_from_text(text, **arrays(6, np.float16, w=weight(6, 4, 3, 3)))
    model.graph.outputs[0].shape = None
    check(Fuse(), model, tolerance=5e-3)
    assert op_types(model) == ["Conv"]
    assert model.graph.initializers["w"].const_value.numpy().dtype == np.float16


def test_double_precision() -> None:
    text = f"g (double[N,4] x) => (double y) {{ c = Gemm (x, w, b) {BN} }}"
    model = model_from_text(text, **arrays(6, np.float64, w=weight(4, 6), b=weight(6)))
    model.graph.outputs[0].shape = None
    check(Fuse(), model, tolerance=1e-12)
    assert op_types(model) == ["Gemm"]


KEPT = {
    "output used elsewhere": ("c = Conv (x, w) a = {bn} y = Sub (a, c)", "used elsewhere"),
    "public output": ("c = Conv (x, w) {y}", "public"),
    "shared weight": ("e = Conv (x, w) c = Conv (x, w) a = {bn} y = Add (a, e)", "shared"),
    "weight from outside": ("c = Conv (x, v) {y}", "no constant"),
    "training": ("c = Conv (x, w) y, m, v2 = {train}", "training"),
}


@pytest.mark.parametrize("case", KEPT)
def test_stays(case: str) -> None:
    body, reason = KEPT[case]
    call = "BatchNormalization (c, scale, shift, mean, var)"
    train = "BatchNormalization <training_mode = 1> (c, scale, shift, mean, var)"
    body = body.format(bn=call, y=f"y = {call}", train=train)
    extra = ", float[A,B,C,D] c" if case == "public output" else ""
    text = f"g (float[N,4,5,5] x, float[6,4,3,3] v) => (float[E,F,G,H] y{extra}) {{ {body} }}"
    model = model_from_text(text, **arrays(6, w=weight(6, 4, 3, 3)))
    outcome = check(Fuse(), model)
    assert not outcome.modified
    assert any(reason in skip.reason for skip in outcome.skipped)


def test_overflow_and_broken_statistics_stay() -> None:
    made = arrays(6, np.float16, w=weight(6, 4, 3, 3) * 4)
    made["scale"][0] = 60000
    made["var"][0] = 0
    model = model_from_text(
        f"g (float16[N,4,5,5] x) => (float16[A,B,C,D] y) {{ c = Conv (x, w) {BN} }}", **made
    )
    assert not check(Fuse(), model).modified


def test_shared_statistics_are_read_by_both() -> None:
    made = arrays(4, w=weight(4, 4, 1, 1), w2=weight(4, 4, 1, 1), b=weight(4), b2=weight(4))
    model = model_from_text(
        """g (float[N,4,5,5] x) => (float[N,4,5,5] y) {
            c = Conv (x, w, b) d = BatchNormalization (c, scale, shift, mean, var) r = Relu (d)
            e = Conv (r, w2, b2) y = BatchNormalization (e, scale, shift, mean, var) }""",
        **made,
    )
    check(Fuse(), model, tolerance=2e-6)
    assert op_types(model) == ["Conv", "Relu", "Conv"]
    assert set(model.graph.initializers) == {"w", "w2", "b", "b2"}


def test_a_new_bias_must_be_paid_for() -> None:
    made = arrays(64, w=weight(64, 4, 1, 1), w2=weight(64, 64, 1, 1))
    model = model_from_text(
        """g (float[N,4,5,5] x) => (float[N,64,5,5] y) {
            c = Conv (x, w) d = BatchNormalization (c, scale, scale, scale, scale)
            e = Conv (d, w2) y = BatchNormalization (e, scale, scale, scale, scale) }""",
        **{name: made[name] for name in ("scale", "w", "w2")},
    )
    check(Fuse(), model, tolerance=5e-6)


def test_large_weights_are_scaled_when_read() -> None:
    made = arrays(256, w=weight(256, 128, 3, 3).astype(np.float32))
    model = model_from_text(
        f"g (float[N,128,4,4] x) => (float[A,B,C,D] y) {{ c = Conv (x, w) {BN} }}", **made
    )
    check(Fuse(), model, tolerance=5e-6)
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, MappedTensor)
    assert isinstance(tensor.shape, ir.Shape)


def test_scale_follows_the_position_in_the_flat_weight() -> None:
    scale = ScaleChannels(np.array([1.0, 10.0]), 3)
    flat = np.arange(12, dtype=np.float32)
    expected = flat * np.tile(np.repeat([1.0, 10.0], 3), 2)
    parts = [scale(flat[i : i + 5], i) for i in range(0, 12, 5)]
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_inside_a_function_the_weights_become_constant_nodes() -> None:
    vectors = " ".join(
        f"{name} = Constant <value = float[2] {{{values}}}> ()"
        for name, values in (
            ("scale", "1.0, 2.0"),
            ("shift", "0.5, 0.25"),
            ("mean", "0.0, 1.0"),
            ("var", "1.0, 2.0"),
        )
    )
    model = model_from_text(
        f"""<ir_version: 8, opset_import: ["" : 17, "l" : 1]>
        g (float[N,1,4] x) => (float[N,2,4] y) {{ y = l.f (x) }}
        <domain: "l", opset_import: ["" : 17]>
        f (x) => (y) {{ w = Constant <value = float[2,1,1] {{3.0, 4.0}}> () {vectors}
            c = Conv (x, w) y = BatchNormalization (c, scale, shift, mean, var) }}"""
    )
    check(Fuse(), model, tolerance=2e-6)
    (function,) = model.functions.values()
    assert [node.op_type for node in function if node.op_type != "Constant"] == ["Conv"]
