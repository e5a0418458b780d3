from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from support import model_from_text, run

from converter.core.context import Batch, Context, RunSettings
from converter.core.contract import Outcome
from converter.core.tensors import MappedTensor
from converter.pipeline.interface import interface_of, port_changes
from passes.cast import Cast
from passes.precision.operators import HALF
from passes.precision.rounding import FORMATS, loss, rounded
from passes.simplify import Simplify

HALF_TYPE = ir.DataType.FLOAT16
RNG = np.random.default_rng(3)


def weights(*shape: int, scale: float = 0.2) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


class Samples:
    synthetic = False
    description = "test samples"

    def __init__(self, *feeds: dict[str, np.ndarray]) -> None:
        self._feeds = feeds
        self.samples = len(feeds)

    def __len__(self) -> int:
        return len(self._feeds)

    def __iter__(self) -> Any:
        return iter([Batch(feed) for feed in self._feeds])


class InProcess:
    def run(self, model: ir.Model, given: Any, outputs: Any = None) -> list[dict[str, np.ndarray]]:
        return [run(model, feed) for feed in given]

    def collect(self, model: ir.Model, requests: Any, dataset: Any) -> Any:
        from converter.calibration.collect import collect

        return collect(model, requests, dataset, settings=RunSettings())


def cast(model: ir.Model, *feeds: dict[str, np.ndarray], **parameters: Any) -> Outcome:
    context = Context(dataset=Samples(*feeds), services=InProcess()) if feeds else Context()
    return Cast(**parameters).apply(model, context)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def made_by(model: ir.Model, op_type: str) -> ir.DataType | None:
    """Type of the first output of the first node of that operator, as onnxruntime sees it."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    types |= {v.name: v.type.tensor_type.elem_type for v in inferred.graph.output}
    node = next(n for n in inferred.graph.node if n.op_type == op_type)
    return ir.DataType(types[node.output[0]])


def reasons(outcome: Outcome) -> str:
    return "; ".join(f"{skip.subject}: {skip.reason}" for skip in outcome.skipped)


def sqnr(expected: np.ndarray, actual: np.ndarray) -> float:
    error = np.sum((expected.astype(np.float64) - actual) ** 2)
    return float(10 * np.log10(np.sum(expected.astype(np.float64) ** 2) / error)) if error else 200


def mlp(**more: np.ndarray) -> ir.Model:
    return model_from_text(
        """mlp (float[N,16] x) => (float[N,8] y) {
            h = MatMul (x, w1) a = Add (h, b1) r = Relu (a) y = Gemm (r, w2, b2)
        }""",
        **{"w1": weights(16, 64), "b1": weights(64), "w2": weights(64, 8), "b2": weights(8)} | more,
    )


X = {"x": RNG.standard_normal((4, 16)).astype(np.float32)}


class TestBorders:
    def test_one_cast_each_way_and_none_between(self) -> None:
        model = mlp()
        before = run(model, X)["y"]
        outcome = cast(model)
        assert ops(model) == ["Cast", "MatMul", "Add", "Relu", "Gemm", "Cast"]
        assert outcome.counts["casts_inserted"] == 2
        assert all(v.dtype is HALF_TYPE for v in model.graph.initializers.values())
        assert sqnr(before, run(model, X)["y"]) > 55

    def test_signature_stays(self) -> None:
        model = mlp()
        before = interface_of(model)
        cast(model)
        assert port_changes(before, interface_of(model)) == ()

    def test_ports_change_on_request(self) -> None:
        model = mlp()
        outcome = cast(model, io="convert")
        assert ops(model) == ["MatMul", "Add", "Relu", "Gemm"]
        assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == [HALF_TYPE] * 2
        assert [v.name for v in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]
        assert outcome.counts["ports_converted"] == 2
        assert run(model, {"x": X["x"].astype(np.float16)})["y"].dtype == np.float16
        assert Cast(io="convert").may_change_interface()
        assert not Cast().may_change_interface()

    def test_ports_whose_values_do_not_fit_stay(self) -> None:
        model = model_from_text(
            """g (float[N,16] x) => (float[N,64] y, float[N,64] z) {
                h = MatMul (x, w) y = Mul (h, much) z = Relu (h)
            }""",
            w=weights(16, 64),
            much=np.float32(1e6),
        )
        outcome = cast(model, X, io="convert")
        assert "y: its values leave the range" in reasons(outcome)
        found = run(model, {"x": X["x"].astype(np.float16)})
        assert [found[name].dtype for name in "yz"] == [np.float32, np.float16]

    def test_output_that_others_read_has_one_cast(self) -> None:
        model = model_from_text(
            """g (float[N,16] x) => (float[N,64] h, float[N,64] y) {
                h = MatMul (x, w) y = Exp (h)
            }""",
            w=weights(16, 64),
        )
        before = run(model, X)
        cast(model)
        assert ops(model).count("Cast") == 2
        after = run(model, X)
        for name in ("h", "y"):
            assert sqnr(before[name], after[name]) > 50
        converted = model.clone()
        cast(converted, io="convert", include=("*",))
        found = run(converted, {"x": X["x"].astype(np.float16)})
        assert found["y"].dtype == found["h"].dtype == np.float16

    def test_casts_of_the_model_to_that_type_go(self) -> None:
        model = model_from_text(
            """g (float[N,16] x) => (float16[N,64] y) {
                h = MatMul (x, w) c = Cast <to = 10> (h) y = Relu (c)
            }""",
            w=weights(16, 64),
        )
        cast(model, include=("*",))
        assert ops(model) == ["Cast", "MatMul", "Relu"]
        assert run(model, X)["y"].dtype == np.float16


class TestRanges:
    def scaled(self, factor: float) -> ir.Model:
        return model_from_text(
            """g (float[N,16] x) => (float[N,8] y) {
                h = MatMul (x, w1) s = Mul (h, factor) q = Mul (s, back) y = MatMul (q, w2)
            }""",
            w1=weights(16, 64),
            w2=weights(64, 8),
            factor=np.float32(factor),
            back=np.float32(1 / 64),
        )

    def test_values_in_range_are_converted(self) -> None:
        model = self.scaled(64.0)
        outcome = cast(model, X)
        assert outcome.counts["nodes_kept"] == 0
        assert ops(model).count("Cast") == 2

    def test_values_beyond_the_limit_stay(self) -> None:
        model = self.scaled(60000.0)
        before = run(model, X)["y"]
        outcome = cast(model, X)
        assert "leave the range" in reasons(outcome)
        assert made_by(model, "Mul") is ir.DataType.FLOAT
        assert model.graph.initializers["w2"].dtype is HALF_TYPE
        assert sqnr(before, run(model, X)["y"]) > 50

    def test_limit_is_a_parameter(self) -> None:
        assert "leave the range" in reasons(cast(self.scaled(64.0), X, limit=8.0))

    def test_tiny_constant_stays(self) -> None:
        model = model_from_text(
            """g (float[N,16] x) => (float[N,64] y) {
                h = MatMul (x, w) a = Abs (h) e = Add (a, eps) y = Div (h, e)
            }""",
            w=weights(16, 64),
            eps=np.float32(1e-12),
        )
        outcome = cast(model, {"x": np.zeros((2, 16), np.float32)}, X)
        assert "1e-12 is too small" in reasons(outcome)
        assert model.graph.initializers["eps"].dtype is ir.DataType.FLOAT
        assert np.isfinite(run(model, {"x": np.zeros((2, 16), np.float32)})["y"]).all()

    def test_constant_out_of_range_stays(self) -> None:
        model = model_from_text(
            """g (float[N,16] x, bool[N,64] keep) => (float[N,64] y) {
                h = MatMul (x, w) m = Where (keep, h, low) y = Softmax (m)
            }""",
            w=weights(16, 64),
            low=np.float32(np.finfo(np.float32).min),
        )
        outcome = cast(model)
        assert "too large for float16" in reasons(outcome)
        low = model.graph.initializers["low"].const_value
        assert low is not None
        assert low.numpy() == np.finfo(np.float32).min

    def test_bounds_of_clip_are_cut_off(self) -> None:
        model = model_from_text(
            """g (float[N,16] x) => (float[N,64] y) {
                h = MatMul (x, w) y = Clip (h, low, high)
            }""",
            w=weights(16, 64),
            low=np.float32(0),
            high=np.float32(3.4e38),
        )
        before = run(model, X)["y"]
        outcome = cast(model)
        assert outcome.counts["nodes_kept"] == 0
        high = model.graph.initializers["high"].const_value
        assert high is not None
        assert high.numpy() == np.float16(65504)
        assert sqnr(before, run(model, X)["y"]) > 55

    def test_result_that_is_not_finite_is_taken_back(self) -> None:
        # nothing is observed inside a branch, and its values leave the range
        model = model_from_text(
            """g (float[N,16] x, bool flag) => (float[N,16] y) {
                y = If (flag) <
                    then_branch = yes () => (float[N,16] t) {
                        a = MatMul (x, up) b = MatMul (a, up) t = MatMul (b, down)
                    },
                    else_branch = no () => (float[N,16] e) { e = Identity (x) }
                >
            }""",
            up=(np.eye(16) * 3000).astype(np.float32),
            down=(np.eye(16) / 1000).astype(np.float32),
        )
        feed = X | {"flag": np.asarray(True)}
        blind = model.clone()
        assert cast(blind).counts["nodes_converted"] == 3  # what the data protects from
        outcome = cast(model, feed)
        assert "more was left in float32" in " ".join(outcome.notes)
        assert "MatMul" in reasons(outcome)
        np.testing.assert_allclose(run(model, feed)["y"], X["x"] * 9000, rtol=1e-3)

    def test_exactness_out_of_reach_is_said(self) -> None:
        model = mlp()
        outcome = cast(model, X, sqnr=100.0)
        assert outcome.counts["weights_stored"] == 2
        assert made_by(model, "MatMul") is ir.DataType.FLOAT
        assert "with nothing but weights in float16, output 'y' has" in outcome.notes[-2]

    def test_whole_numbers_stay_unless_small(self) -> None:
        text = """g (float[N,16] x, int64[N,64] i) => (float[N,64] y) {
            c = Cast <to = 1> (i) h = MatMul (x, w) y = Add (h, c)
        }"""
        for top, kept in ((100, False), (30001, True)):
            model = model_from_text(text, w=weights(16, 64))
            outcome = cast(model, X | {"i": np.full((4, 64), top)})
            assert ("whole numbers" in reasons(outcome)) is kept


class TestKinds:
    def test_scales_of_resize_stay(self) -> None:
        model = model_from_text(
            """g (float[1,3,8,8] x) => (float[1,16,16,16] y) {
                c = Conv <pads = [1, 1, 1, 1]> (x, w) y = Resize <mode = "linear"> (c, roi, scales)
            }""",
            w=weights(16, 3, 3, 3),
            roi=np.zeros(0, np.float32),
            scales=np.float32([1, 1, 2, 2]),
        )
        feed = {"x": RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)}
        before = run(model, feed)["y"]
        cast(model)
        assert model.graph.initializers["scales"].dtype is ir.DataType.FLOAT
        assert made_by(model, "Resize") is HALF_TYPE
        assert sqnr(before, run(model, feed)["y"]) > 50

    def test_sizes_are_computed_exactly(self) -> None:
        model = model_from_text(
            """g (float[N,16] x) => (float[M] y) {
                h = MatMul (x, w) s = Shape (h) f = Cast <to = 1> (s) m = Mul (f, third)
                r = Floor (m) i = Cast <to = 7> (r) flat = ReduceProd <keepdims = 1> (i)
                c = ConstantOfShape (flat) t = ReduceSum <keepdims = 0> (h) y = Add (c, t)
            }""",
            w=weights(16, 63),
            third=np.float32(1 / 3),
        )
        feed = {"x": weights(99, 16)}
        shape = run(model, feed)["y"].shape
        outcome = cast(model, feed)
        assert "sizes or positions" in reasons(outcome)
        assert run(model, feed)["y"].shape == shape == (693,)

    def test_weights_of_recurrent_layers_are_stored(self) -> None:
        model = model_from_text(
            """g (float[5,1,16] x) => (float[5,1,1,32] y) {
                y = LSTM <hidden_size = 32> (x, w, r)
            }""",
            w=weights(1, 128, 16),
            r=weights(1, 128, 32),
        )
        exact = model.clone()
        for value in exact.graph.initializers.values():
            array = value.const_value.numpy().astype(np.float16).astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
        outcome = cast(model)
        assert outcome.counts["weights_stored"] == 2
        assert sorted(ops(model)) == ["Cast", "Cast", "LSTM"]
        feed = {"x": weights(5, 1, 16, scale=1.0)}
        np.testing.assert_allclose(run(model, feed)["y"], run(exact, feed)["y"], atol=1e-6)

    def test_bfloat16_is_stored_and_computed_in_float32(self) -> None:
        model = mlp()
        exact = mlp()
        for name, value in exact.graph.initializers.items():
            array = model.graph.initializers[name].const_value.numpy()
            if array.nbytes >= 1024:
                array = array.astype(ml_dtypes.bfloat16).astype(np.float32)
            value.const_value = ir.tensor(array, name=name)
        outcome = cast(model, to="bfloat16")
        assert model.graph.initializers["w1"].dtype is ir.DataType.BFLOAT16
        assert "no CPU kernel for bfloat16" in reasons(outcome)
        assert "stored in bfloat16" in " ".join(outcome.notes)
        np.testing.assert_array_equal(run(model, X)["y"], run(exact, X)["y"])

    def test_bodies_of_loops_are_converted_inside(self) -> None:
        model = model_from_text(
            """g (float[4,32] x) => (float[4,32] y) {
                n = Constant <value = int64 {3}> () ok = Constant <value = bool {1}> ()
                y = Loop (n, ok, x) <body = step (int64 i, bool go, float[4,32] s)
                    => (bool on, float[4,32] t) { on = Identity (go) m = MatMul (s, w)
                                                  t = Tanh (m) }>
            }""",
            w=weights(32, 32),
        )
        feed = {"x": weights(4, 32)}
        before = run(model, feed)["y"]
        cast(model)
        assert model.graph.initializers["w"].dtype is HALF_TYPE
        assert sqnr(before, run(model, feed)["y"]) > 50

    def test_functions_stay(self) -> None:
        model = model_from_text(
            """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
            g (float[N,16] x) => (float[N,64] y) { h = MatMul (x, w) y = local.twice (h) }
            <domain: "local", opset_import: ["" : 17]>
            twice (a) => (d) { b = Add (a, a) d = Relu (b) }""",
            w=weights(16, 64),
        )
        before = run(model, X)["y"]
        outcome = cast(model)
        assert "twice: model functions stay" in reasons(outcome)
        assert ops(model) == ["Cast", "MatMul", "Cast", "twice"]
        assert sqnr(before, run(model, X)["y"]) > 55

    def test_batch_transpose_before_matmul_stays(self) -> None:
        # onnxruntime 1.31 dies on it in float16 with its default optimizations
        model = model_from_text(
            """g (float[3,4,32] x) => (float[4,3,32] y) {
                h = MatMul (x, w) t = Transpose <perm = [1, 0, 2]> (h) y = MatMul (t, w)
            }""",
            w=weights(32, 32),
        )
        assert "crashes" in reasons(cast(model))
        assert made_by(model, "Transpose") is ir.DataType.FLOAT

    def test_unknown_operators_stay(self) -> None:
        model = model_from_text(
            """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
            g (float[N,16] x) => (float[N,64] y) {
                h = MatMul (x, w) y = com.microsoft.QuickGelu <alpha = 1.0> (h)
            }""",
            w=weights(16, 64),
        )
        before = run(model, X)["y"]
        cast(model)
        assert ops(model) == ["Cast", "MatMul", "Cast", "QuickGelu"]
        assert sqnr(before, run(model, X)["y"]) > 50


class TestConstants:
    def test_small_shared_constants_are_doubled_large_ones_are_not(self) -> None:
        model = model_from_text(
            """g (float[N,16] x) => (float[N,64] y, float[N,64] z) {
                h = MatMul (x, w) y = Add (h, b)
                e = Exp (x) k = MatMul (e, w) z = Add (k, b)
            }""",
            w=weights(16, 64),
            b=weights(64),
        )
        cast(model, keep=("k", "z", "e"))
        initializers = {name: v.dtype for name, v in model.graph.initializers.items()}
        assert initializers == {
            "w": HALF_TYPE,
            "b": ir.DataType.FLOAT,
            "b_float16": HALF_TYPE,
        }

    def test_large_weights_are_rounded_in_a_stream(self) -> None:
        weight = weights(700, 700)
        model = model_from_text(
            "g (float[N,700] x) => (float[N,700] y) { y = MatMul (x, w) }", w=weight
        )
        cast(model)
        tensor = model.graph.initializers["w"].const_value
        assert isinstance(tensor, MappedTensor)
        assert tensor.tobytes() == weight.astype(np.float16).tobytes()
        assert tensor.nbytes == weight.nbytes // 2

    @pytest.mark.parametrize("name", sorted(FORMATS))
    def test_rounding_is_to_nearest_even_and_never_to_infinity(self, name: str):
        format_ = FORMATS[name]
        kind = format_.dtype.numpy()
        one = np.float32(1)
        step = np.float32(2.0 ** (-10 if name == "float16" else -7))
        array = np.array(
            [one + step / 2, one + 3 * step / 2, -3.4e38, 65519, 65521, np.inf, -np.inf, np.nan],
            np.float32,
        )
        found = np.asarray(rounded(ir.tensor(array), format_).numpy()).astype(np.float32)
        assert found[0] == 1
        assert found[1] == 1 + 2 * step
        assert np.isfinite(found[:5]).all()
        assert found[2] == -np.float32(format_.largest) if name == "float16" else found[2] < -3e38
        assert found[3] == np.float32(kind.type(65519))
        assert found[5] == np.inf
        assert found[6] == -np.inf
        assert np.isnan(found[7])

    def test_loss_of_small_values_is_seen(self) -> None:
        half = FORMATS["float16"]
        fine = loss(ir.tensor(weights(1000)), half)
        assert not fine.overflow
        assert fine.error < 5e-4
        assert not fine.reason(half)
        assert "small values" in loss(ir.tensor(weights(1000) * 1e-7), half).reason(half)
        assert loss(ir.tensor(np.float32([1, 1e5])), half).overflow

    def test_plain_numbers_of_constant_nodes(self) -> None:
        model = model_from_text(
            """g (float[N,16] x) => (float[N,64] y) {
                k = Constant <value_float = 0.5> () h = MatMul (x, w) y = Mul (h, k)
            }""",
            w=weights(16, 64),
        )
        before = run(model, X)["y"]
        cast(model)
        assert ops(model).count("Cast") == 2
        assert sqnr(before, run(model, X)["y"]) > 55


class TestChoice:
    def test_keep_computes_in_float32_and_exclude_touches_nothing(self) -> None:
        kept, excluded = mlp(), mlp()
        cast(kept, keep=("op:MatMul",))
        assert kept.graph.initializers["w1"].dtype is HALF_TYPE
        assert made_by(kept, "MatMul") is ir.DataType.FLOAT
        cast(excluded, exclude=("op:MatMul",))
        assert excluded.graph.initializers["w1"].dtype is ir.DataType.FLOAT
        assert excluded.graph.initializers["w2"].dtype is HALF_TYPE

    def test_patterns_that_match_nothing_are_said(self) -> None:
        assert "nothing_like_it: matches no node" in reasons(cast(mlp(), keep=("nothing_like_it",)))

    def test_nothing_gets_bigger(self) -> None:
        model = model_from_text(
            "tiny (float[2,2] x) => (float[2,2] y) { y = MatMul (x, w) }", w=weights(2, 2)
        )
        outcome = cast(model)
        assert not outcome.modified
        assert "more bytes" in reasons(outcome)
        assert ops(model) == ["MatMul"]

    def test_models_in_16_bits_stay(self) -> None:
        model = mlp()
        cast(model)
        for again in ("float16", "bfloat16"):
            outcome = cast(model, to=again)
            assert not outcome.modified
            assert "16-bit values already" in reasons(outcome)

    @pytest.mark.parametrize(("to", "opset"), [("bfloat16", 12), ("float16", 5)])
    def test_old_opsets_are_refused(self, to: str, opset: int):
        model = model_from_text(
            "g (float[4,16] x) => (float[4,64] y) { y = MatMul (x, w) }",
            opset=opset,
            w=weights(16, 64),
        )
        outcome = cast(model, to=to)
        assert not outcome.modified
        assert "came with opset" in reasons(outcome)

    @pytest.mark.parametrize("to", ["float16", "bfloat16"])
    def test_simplify_keeps_the_result(self, to: str):
        model = mlp()
        Simplify().apply(model, Context())
        cast(model, to=to)
        before, size = run(model, X)["y"], len(ir.to_proto(model).SerializeToString())
        Simplify().apply(model, Context())
        assert len(ir.to_proto(model).SerializeToString()) <= size
        np.testing.assert_array_equal(run(model, X)["y"], before)


V, A, I64 = [6], [1, 4, 6, 6], "int64[1]"
NATIVE: dict[str, tuple[list[Any], str]] = {
    "Identity": ([A], ""),
    "Reshape": ([V, I64], ""),
    "Flatten": ([A], ""),
    "Squeeze": ([[1, 3]], ""),
    "Unsqueeze": ([V, I64], ""),
    "Slice": ([V, I64, I64], ""),
    "Gather": ([A, I64], ""),
    "GatherElements": ([V, I64], ""),
    "Concat": ([A, A], "<axis = 1>"),
    "ScatterND": ([V, "int64[1,1]", [1]], ""),
    "Transpose": ([A], ""),
    "Clip": ([A], ""),
}


def test_cpu_kernels_for_bfloat16_are_those_of_the_table():
    """Whatever the table says to run in bfloat16, onnxruntime runs; the rest it cannot."""
    import onnx
    import onnxruntime as ort

    assert {e.op_type for e in HALF if e.row.cpu_bfloat16} == set(NATIVE)
    for op_type, (inputs, attributes) in NATIVE.items():
        names = [f"i{k}" for k in range(len(inputs))]
        ports = ", ".join(
            f"{kind if isinstance(kind, str) else f'bfloat16{kind}'} {n}"
            for n, kind in zip(names, inputs, strict=True)
        )
        text = f"g ({ports}) => (y) {{ y = {op_type} {attributes} ({', '.join(names)}) }}"
        proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + text)
        proto = onnx.shape_inference.infer_shapes(proto)
        proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
        assert ort.InferenceSession(proto.SerializeToString()).get_outputs()
