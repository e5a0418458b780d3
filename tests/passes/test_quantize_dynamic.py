"""Dynamic quantization: what runs on integers, how close it stays, what is left alone and why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import placed
import pytest
import support
from fusion import optimised_ops

from converter.core import graph as g
from converter.core.context import Context
from converter.core.contract import Outcome
from passes.dynamic.residual import keep_apart
from passes.quantize_dynamic import QuantizeDynamic
from passes.simplify import Simplify

sys.path.insert(0, str(Path(__file__).parent / "affine"))
from samples import InProcess, context_for

RNG = np.random.default_rng(11)
FIXTURES = Path(__file__).parents[2] / "fixtures"


def weights(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def quantize(model: ir.Model, context: Context | None = None, **parameters: Any) -> Outcome:
    return QuantizeDynamic(**parameters).apply(model, context or Context(services=InProcess()))


def close(before: ir.Model, after: ir.Model, feed: dict[str, Any], least: float = 30.0) -> None:
    """The outputs have the same names and shapes, and at least so many dB of signal to noise."""
    old, new = support.run(before, feed), support.run(after, feed)
    assert list(old) == list(new)
    for name, expected in old.items():
        assert new[name].shape == expected.shape
        noise = ((expected.astype(np.float64) - new[name]) ** 2).sum()
        assert 10 * np.log10((expected.astype(np.float64) ** 2).sum() / noise) > least, name


def reasons(outcome: Outcome) -> dict[str, str]:
    return {skip.subject: skip.reason for skip in outcome.skipped}


def encoder(opset: int = 17) -> ir.Model:
    """Three projections of one value, a residual, LayerNormalization and two more products."""
    return support.model_from_text(
        """encoder (float[N,T,64] x) => (float[N,T,64] y) {
            q0 = MatMul (x, wq)
            q = Add (bq, q0)
            k0 = MatMul (x, wk)
            k = Add (k0, bk)
            v = MatMul (x, wv)
            m = Mul (q, k)
            s = Add (m, v)
            r = Add (s, x)
            n = LayerNormalization (r, scale, shift)
            h0 = MatMul (n, w1)
            h = Add (h0, b1)
            a = Relu (h)
            y = MatMul (a, w2)
        }""",
        opset=opset,
        wq=weights(64, 64),
        wk=weights(64, 64),
        wv=weights(64, 64),
        bq=weights(64),
        bk=weights(64),
        scale=np.ones(64, np.float32),
        shift=weights(64),
        w1=weights(64, 128),
        b1=weights(128),
        w2=weights(128, 64),
    )


def tokens(rows: int = 5, width: int = 64) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(3).standard_normal((2, rows, width)).astype(np.float32)}


class TestProducts:
    def test_an_encoder_runs_on_integers_and_reads_are_shared(self) -> None:
        model = encoder()
        before = model.clone()
        outcome = quantize(model)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        assert outcome.counts["quantized_MatMul"] == 5
        assert outcome.counts["values_quantized"] == 3
        fused = optimised_ops(model)
        assert fused["MatMulIntegerToFloat"] == 3
        assert fused["DynamicQuantizeMatMul"] == 2
        assert "MatMul" not in fused
        assert "MatMulInteger" not in fused
        # The biases are fused too; one Add is left: that of two activations.
        assert fused["Add"] == 1
        close(before, model, tokens())

    def test_sums_before_layer_normalization_stay_two_operators(self) -> None:
        model = encoder()
        outcome = quantize(model)
        assert outcome.counts["sums_kept_apart"] == 1
        fused = optimised_ops(model)
        assert fused["LayerNormalization"] == 1
        assert "SkipLayerNormalization" not in fused

    def test_the_sum_of_a_constant_is_no_residual(self) -> None:
        model = support.model_from_text(
            """g (float[1,4,8] x) => (float[1,4,8] y) {
                a = Add (x, b)
                y = LayerNormalization (a, s)
            }""",
            b=weights(8),
            s=weights(8),
        )
        assert keep_apart(model) == 0

    def test_sums_of_other_types_stay(self) -> None:
        model = support.model_from_text(
            """g (float16[1,4,8] x) => (float16[1,4,8] y) {
                a = Add (x, x)
                y = LayerNormalization (a, s)
            }""",
            s=weights(8).astype(np.float16),
        )
        assert keep_apart(model) == 0

    def test_names_of_values_stay(self) -> None:
        model = encoder()
        names = {o.name for node in model.graph for o in node.outputs}
        quantize(model)
        assert names <= {o.name for node in model.graph for o in node.outputs}

    @pytest.mark.parametrize("turned", [0, 1])
    @pytest.mark.parametrize("bias", [(64,), (1, 64), (1,), ()])
    def test_gemm(self, turned: int, bias: tuple[int, ...]) -> None:
        model = support.model_from_text(
            f"""g (float[8,64] x) => (float[8,64] y) {{
                y = Gemm <transB = {turned}, alpha = 0.5> (x, w, b)
            }}""",
            w=weights(64, 64),
            b=np.asarray(RNG.standard_normal(bias), np.float32),
        )
        before = model.clone()
        assert quantize(model).counts["quantized_Gemm"] == 1
        x = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
        close(before, model, {"x": x})

    def test_a_transposed_weight_is_stored_as_it_is_read(self) -> None:
        model = support.model_from_text(
            """g (float[N,T,64] x) => (float[N,T,96] y) {
                t = Transpose <perm = [1, 0]> (w)
                i = Identity (t)
                y = MatMul (x, i)
            }""",
            w=weights(96, 64),
        )
        before = model.clone()
        quantize(model)
        assert "Transpose" not in support.op_types(model)
        assert "w" not in model.graph.initializers
        close(before, model, tokens())

    def test_a_weight_read_twice_is_stored_once(self) -> None:
        model = support.model_from_text(
            """g (float[N,T,64] x) => (float[N,T,64] y) {
                a = MatMul (x, w)
                b = Tanh (a)
                y = MatMul (b, w)
            }""",
            w=weights(64, 64),
        )
        before = model.clone()
        assert quantize(model).counts["weights_quantized"] == 1
        close(before, model, tokens())

    def test_zeros_stay_zero_and_dead_channels_are_exact(self) -> None:
        w = weights(64, 64)
        w[np.abs(w) < 0.1] = 0
        w[:, 5] = 0
        text = "g (float[N,T,64] x) => (float[N,T,64] y) { y = MatMul (x, w) }"
        model = support.model_from_text(text, w=w)
        quantize(model)
        integers = g.constant_array(model.graph.initializers["w_quantized"])
        assert integers is not None
        assert not integers[w == 0].any()
        assert not support.run(model, tokens())["y"][..., 5].any()

    def test_one_scale_per_tensor(self) -> None:
        model = encoder()
        before = model.clone()
        quantize(model, per_channel=False)
        assert all(
            v.const_value is not None and v.const_value.size == 1
            for name, v in model.graph.initializers.items()
            if name.endswith("_scale")
        )
        close(before, model, tokens(), least=25)

    @pytest.mark.parametrize("where", placed.PLACES)
    def test_every_scope(self, where: str) -> None:
        text = """g (float[2,5,64] x) => (float y) {
            a = MatMul (x, w)
            b = Add (a, c)
            y = MatMul (b, v)
        }"""
        made = support.model_from_text(text, w=weights(64, 64), c=weights(64), v=weights(64, 64))
        made.graph.outputs[0].shape = None
        model = placed.place(made, where)
        before = model.clone()
        assert quantize(model).counts["quantized_MatMul"] == 2
        assert all(t.dtype != ir.DataType.FLOAT or t.size <= 64 for t in g.tensors(model))
        feed = {v.name: np.ones((), bool) for v in model.graph.inputs if v.name != "x"}
        close(before, model, {**feed, **tokens()})


class TestGelu:
    TEXT = """g (float[2,5,64] x) => (float[2,5,64] y) {
        h0 = MatMul (x, w1)
        h = Add (h0, b1)
        d = Div (h, root)
        e = Erf (d)
        o = Add (e, one)
        a = Mul (h, o)
        y = MatMul (a, w2)
    }"""

    def model(self, root: float = 2**0.5) -> ir.Model:
        return support.model_from_text(
            self.TEXT,
            w1=weights(64, 128),
            b1=weights(128),
            w2=weights(128, 64),
            root=np.float32(root),
            one=np.float32(1),
        )

    def test_arithmetic_without_its_half_is_joined(self) -> None:
        model = self.model()
        before = model.clone()
        assert quantize(model).counts["gelus_joined"] == 1
        fused = optimised_ops(model)
        assert fused["Gelu"] + fused["BiasGelu"] == 1
        assert "Erf" not in fused
        close(before, model, tokens())

    def test_arithmetic_in_another_order_is_joined(self) -> None:
        text = self.TEXT.replace("a = Mul (h, o)", "i = Mul (o, half) a = Mul (h, i)")
        constants = {n: v.const_value.numpy() for n, v in self.model().graph.initializers.items()
                     if v.const_value is not None}  # fmt: skip
        model = support.model_from_text(text, half=np.float32(0.5), **constants)
        before = model.clone()
        assert quantize(model).counts["gelus_joined"] == 1
        assert optimised_ops(model)["Gelu"] == 1
        assert support.op_types(model).count("Erf") == 1
        close(before, model, tokens())

    def test_other_arithmetic_stays(self) -> None:
        model = self.model(root=1.5)
        before = model.clone()
        assert "gelus_joined" not in quantize(model).counts
        close(before, model, tokens())


class TestTables:
    def table(self, body: str, **more: np.ndarray) -> ir.Model:
        return support.model_from_text(
            f"g (int64[N,T] ids) => (float[N,T,M] y) {{ {body} }}", table=weights(400, 64), **more
        )

    def test_rows_have_scales_of_their_own(self) -> None:
        model = self.table("y = Gather (table, ids)")
        rows = model.graph.initializers["table"].const_value
        assert rows is not None
        scaled = rows.numpy() * np.logspace(-3, 3, 400, dtype=np.float32)[:, None]
        g.set_constant(model.graph.initializers["table"], scaled)
        before = model.clone()
        quantize(model)
        for row in (0, 399, -1):
            close(before, model, {"ids": np.array([[row]])}, least=40)
        assert sum(t.nbytes for t in g.tensors(model)) < 400 * 70

    def test_a_table_that_is_a_weight_too_is_stored_once(self) -> None:
        model = self.table("r = Gather (table, ids) t = Transpose <perm = [1, 0]> (table) "
                           "y = MatMul (r, t)")  # fmt: skip
        before = model.clone()
        outcome = quantize(model)
        assert outcome.counts["weights_quantized"] == 1
        assert sum(t.nbytes for t in g.tensors(model)) < 400 * 74
        close(before, model, {"ids": np.arange(6).reshape(1, 6)})

    def test_a_table_that_is_read_in_float_stays(self) -> None:
        model = self.table("r = Gather (table, ids) s = ReduceSum <keepdims = 0> (table) "
                           "y = Add (r, s)")  # fmt: skip
        outcome = quantize(model)
        assert not outcome.modified
        assert any("in float too" in reason for reason in reasons(outcome).values())

    def test_embeddings_can_be_left(self) -> None:
        model = self.table("y = Gather (table, ids)")
        assert not quantize(model, embeddings=False).modified


class TestRecurrent:
    def test_a_trained_lstm_keeps_its_answers(self) -> None:
        model = ir.load(FIXTURES / "digits_lstm.onnx")
        Simplify().apply(model, Context(services=InProcess()))
        before = model.clone()
        assert quantize(model).counts["quantized_LSTM"] == 1
        with np.load(FIXTURES / "digits_rows_test.npz") as data:
            feed = {v.name or "": data[v.name or ""][:100] for v in model.graph.inputs}
        old, new = (next(iter(support.run(m, feed).values())) for m in (before, model))
        assert (old.argmax(1) == new.argmax(1)).mean() >= 0.98
        close(before, model, feed, least=25)

    @pytest.mark.parametrize("direction", ["forward", "bidirectional"])
    def test_lstm_of_every_direction(self, direction: str) -> None:
        model = lstm(direction)
        before = model.clone()
        assert quantize(model).counts["quantized_LSTM"] == 1
        assert optimised_ops(model)["DynamicQuantizeLSTM"] == 1
        feed = {"x": np.random.default_rng(5).standard_normal((7, 2, 48)).astype(np.float32)}
        close(before, model, feed)

    def test_what_stays_in_float_and_why(self) -> None:
        model = support.model_from_text(
            """g (float[1,8,16,16] x, float[7,2,48] s) => (float y, float h) {
                y = Conv <pads = [1, 1, 1, 1]> (x, w)
                h, hn = GRU <hidden_size = 32> (s, gw, gr)
            }""",
            w=weights(64, 8, 3, 3),
            gw=weights(1, 96, 48),
            gr=weights(1, 96, 32),
        )
        outcome = quantize(model)
        assert not outcome.modified
        assert "dynamic ranges" in reasons(outcome)["y (Conv)"]
        assert "float only" in reasons(outcome)["h (GRU)"]


def lstm(direction: str = "forward", extra: str = "") -> ir.Model:
    count = 2 if direction == "bidirectional" else 1
    return support.model_from_text(
        f"""g (float[S,B,48] x) => (float[S,D,B,64] y, float[D,B,64] h) {{
            y, h = LSTM <hidden_size = 64, direction = "{direction}"{extra}> (x, w, r, b)
        }}""",
        w=weights(count, 256, 48) / 8,
        r=weights(count, 256, 64) / 8,
        b=weights(count, 512),
    )


class TestLeftAlone:
    def one(self, **constants: np.ndarray) -> ir.Model:
        text = "g (float[N,T,64] x) => (float[N,T,M] y) { y = MatMul (x, w) }"
        return support.model_from_text(text, **constants)

    @pytest.mark.parametrize(
        ("weight", "reason"),
        [
            (weights(64, 8), "too small"),
            (np.full((64, 64), np.nan, np.float32), "NaN"),
            (weights(2, 64, 64), "not a matrix"),
        ],
    )
    def test_weights_that_do_not_pay_or_fit(self, weight: np.ndarray, reason: str) -> None:
        outcome = quantize(self.one(w=weight))
        assert not outcome.modified
        assert reason in reasons(outcome)["y (MatMul)"]

    def test_other_types_and_left_operands(self) -> None:
        text = "g (float16[N,64] x) => (float16[N,64] y) { y = MatMul (x, w) }"
        model = support.model_from_text(text, w=weights(64, 64).astype(np.float16))
        assert "float16" in reasons(quantize(model))["y (MatMul)"]
        text = "g (float[64,5] x) => (float[64,5] y) { y = MatMul (w, x) }"
        model = support.model_from_text(text, w=weights(64, 64))
        assert "left operand" in reasons(quantize(model))["y (MatMul)"]

    def test_one_row_needs_a_larger_weight(self) -> None:
        text = "g (float[N,K] x) => (float[N,M] y) { y = MatMul (x, w) }"
        assert not quantize(support.model_from_text(text, w=weights(64, 64))).modified
        assert quantize(support.model_from_text(text, w=weights(512, 256))).modified

    def test_weights_that_callers_may_override(self) -> None:
        text = """g (float[N,T,64] x, float[64,64] w) => (float[N,T,64] y) { y = MatMul (x, w) }"""
        model = support.model_from_text(text, w=weights(64, 64))
        outcome = quantize(model)
        assert not outcome.modified
        assert g.OVERRIDABLE in reasons(outcome).values()

    def test_include_exclude_and_patterns_without_a_node(self) -> None:
        model = encoder()
        assert quantize(model, include=("q0",)).counts["quantized_MatMul"] == 1
        outcome = quantize(encoder(), exclude=("op:MatMul", "nobody"))
        assert not outcome.modified
        assert reasons(outcome)["nobody"] == "matches no node"

    def test_second_run_changes_nothing_and_bytes_repeat(self) -> None:
        model = encoder()
        twin = model.clone()
        quantize(model)
        quantize(twin)
        first = ir.to_proto(model).SerializeToString(deterministic=True)
        assert first == ir.to_proto(twin).SerializeToString(deterministic=True)
        assert not quantize(model).modified
        assert first == ir.to_proto(model).SerializeToString(deterministic=True)


class TestOpset:
    TEXT = "g (float[2,5,64] x) => (float[2,5,64] y) { y = MatMul (x, w) }"

    @pytest.mark.parametrize("with_data", [True, False])
    def test_an_old_opset_is_raised_and_said(self, *, with_data: bool) -> None:
        model = support.model_from_text(self.TEXT, opset=9, w=weights(64, 64))
        before = model.clone()
        outcome = quantize(model, context_for(model) if with_data else None)
        assert g.opset(model) == 13
        assert any("raised to 13" in note for note in outcome.notes)
        close(before, model, tokens())

    def test_or_kept_when_told(self) -> None:
        model = support.model_from_text(self.TEXT, opset=9, w=weights(64, 64))
        outcome = quantize(model, Context(services=InProcess(), keep_opset=True))
        assert not outcome.modified
        assert "too old" in reasons(outcome)["y (MatMul)"]
        assert g.opset(model) == 9

    @pytest.mark.parametrize("opset", [11, 13, 15, 18, 21])
    def test_every_opset_is_fused(self, opset: int) -> None:
        model = support.model_from_text(self.TEXT, opset=opset, w=weights(64, 64))
        quantize(model)
        assert optimised_ops(model)["DynamicQuantizeMatMul"] == 1
