"""Bias correction: closer to the original on samples that were not used, in every stored form."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import support

from converter.core import graph as g
from converter.core.contract import Outcome, Pass
from converter.core.spec import parse
from converter.errors import DataError
from converter.pipeline.pipeline import Pipeline
from passes.bias.fit import shrunk
from passes.correct_bias import CorrectBias
from passes.quantize import Quantize

sys.path.insert(0, str(Path(__file__).parent / "affine"))
from samples import context_for

FIXTURES = Path(__file__).parents[2] / "fixtures"
RNG = np.random.default_rng(5)


def weights(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def feeds(
    shape: tuple[int, ...], count: int, seed: int, shift: float = 1.0
) -> list[dict[str, Any]]:
    """Inputs whose mean is not zero, so that rounding weights moves means."""
    rng = np.random.default_rng(seed)
    return [
        {"x": (np.abs(rng.standard_normal(shape)) * shift).astype(np.float32)} for _ in range(count)
    ]


def sqnr(before: ir.Model, after: ir.Model, given: list[dict[str, Any]]) -> float:
    signal = noise = 0.0
    for feed in given:
        old, new = support.run(before, feed), support.run(after, feed)
        for name, expected in old.items():
            signal += float(np.square(expected.astype(np.float64)).sum())
            noise += float(np.square(expected.astype(np.float64) - new[name]).sum())
    return 10 * float(np.log10(signal / max(noise, 1e-30)))


def correct(
    original: ir.Model, changed: ir.Model, given: list[dict[str, Any]], **parameters: Any
) -> Outcome:
    """Run the pass on ``changed`` in place, with the original as reference."""
    context = context_for(original, given, reference=original)
    outcome = CorrectBias(**parameters).apply(changed, context)
    onnx.checker.check_model(ir.to_proto(changed), full_check=True)
    return outcome


def coarse(array: np.ndarray, step: float = 0.35) -> np.ndarray:
    """Round a weight so coarsely, and towards one side, that means move."""
    return (np.floor(array / step) * step).astype(np.float32)


def net(kind: str) -> ir.Model:
    layer, shape, out = {
        "conv": ("y = Conv <pads = [1, 1, 1, 1]> (x, w, b)", "4,8,8", "6,8,8"),
        "conv without bias": ("y = Conv (x, w)", "4,8,8", "6,6,6"),
        "gemm": ("y = Gemm <transB = 1> (x, w, b)", "4", "6"),
        "matmul": ("m = MatMul (x, w)  y = Add (m, b)", "5,4", "5,6"),
        "norm": (
            "c = Conv (x, w)  y = BatchNormalization (c, scale, b, mean, var)",
            "4,8,8",
            "6,6,6",
        ),
    }[kind]
    shapes = {"gemm": (6, 4), "matmul": (4, 6)}
    return support.model_from_text(
        f"g (float[2,{shape}] x) => (float[2,{out}] y) {{ {layer} }}",
        w=weights(*shapes.get(kind, (6, 4, 3, 3))),
        b=weights(6),
        scale=np.abs(weights(6)) + 0.5,
        mean=weights(6),
        var=np.abs(weights(6)) + 0.5,
    )


def shape_of(model: ir.Model) -> tuple[int, ...]:
    shape = model.graph.inputs[0].shape
    assert shape is not None
    return tuple(int(d) for d in shape)


class TestForms:
    @pytest.mark.parametrize("kind", ["conv", "conv without bias", "gemm", "matmul", "norm"])
    @pytest.mark.parametrize("opset", [13, 17, 21])
    def test_float_biases(self, kind: str, opset: int) -> None:
        original = net(kind)
        original.graph.opset_imports[""] = opset
        changed = original.clone()
        weight = g.constant_array(changed.graph.initializers["w"])
        assert weight is not None
        g.set_constant(changed.graph.initializers["w"], coarse(weight))
        before = changed.clone()
        outcome = correct(original, changed, feeds(shape_of(original), 24, 1))
        test = feeds(shape_of(original), 8, 2)
        assert outcome.counts == {"values_corrected": 1}
        assert sqnr(original, changed, test) > sqnr(original, before, test) + 3

    @pytest.mark.parametrize("kind", ["conv", "conv without bias", "gemm", "matmul"])
    def test_integer_biases_stay_integers(self, kind: str) -> None:
        original = net(kind)
        given = feeds(shape_of(original), 24, 1)
        changed = original.clone()
        weight = g.constant_array(changed.graph.initializers["w"])
        assert weight is not None
        g.set_constant(changed.graph.initializers["w"], coarse(weight))
        Quantize(method="minmax", speed="max").apply(changed, context_for(original, given))
        assert "QuantizeLinear" in support.op_types(changed)
        before = changed.clone()
        outcome = correct(original, changed, given)
        test = feeds(shape_of(original), 8, 2)
        assert outcome.counts == {"values_corrected": 1}
        assert sqnr(original, changed, test) > sqnr(original, before, test) + 3
        names = [
            v.name for v in changed.graph.initializers.values() if v.dtype == ir.DataType.INT32
        ]
        assert len(names) == 1

    @pytest.mark.parametrize("kind", ["matmul", "norm"])
    def test_what_is_corrected_already_is_not_corrected_again(self, kind: str) -> None:
        """The place is behind the value that is measured: what it adds now has to count."""
        original = net(kind)
        changed = original.clone()
        weight = g.constant_array(changed.graph.initializers["w"])
        assert weight is not None
        g.set_constant(changed.graph.initializers["w"], coarse(weight))
        given = feeds(shape_of(original), 24, 1)
        correct(original, changed, given)
        name = "b" if kind == "matmul" else "mean"
        once = g.constant_array(changed.graph.initializers[name])
        correct(original, changed, given)
        twice = g.constant_array(changed.graph.initializers[name])
        assert once is not None
        assert twice is not None
        np.testing.assert_allclose(twice, once, atol=2e-3)

    def test_a_shared_bias_stays_with_the_others(self) -> None:
        original = support.model_from_text(
            """g (float[2,4] x) => (float[2,6] y, float[2,6] z) {
                y = Gemm (x, w, b)
                z = Gemm (x, v, b)
            }""",
            w=weights(4, 6),
            v=weights(4, 6),
            b=weights(6),
        )
        changed = original.clone()
        g.set_constant(changed.graph.initializers["w"], coarse(weights(4, 6)))
        correct(original, changed, feeds((2, 4), 24, 1))
        bias = g.constant_array(changed.graph.initializers["b"])
        np.testing.assert_array_equal(bias, g.constant_array(original.graph.initializers["b"]))

    def test_a_normalization_alone(self) -> None:
        """BatchNormalization after a sum: no layer makes its input."""
        original = support.model_from_text(
            """g (float[2,4,6,6] x) => (float[2,4,6,6] y)
            <float[2,4,6,6] s> {
                a = Conv (x, w, b)
                s = Add (a, x)
                n = BatchNormalization (s, scale, bias, mean, var)
                y = Relu (n)
            }""",
            w=weights(4, 4, 1, 1),
            b=weights(4),
            scale=np.ones(4, np.float32),
            bias=weights(4),
            mean=weights(4),
            var=np.ones(4, np.float32),
        )
        changed = original.clone()
        g.set_constant(changed.graph.initializers["w"], coarse(weights(4, 4, 1, 1)))
        before = changed.clone()
        correct(original, changed, feeds((2, 4, 6, 6), 24, 1))
        test = feeds((2, 4, 6, 6), 8, 2)
        assert sqnr(original, changed, test) > sqnr(original, before, test)


class TestWholeModels:
    @pytest.mark.parametrize(
        ("name", "text", "gain"),
        [
            ("digits_resnet", "simplify,prune:sparsity=0.5,recover=none", 6.0),
            ("digits_resnet", "prune:sparsity=0.5,recover=none", 6.0),
            (
                "digits_depthwise",
                "simplify,quantize:method=minmax,speed=max,per_channel=false",
                0.5,
            ),
        ],
    )
    def test_closer_on_samples_that_were_not_used(self, name: str, text: str, gain: float) -> None:
        original = ir.load(FIXTURES / f"{name}.onnx")
        data = np.load(FIXTURES / "digits_calibration.npz")["image"][:96]
        given = [{"image": part} for part in np.array_split(data, 16)]
        test = [{"image": np.load(FIXTURES / "digits_test.npz")["image"]}]
        levels, zeros = [], []
        last = ",correct_bias:rounds=0" if "quantize" in text else ",correct_bias"
        for more in ("", last):
            context = context_for(original, given)
            run = Pipeline(parse(text + more)).run(original, context)
            levels.append(sqnr(original, run.model, test))
            assert context.reference is None
            arrays = [g.constant_array(v) for v in run.model.graph.initializers.values()]
            zeros.append([a == 0 for a in arrays if a is not None and a.ndim == 4])
        for before, after in zip(*zeros, strict=True):
            assert (before == after).all()
        assert levels[1] > levels[0] + gain

    def test_same_bytes_twice(self) -> None:
        original = net("conv")
        given = feeds((2, 4, 8, 8), 16, 1)
        made = []
        for _ in range(2):
            changed = original.clone()
            g.set_constant(changed.graph.initializers["w"], coarse(weights(6, 4, 3, 3) * 0 + 0.5))
            correct(original, changed, given)
            made.append(ir.to_proto(changed).SerializeToString(deterministic=True))
        assert made[0] == made[1]


class TestLeftAlone:
    def test_nothing_before_it(self) -> None:
        model = net("conv")
        context = context_for(model, feeds((2, 4, 8, 8), 8, 1))
        outcome = CorrectBias().apply(model, context)
        assert not outcome.modified
        assert "no pass before it changed the outputs" in outcome.notes[0]

    def test_an_unchanged_model_stays(self) -> None:
        model = net("conv")
        changed = model.clone()
        outcome = correct(model, changed, feeds((2, 4, 8, 8), 16, 1))
        assert not outcome.modified
        assert "corrected nothing" in outcome.notes[0]

    def test_what_does_not_generalize_is_not_kept(self) -> None:
        """The samples to learn from show another shift than those to judge by."""
        model = net("gemm")
        changed = model.clone()
        weight = g.constant_array(changed.graph.initializers["w"])
        assert weight is not None
        g.set_constant(changed.graph.initializers["w"], coarse(weight))
        given = [f if i % 4 != 3 else {"x": -f["x"]} for i, f in enumerate(feeds((2, 4), 32, 1))]
        outcome = correct(model, changed, given)
        assert not outcome.modified

    def test_reasons(self) -> None:
        original = support.model_from_text(
            """g (float[2,4] x) => (float[2,4] y) {
                a = MatMul (x, w)
                b = Relu (a)
                c = Gemm (b, v, bias)
                y = Gemm (c, v, bias)
            }""",
            w=weights(4, 4),
            v=weights(4, 4),
            bias=weights(4),
        )
        changed = original.clone()
        list(changed.graph)[2].outputs[0].name = "renamed"
        outcome = correct(original, changed, feeds((2, 4), 8, 1), exclude=("y", "nobody"))
        reasons = [skip.reason for skip in outcome.skipped]
        assert reasons == [
            "matches no node",
            "it has no bias that a correction could go to",
            "no value of its output's name is left in the model",
            "not selected by include and exclude",
        ]

    def test_no_samples_at_all(self) -> None:
        model = net("conv")
        with pytest.raises(DataError, match="no sample"):
            correct(model, model.clone(), [])

    def test_numbers_that_are_none(self) -> None:
        """Samples with NaN teach nothing."""
        model = net("gemm")
        changed = model.clone()
        weight = g.constant_array(changed.graph.initializers["w"])
        assert weight is not None
        g.set_constant(changed.graph.initializers["w"], coarse(weight))
        given = feeds((2, 4), 16, 1)
        given[0]["x"][0, 0] = np.nan
        assert not correct(model, changed, given).modified

    def test_few_runs_are_said(self) -> None:
        original = net("conv")
        changed = original.clone()
        g.set_constant(changed.graph.initializers["w"], coarse(weights(6, 4, 3, 3)))
        outcome = correct(original, changed, feeds((2, 4, 8, 8), 2, 1))
        assert outcome.modified
        assert "only 2 runs" in outcome.notes[0]


class TestShrinking:
    def test_noise_is_not_corrected(self) -> None:
        noise = np.random.default_rng(0).standard_normal((64, 1000))
        assert np.square(shrunk(noise)).sum() < 0.35 * np.square(noise.mean(axis=0)).sum()

    def test_certain_differences_are_kept(self) -> None:
        rows = np.random.default_rng(0).standard_normal((64, 10)) + 100.0
        np.testing.assert_allclose(shrunk(rows), rows.mean(axis=0), rtol=1e-4)
        np.testing.assert_array_equal(shrunk(rows[:1]), rows[0])
        np.testing.assert_array_equal(shrunk(np.zeros((4, 3))), np.zeros(3))


def test_the_pipeline_remembers_the_model_before_the_first_lossy_pass() -> None:
    """Exact passes before it count as the original; the caller's context comes back as it was."""
    model = net("conv")
    seen: list[ir.Model | None] = []

    class Look:
        def before(self, pass_: Pass, current: ir.Model) -> None:
            seen.append(context.reference)

        def after(self, *_: Any) -> None: ...

        def failed(self, *_: Any) -> None: ...

    context = context_for(model, feeds((2, 4, 8, 8), 8, 1))
    run = Pipeline(parse("simplify,prune:sparsity=0.5,correct_bias")).run(
        model, context, observers=[Look()]
    )
    assert seen[:2] == [None, None]
    assert seen[2] is (run.models[0])
    assert context.reference is None
