"""Smoothing: outputs stay, wide channels get narrow, factors go into constants that are there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import support

from converter.core import graph as g
from converter.core.context import Context
from converter.core.contract import Outcome
from converter.core.select import Selection
from converter.errors import MissingDataError
from passes.quantize import Quantize
from passes.quantize_dynamic import QuantizeDynamic
from passes.smooth import Smooth
from passes.smoothing.factors import Input, choose, classic
from passes.smoothing.sites import find

sys.path.insert(0, str(Path(__file__).parent / "affine"))
from samples import InProcess, context_for

WIDTH = 64
WIDE = (3, 17)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(23)


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def scale(rng: np.random.Generator) -> np.ndarray:
    """Scales of a normalization that make a few channels much wider than the others."""
    made = (1 + 0.1 * rng.standard_normal(WIDTH)).astype(np.float32)
    made[list(WIDE)] = (40, -60)
    return made


GELU = """ d = Div (h, root) e = Erf (d) o = Add (e, one) p = Mul (h, o) a = Mul (p, half) """
GELU_WITHOUT_TAIL = " d = Div (h, root) e = Erf (d) o = Add (e, one) a = Mul (h, o) "
QUICK_GELU = " d = Mul (h, root) e = Sigmoid (d) a = Mul (h, e) "


def block(
    rng: np.random.Generator, activation: str = "a = Relu (h)", opset: int = 17, **more: Any
) -> ir.Model:
    """Normalization, two products that read it, an activation, a product and a residual sum."""
    constants = {
        "s": scale(rng),
        "t": weights(rng, WIDTH),
        "w1": weights(rng, WIDTH, 96),
        "b1": weights(rng, 96),
        "w2": weights(rng, 96, WIDTH),
        "wg": weights(rng, WIDTH, WIDTH),
        "root": np.float32(1.4142135),
        "one": np.float32(1),
        "half": np.float32(0.5),
        **more,
    }
    text = f"""block (float[2,5,{WIDTH}] x) => (float[2,5,{WIDTH}] y) {{
        n = LayerNormalization (x, s, t)
        h0 = MatMul (n, w1)
        h = Add (h0, b1)
        {activation}
        f = MatMul (a, w2)
        k = MatMul (n, wg)
        y = Add (f, k)
    }}"""
    used = {k: v for k, v in constants.items() if k in text.replace(",", " ").replace(")", " ")}
    return support.model_from_text(text, opset=opset, **used)


def smooth(model: ir.Model, context: Context | None = None, **parameters: Any) -> Outcome:
    outcome = Smooth(**parameters).apply(model, context or context_for(model))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return outcome


def feeds(model: ir.Model) -> Iterator[dict[str, np.ndarray]]:
    for batch in context_for(model).dataset or ():
        yield dict(batch.inputs)


def error(before: ir.Model, after: ir.Model) -> float:
    """Squared error of the outputs relative to their square, over all feeds."""
    signal = noise = 0.0
    for feed in feeds(before):
        new = support.run(after, feed)
        for name, old in support.run(before, feed).items():
            signal += float((old.astype(np.float64) ** 2).sum())
            noise += float(((old.astype(np.float64) - new[name]) ** 2).sum())
    return noise / signal


def reasons(outcome: Outcome) -> dict[str, str]:
    return {skip.subject: skip.reason for skip in outcome.skipped}


class TestEquality:
    @pytest.mark.parametrize("alpha", [None, 0.3, 0.5, 1.0])
    @pytest.mark.parametrize("activation", ["a = Relu (h)", GELU, GELU_WITHOUT_TAIL, QUICK_GELU])
    def test_outputs_stay_and_no_node_comes(
        self, rng: np.random.Generator, activation: str, alpha: float | None
    ) -> None:
        model = block(rng, activation)
        # Spread among the channels after the activation too.
        wide = weights(rng, WIDTH, 96)
        wide[:, 5] *= 30
        g.set_constant(model.graph.initializers["w1"], wide)
        before, operators = model.clone(), support.op_types(model)
        outcome = smooth(model, alpha=alpha)
        assert outcome.counts["activations_smoothed"] == 2
        assert support.op_types(model) == operators
        assert error(before, model) < 1e-10

    @pytest.mark.parametrize("turned", [0, 1])
    def test_gemm(self, rng: np.random.Generator, turned: int) -> None:
        shape = (96, WIDTH) if turned else (WIDTH, 96)
        model = support.model_from_text(
            f"""g (float[8,{WIDTH}] x) => (float[8,{WIDTH}] y) {{
                n = LayerNormalization (x, s)
                h = Gemm <transB = {turned}, alpha = 0.5> (n, w1, b)
                a = Relu (h)
                y = Gemm <transB = {turned}> (a, w2)
            }}""",
            s=scale(rng),
            w1=weights(rng, *shape),
            b=weights(rng, 96),
            w2=weights(rng, *reversed(shape)),
        )
        before = model.clone()
        assert smooth(model, alpha=0.5).counts["activations_smoothed"] == 2
        assert error(before, model) < 1e-10

    def test_others_that_read_the_normalization_see_no_factors(
        self, rng: np.random.Generator
    ) -> None:
        model = support.model_from_text(
            f"""g (float[2,5,{WIDTH}] x) => (float[2,5,{WIDTH}] y) {{
                n = LayerNormalization (x, s, t)
                f = MatMul (n, w)
                y = Add (f, n)
            }}""",
            s=scale(rng),
            t=weights(rng, WIDTH),
            w=weights(rng, WIDTH, WIDTH),
        )
        before = model.clone()
        outcome = smooth(model)
        assert outcome.counts == {"activations_smoothed": 1, "normalizations_added": 1}
        assert support.op_types(model).count("LayerNormalization") == 2
        assert "Mul" not in support.op_types(model)
        assert error(before, model) < 1e-10

    def test_gated_units_and_decomposed_normalizations(self, rng: np.random.Generator) -> None:
        model = support.model_from_text(
            f"""g (float[2,5,{WIDTH}] x) => (float[2,5,{WIDTH}] y) {{
                m = ReduceMean <axes = [-1]> (x)
                c = Sub (x, m)
                z = Mul (c, s)
                n = Add (z, t)
                u = MatMul (n, wu)
                v = MatMul (n, wv)
                e = Sigmoid (v)
                i = Mul (v, e)
                a = Mul (i, u)
                y = MatMul (a, w)
            }}""",
            s=scale(rng),
            t=weights(rng, WIDTH),
            wu=weights(rng, WIDTH, WIDTH) * np.logspace(-1, 1, WIDTH, dtype=np.float32),
            wv=weights(rng, WIDTH, WIDTH),
            w=weights(rng, WIDTH, WIDTH),
        )
        before = model.clone()
        assert smooth(model).counts["activations_smoothed"] == 2
        assert error(before, model) < 1e-10

    def test_constants_that_others_share_stay(self, rng: np.random.Generator) -> None:
        model = support.model_from_text(
            f"""g (float[2,5,{WIDTH}] x) => (float[2,5,{WIDTH}] y, float[2,5,{WIDTH}] z) {{
                n = LayerNormalization (x, s)
                y = MatMul (n, w)
                z = Mul (x, s)
            }}""",
            s=scale(rng),
            w=weights(rng, WIDTH, WIDTH),
        )
        before = model.clone()
        assert smooth(model).modified
        assert error(before, model) < 1e-10
        feed = next(feeds(before))
        assert np.array_equal(support.run(before, feed)["z"], support.run(model, feed)["z"])

    def test_zeros_of_weights_stay(self, rng: np.random.Generator) -> None:
        w = weights(rng, WIDTH, 96)
        w[np.abs(w) < 0.1] = 0
        model = block(rng, w1=w)
        smooth(model)
        after = g.constant_array(model.graph.initializers["w1"])
        assert after is not None
        assert ((after == 0) == (w == 0)).all()


class TestGain:
    def test_both_kinds_of_quantization_get_closer(self, rng: np.random.Generator) -> None:
        model = block(rng)
        smoothed = model.clone()
        smooth(smoothed)
        for pass_ in (
            Quantize(method="minmax", transformers="static", speed="max"),
            QuantizeDynamic(),
        ):
            errors = []
            for start in (model, smoothed):
                quantized = start.clone()
                assert pass_.apply(quantized, context_for(quantized)).modified
                errors.append(error(model, quantized))
            assert errors[1] < 0.5 * errors[0], pass_.name

    def test_the_note_says_what_is_gained(self, rng: np.random.Generator) -> None:
        outcome = smooth(block(rng))
        assert any("predicted squared error" in note for note in outcome.notes)

    def test_even_channels_are_left(self, rng: np.random.Generator) -> None:
        model = block(rng, s=np.ones(WIDTH, np.float32), t=np.zeros(WIDTH, np.float32))
        outcome = smooth(model)
        assert not outcome.modified
        assert "even enough" in " ".join(reasons(outcome).values())

    def test_prediction_ranks_factors(self, rng: np.random.Generator) -> None:
        largest = np.ones(WIDTH)
        largest[0] = 100
        given = Input(largest, largest**2 / 9, 2.0, weights(rng, WIDTH, 32))
        choice = choose(given)
        assert choice is not None
        assert choice.share < 0.1
        assert choice.factors[0] > 10 * np.median(choice.factors)
        factors = classic(given, 0.5)
        assert np.median(factors) == pytest.approx(1.0)


class TestLeft:
    def test_where_no_constant_takes_the_factors(self, rng: np.random.Generator) -> None:
        model = support.model_from_text(
            f"""g (float[2,5,{WIDTH}] x) => (float[2,5,{WIDTH}] y) {{
                a = MatMul (x, w)
                b = Tanh (a)
                y = MatMul (b, v)
            }}""",
            w=weights(rng, WIDTH, WIDTH),
            v=weights(rng, WIDTH, WIDTH),
        )
        found = reasons(smooth(model))
        assert found["a (MatMul)"] == "its input is an input of the graph"
        assert found["y (MatMul)"] == "Tanh before it takes up no factors"

    def test_weights_of_others_and_products_of_activations(self, rng: np.random.Generator) -> None:
        model = support.model_from_text(
            f"""g (float[2,5,{WIDTH}] x) => (float y, float z) {{
                n = LayerNormalization (x, s)
                y = MatMul (n, w)
                z = MatMul (x, w)
                k = Transpose <perm = [0, 2, 1]> (n)
                q = MatMul (n, k)
            }}""",
            s=scale(rng),
            w=weights(rng, WIDTH, WIDTH),
        )
        sites, skipped = find(model, Selection())
        assert not sites
        found = {skip.subject: skip.reason for skip in skipped}
        assert "used by others" in found["y (MatMul)"]
        assert "not a constant" in found["q (MatMul)"]

    def test_exclude_and_unknown_patterns(self, rng: np.random.Generator) -> None:
        model = block(rng)
        outcome = smooth(model, exclude=("op:MatMul", "nobody"))
        assert not outcome.modified
        assert reasons(outcome) == {"nobody": "matches no node"}

    def test_values_that_are_not_finite(self, rng: np.random.Generator) -> None:
        w = weights(rng, WIDTH, 96)
        w[0, 0] = np.nan
        outcome = smooth(block(rng, w1=w), include=("h0",))
        assert not outcome.modified
        assert "NaN" in reasons(outcome)["n"]

    def test_data_are_needed(self, rng: np.random.Generator) -> None:
        with pytest.raises(MissingDataError):
            Smooth().apply(block(rng), Context(services=InProcess()))

    def test_same_bytes_twice(self, rng: np.random.Generator) -> None:
        model = block(rng)
        twin = model.clone()
        smooth(model)
        smooth(twin)
        first, second = (
            ir.to_proto(m).SerializeToString(deterministic=True) for m in (model, twin)
        )
        assert first == second
