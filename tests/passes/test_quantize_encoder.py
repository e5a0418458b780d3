"""What ``quantize`` does by default with transformers, recurrent layers and embeddings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import support
from fusion import optimised_ops

from converter.core.contract import Outcome
from passes.dynamic.encoder import Wish, better_dynamic, has_attention
from passes.dynamic.gelu import expand
from passes.quantize import Quantize
from passes.quantize_dynamic import QuantizeDynamic

sys.path.insert(0, str(Path(__file__).parent / "affine"))
from samples import context_for

WIDTH = 64


def weights(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def encoder(wide: float = 1.0) -> ir.Model:
    """An embedding, one post-norm layer of attention and GELU, a channel of which is wide."""
    scale = np.ones(WIDTH, np.float32)
    scale[7] = wide
    return support.model_from_text(
        f"""encoder (int64[2,6] ids) => (float[2,6,{WIDTH}] y) {{
            x0 = Gather (table, ids)
            x = LayerNormalization (x0, s1, t1)
            q = MatMul (x, wq)
            k0 = MatMul (x, wk)
            k = Transpose <perm = [0, 2, 1]> (k0)
            v = MatMul (x, wv)
            l = MatMul (q, k)
            p = Softmax <axis = -1> (l)
            c = MatMul (p, v)
            o = MatMul (c, wo)
            r = Add (o, x)
            n = LayerNormalization (r, s2, t2)
            h0 = MatMul (n, w1)
            h = Add (h0, b1)
            d = Div (h, root)
            e = Erf (d)
            g = Add (e, one)
            m = Mul (h, g)
            a = Mul (m, half)
            f = MatMul (a, w2)
            z = Add (f, n)
            y = LayerNormalization (z, s1, t1)
        }}""",
        table=weights(600, WIDTH),
        s1=scale,
        s2=scale[::-1].copy(),
        t1=weights(WIDTH),
        t2=weights(WIDTH + 0),
        wq=weights(WIDTH, WIDTH),
        wk=weights(WIDTH, WIDTH),
        wv=weights(WIDTH, WIDTH),
        wo=weights(WIDTH, WIDTH),
        w1=weights(WIDTH, 4 * WIDTH),
        b1=weights(4 * WIDTH),
        w2=weights(4 * WIDTH, WIDTH),
        root=np.float32(1.4142135),
        one=np.float32(1),
        half=np.float32(0.5),
    )


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    return [{"ids": rng.integers(0, 600, (2, 6))} for _ in range(8)]


def quantize(model: ir.Model, samples: Any = None, **parameters: Any) -> Outcome:
    return Quantize(**parameters).apply(model, context_for(model, samples))


def sqnr(before: ir.Model, after: ir.Model, samples: list[dict[str, np.ndarray]]) -> float:
    signal = noise = 0.0
    for feed in samples:
        (old,), (new,) = support.run(before, feed).values(), support.run(after, feed).values()
        signal += float((old.astype(np.float64) ** 2).sum())
        noise += float(((old.astype(np.float64) - new) ** 2).sum())
    return 10 * float(np.log10(signal / max(noise, 1e-30)))


def test_an_encoder_is_dynamic_by_default_and_nothing_else_is_rounded() -> None:
    model = encoder()
    before = model.clone()
    outcome = quantize(model, feeds())
    fused = optimised_ops(model)
    assert fused["DynamicQuantizeMatMul"] + fused["MatMulIntegerToFloat"] == 6
    assert not {"QuantizeLinear", "SkipLayerNormalization", "QLinearAdd"} & set(fused)
    assert outcome.counts["quantized_MatMul_dynamically"] == 6
    assert any("at run time" in note for note in outcome.notes)
    assert sqnr(before, model, feeds()) > 30


def test_wide_channels_are_smoothed_where_that_helps() -> None:
    model = encoder(wide=40.0)
    before, static = model.clone(), model.clone()
    outcome = quantize(model, feeds())
    quantize(static, feeds(), transformers="static", method="minmax", speed="max")
    assert any("smoothed" in note for note in outcome.notes)
    assert sqnr(before, model, feeds()) > sqnr(before, static, feeds()) + 6


def test_speed_goes_before_smoothing_when_asked() -> None:
    model = encoder(wide=40.0)
    outcome = quantize(model, feeds(), speed="max")
    assert not any("smoothed" in note for note in outcome.notes)
    fused = optimised_ops(model)
    assert fused["LayerNormalization"] == 3
    assert fused["Gelu"] == 1


def test_gelu_as_one_operator_takes_up_factors_too() -> None:
    model = support.model_from_text(
        """g (float[2,5,64] x) => (float[2,5,64] y) {
            h0 = MatMul (x, w1)
            h = Add (h0, b1)
            a = Gelu (h)
            y = MatMul (a, w2)
        }""",
        opset=20,
        w1=weights(WIDTH, 256) * np.where(np.arange(256) == 9, 40, 1).astype(np.float32),
        b1=weights(256),
        w2=weights(256, WIDTH),
    )
    before, plain = model.clone(), model.clone()
    outcome = quantize(model)
    assert any("1 activations were smoothed" in note for note in outcome.notes)
    QuantizeDynamic().apply(plain, context_for(plain))
    samples = [dict(batch.inputs) for batch in context_for(before).dataset or ()]
    assert sqnr(before, model, samples) > sqnr(before, plain, samples) + 6


def test_gelu_that_is_written_as_arithmetic_is_joined_again() -> None:
    model = support.model_from_text("g (float[2,64] x) => (float[2,64] y) { y = Gelu (x) }",
                                    opset=20)  # fmt: skip
    before = model.clone()
    assert expand(model, model.graph.outputs) == 1
    assert optimised_ops(model) == {"Gelu": 1}
    feed = {"x": np.random.default_rng(2).standard_normal((2, 64)).astype(np.float32) * 3}
    support.assert_same_outputs(before, model, feed)


def test_a_named_method_is_static_but_for_products_after_gelu() -> None:
    model = encoder()
    quantize(model, feeds(), method="minmax", speed="max")
    operators = support.op_types(model)
    assert operators.count("MatMulInteger") == 1
    assert "QuantizeLinear" in operators


def test_dynamic_can_be_named_too() -> None:
    model = encoder()
    quantize(model, feeds(), method="minmax", transformers="dynamic")
    assert support.op_types(model).count("MatMulInteger") == 6


def test_excluded_products_stay_in_float() -> None:
    model = encoder()
    quantize(model, feeds(), exclude=("f",))
    assert support.op_types(model).count("MatMulInteger") == 5


def test_normalizations_written_as_arithmetic_become_one_operator_first() -> None:
    model = support.model_from_text(
        """g (float[2,5,64] x) => (float[2,5,64] y) {
            m = ReduceMean <axes = [-1]> (x)
            c = Sub (x, m)
            q = Mul (c, c)
            v = ReduceMean <axes = [-1]> (q)
            e = Add (v, eps)
            s = Sqrt (e)
            d = Div (c, s)
            g = Mul (d, scale)
            n = Add (g, shift)
            a = MatMul (n, w)
            t = Transpose <perm = [0, 2, 1]> (a)
            l = MatMul (a, t)
            p = Softmax <axis = -1> (l)
            o = MatMul (p, a)
            y = Add (o, n)
        }""",
        opset=14,
        eps=np.float32(1e-5),
        scale=np.where(np.arange(WIDTH) == 3, 50, 1).astype(np.float32),
        shift=weights(WIDTH),
        w=weights(WIDTH, WIDTH),
    )
    before, kept = model.clone(), model.clone()
    outcome = quantize(model)
    assert support.op_types(model).count("LayerNormalization") == 2
    assert any("raised to 17" in note for note in outcome.notes)
    context = context_for(kept)
    context.keep_opset = True
    Quantize().apply(kept, context)
    assert "LayerNormalization" not in support.op_types(kept)
    samples = [dict(batch.inputs) for batch in context.dataset or ()]
    assert sqnr(before, model, samples) > sqnr(before, kept, samples) + 3


def test_same_bytes_twice() -> None:
    model = encoder(wide=40.0)
    twin = model.clone()
    quantize(model, feeds())
    quantize(twin, feeds())
    first, second = (ir.to_proto(m).SerializeToString(deterministic=True) for m in (model, twin))
    assert first == second


def test_recurrent_layers_that_stay_in_float_are_named() -> None:
    model = support.model_from_text(
        """g (float[7,2,48] x) => (float[7,1,2,64] y, float[7,1,2,64] z) {
            y = LSTM <hidden_size = 64> (x, w, r)
            z = GRU <hidden_size = 64> (x, v, u)
        }""",
        w=weights(1, 256, 48) / 8,
        r=weights(1, 256, 64) / 8,
        v=weights(1, 192, 48) / 8,
        u=weights(1, 192, 64) / 8,
    )
    outcome = quantize(model, method="minmax")
    assert not outcome.modified
    found = {skip.subject: skip.reason for skip in outcome.skipped}
    assert "transformers=dynamic" in found["y (LSTM)"]
    assert "float only" in found["z (GRU)"]
    found = {skip.subject: skip.reason for skip in quantize(model).skipped}
    assert list(found) == ["z (GRU)"]


def test_lstm_and_tables_are_dynamic_in_other_models() -> None:
    model = support.model_from_text(
        """g (float[7,2,48] x) => (float[7,1,2,64] y) {
            y = LSTM <hidden_size = 64> (x, w, r)
        }""",
        w=weights(1, 256, 48) / 8,
        r=weights(1, 256, 64) / 8,
    )
    outcome = quantize(model)
    assert outcome.counts["quantized_LSTM_dynamically"] == 1
    assert any("recurrent" in note for note in outcome.notes)


@pytest.mark.parametrize(
    ("text", "attention"),
    [
        ("p = Softmax (x) y = MatMul (p, x)", True),
        ("p = Softmax (x) d = Identity (p) y = MatMul (d, x)", True),
        ("p = Softmax (x) y = MatMul (p, w)", False),
        ("m = MatMul (x, x) y = Softmax (m)", False),
    ],
)
def test_attention_is_known_by_its_structure(text: str, *, attention: bool) -> None:
    model = support.model_from_text(
        f"g (float[64,64] x) => (float[64,64] y) {{ {text} }}", w=weights(64, 64)
    )
    assert has_attention(model) is attention


def test_classifiers_of_convolutional_models_stay_static() -> None:
    model = support.model_from_text(
        """g (float[1,256,4,4] x) => (float[1,600] y) {
            c = Conv (x, w)
            r = Relu (c)
            q = GlobalAveragePool (r)
            f = Flatten (q)
            y = Gemm <transB = 1> (f, v, b)
        }""",
        w=weights(512, 256, 1, 1),
        v=weights(600, 512),
        b=weights(600),
    )
    assert not better_dynamic(model, Wish())
