"""Static quantization of whole models: placement, accuracy, what is left alone and why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import support
from fusion import optimised_ops

from converter.core.contract import Outcome
from converter.core.graph import tensors
from converter.errors import LimitExceededError
from passes.quantize import Quantize

sys.path.insert(0, str(Path(__file__).parent / "affine"))
from samples import context_for, feeds_for

RNG = np.random.default_rng(7)


def weights(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def quantize(model: ir.Model, feeds: Any = None, **parameters: Any) -> Outcome:
    outcome = Quantize(**{"speed": "max", **parameters}).apply(model, context_for(model, feeds))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return outcome


def sqnr(before: ir.Model, after: ir.Model) -> float:
    """Signal to noise of all outputs over the calibration feeds, in dB."""
    signal = noise = 0.0
    for feed in feeds_for(before):
        old, new = support.run(before, feed), support.run(after, feed)
        assert list(old) == list(new)
        for name, expected in old.items():
            assert new[name].shape == expected.shape
            signal += float((expected.astype(np.float64) ** 2).sum())
            noise += float(((expected.astype(np.float64) - new[name]) ** 2).sum())
    return 10 * float(np.log10(signal / max(noise, 1e-30)))


def reasons(outcome: Outcome) -> set[str]:
    return {skip.reason for skip in outcome.skipped}


def residual() -> ir.Model:
    """Conv, depthwise Conv with Clip, residual Add, pooling and a classifier."""
    return support.model_from_text(
        """residual (float[1,3,16,16] x) => (float[1,5] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            r = Relu (a)
            d = Conv <pads = [1, 1, 1, 1], group = 8> (r, w2, b2)
            k = Clip (d, low, high)
            p = Conv (k, w3)
            s = Add (r, p)
            t = Relu (s)
            m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (t)
            q = GlobalAveragePool (m)
            f = Flatten (q)
            y = Gemm <transB = 1> (f, w4, b4)
        }""",
        w1=weights(8, 3, 3, 3),
        b1=weights(8),
        w2=weights(8, 1, 3, 3),
        b2=weights(8),
        w3=weights(8, 8, 1, 1),
        w4=weights(5, 8),
        b4=weights(5),
        low=np.float32(0),
        high=np.float32(6),
    )


class TestPlacement:
    def test_a_residual_net_runs_wholly_on_integers(self) -> None:
        model = residual()
        before = model.clone()
        outcome = quantize(model)
        assert outcome.modified
        assert outcome.skipped == ()
        assert optimised_ops(model) == {
            "QuantizeLinear": 1,
            "QLinearConv": 3,
            "QLinearAdd": 1,
            "MaxPool": 1,
            "QLinearGlobalAveragePool": 1,
            "Flatten": 1,
            "QGemm": 1,
        }
        assert outcome.counts["activations_absorbed"] == 3
        assert sqnr(before, model) > 30

    @pytest.mark.parametrize("opset", [13, 18, 19, 21, 22, 23, 24])
    def test_every_opset_is_fused(self, opset: int) -> None:
        model = residual()
        model.graph.opset_imports[""] = opset
        model.ir_version = 10
        quantize(model)
        assert optimised_ops(model)["QLinearConv"] == 3
        assert "DequantizeLinear" not in optimised_ops(model)

    def test_float_constants_are_gone(self) -> None:
        model = residual()
        quantize(model)
        assert {v.dtype for v in model.graph.initializers.values() if v.shape != ir.Shape([])} <= {
            ir.DataType.INT8,
            ir.DataType.INT32,
            ir.DataType.FLOAT,
        }
        assert not {"w1", "b1", "low", "high"} & set(model.graph.initializers)

    def test_an_activation_that_others_read_stays(self) -> None:
        model = support.model_from_text(
            """g (float[1,4,8,8] x) => (float[1,4,8,8] y, float[1,4,8,8] c) {
                c = Conv (x, w)
                r = Relu (c)
                y = Conv (r, w)
            }""",
            w=weights(4, 4, 1, 1),
        )
        before = model.clone()
        quantize(model)
        assert "Relu" in support.op_types(model)
        assert optimised_ops(model)["QLinearConv"] == 2
        assert sqnr(before, model) > 30

    def test_a_clip_that_excludes_zero_stays(self) -> None:
        model = support.model_from_text(
            """g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
                c = Conv (x, w)
                y = Clip (c, low, high)
            }""",
            w=weights(4, 4, 1, 1),
            low=np.float32(0.5),
            high=np.float32(2),
        )
        before = model.clone()
        quantize(model)
        assert support.op_types(model).count("Clip") == 1
        assert sqnr(before, model) > 30

    @pytest.mark.parametrize("shape", ["2,6", "N,6", "2,3,6", "N,S,6"])
    def test_matmul_and_bias_are_fused_for_every_shape(self, shape: str) -> None:
        model = support.model_from_text(
            f"""g (float[{shape}] x) => (float[{shape}] y) {{
                a = MatMul (x, w1)
                b = Add (b1, a)
                r = Relu (b)
                c = MatMul (r, w2)
                y = Add (c, b2)
            }}""",
            w1=weights(6, 6),
            b1=weights(6),
            w2=weights(6, 6),
            b2=weights(6),
        )
        before = model.clone()
        quantize(model)
        found = optimised_ops(model)
        assert not {"MatMul", "Gemm", "FusedGemm"} & set(found)
        assert sqnr(before, model) > 30

    def test_followers_stay_float_where_no_integer_operator_reads_them(self) -> None:
        model = support.model_from_text(
            """g (float[1,4] x) => (float[1,4] y) {
                a = MatMul (x, w)
                b = Sub (x, a)
                c = Add (b, x)
                y = Softmax (c)
            }""",
            w=weights(4, 4),
        )
        outcome = quantize(model)
        assert "quantized_Add" not in outcome.counts
        assert optimised_ops(model)["MatMulIntegerToFloat"] == 1

    @pytest.mark.parametrize("other", ["x", "row", "one"])
    @pytest.mark.parametrize("shape", ["2,4", "N,4", "1,4", "2,3,4"])
    def test_matmul_before_any_add_does_not_become_a_float_gemm(
        self, other: str, shape: str
    ) -> None:
        model = support.model_from_text(
            f"""g (float[{shape}] x) => (float[{shape}] y) {{
                a = MatMul (x, w)
                b = Add (a, {other})
                y = Softmax (b)
            }}""",
            w=weights(4, 4),
            row=weights(1, 4),
            one=np.float32([[0.5]]),
        )
        before = model.clone()
        quantize(model)
        assert not {"MatMul", "Gemm"} & set(optimised_ops(model))
        assert sqnr(before, model) > 30

    def test_symmetric_grids_absorb_only_what_they_cut_off(self) -> None:
        model = support.model_from_text(
            """g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
                a = Conv (x, w)
                b = Clip (a, low, high)
                y = Conv (b, w)
            }""",
            w=weights(4, 4, 1, 1),
            low=np.float32(-0.1),
            high=np.float32(1),
        )
        before = model.clone()
        quantize(model, symmetric=True)
        assert sqnr(before, model) > 25

    def test_shared_weights_are_stored_once(self) -> None:
        model = support.model_from_text(
            """g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
                a = Conv (x, w, b)
                y = Conv (a, w, c)
            }""",
            w=weights(4, 4, 1, 1),
            b=weights(4),
            c=weights(4) * 1000,
        )
        before = model.clone()
        outcome = quantize(model)
        assert outcome.counts["weights_quantized"] == 1
        assert sum(t.dtype == ir.DataType.INT8 and t.size == 16 for t in tensors(model)) == 1
        assert sqnr(before, model) > 30

    def test_a_value_read_twice_is_quantized_once(self) -> None:
        model = support.model_from_text(
            """g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
                a = Conv (x, w)
                b = Conv (x, v)
                s = Mul (a, b)
                y = Conv (s, w)
            }""",
            w=weights(4, 4, 1, 1),
            v=weights(4, 4, 1, 1),
        )
        quantize(model)
        assert support.op_types(model).count("QuantizeLinear") == 5
        assert optimised_ops(model) == {
            "QuantizeLinear": 1,
            "QLinearConv": 3,
            "QLinearMul": 1,
            "DequantizeLinear": 1,
        }

    def test_inputs_and_outputs_in_the_middle_keep_names_and_types(self) -> None:
        model = support.model_from_text(
            """g (float[1,4,8,8] x) => (float[1,4,8,8] r, float[1,4,8,8] y) {
                a = Conv (x, w)
                r = Relu (a)
                y = Conv (r, w)
            }""",
            w=weights(4, 4, 1, 1),
        )
        before = model.clone()
        quantize(model)
        assert [v.name for v in model.graph.outputs] == ["r", "y"]
        assert sqnr(before, model) > 30

    def test_one_integer_operand_is_enough(self) -> None:
        model = support.model_from_text(
            """g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
                a = Conv (x, w)
                t = Tanh (x)
                s = Add (t, a)
                r = Relu (s)
                y = Conv (r, w)
            }""",
            w=weights(4, 4, 1, 1),
        )
        before = model.clone()
        quantize(model)
        found = optimised_ops(model)
        assert found["QLinearAdd"] == 1
        assert "Relu" not in found
        assert sqnr(before, model) > 30

    def test_constant_operands_get_a_grid(self) -> None:
        model = support.model_from_text(
            """g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
                a = Conv (x, w)
                m = Mul (a, gain)
                y = Conv (m, w)
            }""",
            w=weights(4, 4, 1, 1),
            gain=np.abs(weights(1, 4, 1, 1)),
        )
        before = model.clone()
        quantize(model)
        assert optimised_ops(model)["QLinearMul"] == 1
        assert sqnr(before, model) > 25


class TestParameters:
    def test_per_tensor_weights(self) -> None:
        model = residual()
        before = model.clone()
        quantize(model, per_channel=False)
        assert optimised_ops(model)["QLinearConv"] == 3
        assert sqnr(before, model) > 25

    def test_symmetric_activations(self) -> None:
        model = residual()
        before = model.clone()
        quantize(model, symmetric=True)
        points = [
            int(t.numpy()) for t in tensors(model) if t.dtype == ir.DataType.UINT8 and t.size == 1
        ]
        assert set(points) == {0, 128}
        assert sqnr(before, model) > 25

    def test_exclude_and_include(self) -> None:
        model = residual()
        outcome = quantize(model, exclude=("op:Gemm",))
        assert "quantized_Gemm" not in outcome.counts
        model = residual()
        assert quantize(model, include=("op:Gemm",)).counts == {
            "quantized_Gemm": 1,
            "values_on_grid": 1,
            "weights_quantized": 1,
        }

    def test_a_pattern_that_matches_nothing_is_reported(self) -> None:
        outcome = quantize(residual(), exclude=("no_such_node",))
        assert ("no_such_node", "matches no node") in {
            (s.subject, s.reason) for s in outcome.skipped
        }


class TestLeftAlone:
    def test_second_run_changes_nothing(self) -> None:
        model = residual()
        quantize(model)
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        outcome = quantize(model)
        assert not outcome.modified
        assert reasons(outcome) == {"already quantized"}
        assert "start from the float model" in outcome.notes[-1]
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before

    def test_float16_and_double(self) -> None:
        for kind, name in ((np.float16, "float16"), (np.float64, "double")):
            model = support.model_from_text(
                f"g ({name}[1,4] x) => ({name}[1,4] y) {{ y = MatMul (x, w) }}",
                w=weights(4, 4).astype(kind),
            )
            outcome = quantize(model, [])
            assert not outcome.modified
            assert reasons(outcome) == {f"the weight is {name}, not float32"}

    def test_weights_that_callers_may_override(self) -> None:
        model = support.model_from_text(
            "g (float[1,4] x, float[4,4] w) => (float[1,4] y) { y = MatMul (x, w) }",
            w=weights(4, 4),
        )
        outcome = quantize(model, [])
        assert not outcome.modified
        assert reasons(outcome) == {
            "it is an input that callers may override (the pass freeze changes that)"
        }

    def test_branches_that_hold_weights(self) -> None:
        model = support.model_from_text(
            """g (bool c, float[1,4] x) => (float[1,4] y) {
                y = If (c) <
                    then_branch = t () => (float[1,4] a) { a = MatMul (x, w) },
                    else_branch = e () => (float[1,4] b) { b = Identity (x) }
                >
            }""",
            w=weights(4, 4),
        )
        outcome = quantize(model, [])
        assert not outcome.modified
        assert reasons(outcome) == {"inside a sub-graph or function"}

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            (np.nan, "its values were NaN or infinite on the calibration data"),
            (np.inf, "its values were NaN or infinite on the calibration data"),
            (3e38, "its values are too large for 8 bits"),
        ],
    )
    def test_ranges_that_are_no_ranges(self, bad: float, reason: str) -> None:
        model = support.model_from_text(
            """g (float[1,4] x) => (float[1,4] y, float[1,4] z) {
                y = MatMul (x, w)
                t = Tanh (x)
                z = MatMul (t, w)
            }""",
            w=weights(4, 4),
        )
        feed = {"x": np.full((1, 4), bad, np.float32)}
        outcome = quantize(model, [feed, {"x": np.ones((1, 4), np.float32)}])
        assert reason in reasons(outcome)

    def test_weights_with_nan(self) -> None:
        bad = weights(4, 4)
        bad[0, 0] = np.nan
        model = support.model_from_text(
            "g (float[1,4] x) => (float[1,4] y) { y = MatMul (x, w) }", w=bad
        )
        outcome = quantize(model)
        assert not outcome.modified
        assert reasons(outcome) == {"the weight holds NaN or infinity"}

    def test_values_that_were_never_computed(self) -> None:
        model = support.model_from_text(
            "g (float[N,4] x) => (float[N,4] y) { y = MatMul (x, w) }", w=weights(4, 4)
        )
        outcome = quantize(model, [{"x": np.zeros((0, 4), np.float32)}])
        assert not outcome.modified
        assert reasons(outcome) == {"its values were never computed on the calibration data"}

    def test_input_from_gelu(self) -> None:
        model = support.model_from_text(
            """g (float[1,4] x) => (float[1,4] y) {
                a = MatMul (x, w)
                s = Div (a, root)
                e = Erf (s)
                o = Add (e, one)
                p = Mul (a, o)
                h = Mul (p, half)
                y = MatMul (h, w)
            }""",
            w=weights(4, 4),
            root=np.float32(1.4142135),
            one=np.float32(1),
            half=np.float32(0.5),
        )
        outcome = quantize(model)
        assert outcome.counts["quantized_MatMul"] == 1
        assert any("GELU" in reason for reason in reasons(outcome))

    def test_a_model_without_weights(self) -> None:
        model = support.model_from_text("g (float[2] x) => (float[2] y) { y = Relu (x) }")
        outcome = quantize(model)
        assert not outcome.modified
        assert outcome.skipped == ()


class TestOldOpsets:
    TEXT = """g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
        c = Conv (x, w)
        y = Relu (c)
    }"""

    @pytest.mark.parametrize("opset", [7, 9, 10, 12])
    def test_opset_is_raised_and_said(self, opset: int) -> None:
        model = support.model_from_text(self.TEXT, opset=opset, w=weights(4, 4, 1, 1))
        before = model.clone()
        outcome = quantize(model)
        assert outcome.modified
        assert model.opset_imports[""] == 13
        assert any("raised to 13" in note for note in outcome.notes)
        assert optimised_ops(model)["QLinearConv"] == 1
        assert sqnr(before, model) > 30

    def test_float16_of_an_old_opset_is_said(self) -> None:
        half = weights(4, 4, 1, 1).astype(np.float16)
        text = self.TEXT.replace("float[", "float16[")
        outcome = quantize(support.model_from_text(text, opset=7, w=half))
        assert not outcome.modified
        assert "start from the float32 model" in outcome.notes[-1]

    def test_opset_stays_where_nothing_is_quantized_in_the_end(self) -> None:
        model = support.model_from_text(self.TEXT, opset=9, w=weights(4, 4, 1, 1))
        before = ir.to_proto(model).SerializeToString()
        outcome = Quantize().apply(model, context_for(model))
        assert not outcome.modified
        assert any("does not pay" in skip.reason for skip in outcome.skipped)
        assert not any("raised" in note for note in outcome.notes)
        assert ir.to_proto(model).SerializeToString() == before

    def test_opset_10_is_kept_when_told(self) -> None:
        model = support.model_from_text(self.TEXT, opset=10, w=weights(4, 4, 1, 1))
        outcome = Quantize(speed="max").apply(model, context_for(model, keep_opset=True))
        assert outcome.modified
        assert model.opset_imports[""] == 10
        assert optimised_ops(model)["QLinearConv"] == 1

    def test_opset_9_is_kept_when_told_and_nothing_done(self) -> None:
        model = support.model_from_text(self.TEXT, opset=9, w=weights(4, 4, 1, 1))
        outcome = Quantize(speed="max").apply(model, context_for(model, keep_opset=True))
        assert not outcome.modified
        assert len(outcome.skipped) == 1
        assert "opset 9 was to be kept" in outcome.skipped[0].reason

    def test_nothing_to_quantize_keeps_the_opset(self) -> None:
        model = support.model_from_text("g (float[2] x) => (float[2] y) { y = Relu (x) }", opset=9)
        assert not quantize(model).modified
        assert model.opset_imports[""] == 9


def test_dead_channels_with_a_bias_keep_it() -> None:
    w = weights(4, 4, 1, 1)
    w[1] = 0.0
    w[2] *= 1e-12
    model = support.model_from_text(
        "g (float[1,4,8,8] x) => (float[1,4,8,8] y) { y = Conv (x, w, b) }",
        w=w,
        b=np.array([0.1, 0.7, -0.8, 0.0], np.float32),
    )
    before = model.clone()
    quantize(model)
    assert sqnr(before, model) > 30


def test_constant_zero_activations_are_safe() -> None:
    model = support.model_from_text(
        "g (float[1,4] x) => (float[1,4] y) { y = MatMul (x, w) }", w=weights(4, 4)
    )
    feed = {"x": np.zeros((1, 4), np.float32)}
    assert quantize(model, [feed]).modified
    assert (support.run(model, feed)["y"] == 0).all()


def test_pruned_zeros_stay_zero() -> None:
    w = weights(8, 8, 3, 3)
    w[np.abs(w) < np.quantile(np.abs(w), 0.7)] = 0.0
    model = support.model_from_text(
        "g (float[1,8,8,8] x) => (float[1,8,6,6] y) { y = Conv (x, w) }", w=w
    )
    quantize(model)
    integers = next(
        t.numpy() for t in tensors(model) if t.dtype == ir.DataType.INT8 and t.size == w.size
    )
    assert (integers[w == 0] == 0).all()


def test_same_bytes_twice() -> None:
    made = []
    model = residual()
    for _ in range(2):
        twin = model.clone()
        quantize(twin)
        made.append(ir.to_proto(twin).SerializeToString(deterministic=True))
    assert made[0] == made[1]


def test_a_layer_with_a_bias_may_read_an_output_of_the_model() -> None:
    model = support.model_from_text(
        """g (float[1,4,8,8] x) => (float[1,4,8,8] r, float[1,4,8,8] y) {
            a = Conv (x, w, b)
            r = Relu (a)
            y = Conv (r, w, b)
        }""",
        w=weights(4, 4, 1, 1),
        b=weights(4),
    )
    before = model.clone()
    quantize(model, method="minmax")
    assert [v.name for v in model.graph.outputs] == ["r", "y"]
    assert sqnr(before, model) > 25


def test_a_fit_that_takes_too_long_leaves_plain_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object) -> None:
        raise LimitExceededError("fitting took longer than 600 s")

    monkeypatch.setattr("passes.quantize.decide", slow)
    feeds = [
        {"x": np.random.default_rng(i).standard_normal((1, 3, 16, 16)).astype(np.float32)}
        for i in range(16)
    ]
    model = residual()
    plain = model.clone()
    outcome = quantize(model, feeds)
    quantize(plain, feeds, method="minmax")
    assert any("longer than 600 s" in note and "--time-limit" in note for note in outcome.notes)
    assert ir.to_proto(model) == ir.to_proto(plain)
