"""Cross-layer equalization: equal outputs, equal ranges, what must not move and why."""

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
from converter.core.contract import Outcome
from passes.equalization.layers import Layer, layer_of
from passes.equalize import Equalize
from passes.quantize import Quantize

sys.path.insert(0, str(Path(__file__).parent / "affine"))
from samples import InProcess, context_for, feeds_for

from converter.core.context import Context

FIXTURES = Path(__file__).parents[2] / "fixtures"


def weights(*shape: int, seed: int = 0, spread: float = 0.0) -> np.ndarray:
    """Normal numbers; ``spread`` octaves between the ranges of output channels."""
    rng = np.random.default_rng(seed)
    made = rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))
    factors = np.exp2(rng.uniform(-spread, spread, shape[0]))
    return (made * factors.reshape(-1, *[1] * (len(shape) - 1))).astype(np.float32)


def equalize(model: ir.Model, *, data: bool = True, **parameters: Any) -> Outcome:
    """Run the pass; outputs, bytes and node count stay, a second run finds nothing."""
    before, nodes = model.clone(), len(list(g.walk(model)))
    nbytes = sum(t.nbytes for t in g.tensors(model))
    context = context_for(model) if data else Context(services=InProcess())
    outcome = Equalize(**parameters).apply(model, context)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert len(list(g.walk(model))) == nodes
    assert sum(t.nbytes for t in g.tensors(model)) <= nbytes
    for feed in feeds_for(before):
        support.assert_same_outputs(before, model, feed, rtol=2e-4, atol=2e-5)
    again = Equalize(**parameters).apply(model.clone(), context)
    assert not again.modified, again.counts
    return outcome


def layers(model: ir.Model) -> dict[str, Layer]:
    """Layers by the name of their output."""
    found = {_plain(n.outputs[0]): layer_of(n) for n in model.graph}
    return {name: layer for name, layer in found.items() if isinstance(layer, Layer)}


def _plain(value: ir.Value) -> str:
    return (value.name or "").removesuffix("_equalized")


def ranges(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Range of each output and each input channel of a layer."""
    magnitude = np.abs(layer.matrices()).max(axis=3)
    return magnitude.max(axis=2).reshape(-1), magnitude.max(axis=1).reshape(-1)


def reasons(outcome: Outcome) -> set[str]:
    return {skip.reason for skip in outcome.skipped}


def chain(between: str = "r = Relu (a)", **more: np.ndarray) -> ir.Model:
    """Conv, something, depthwise Conv, Relu, Conv."""
    return support.model_from_text(
        f"""chain (float[2,3,8,8] x) => (float[2,4,8,8] y) {{
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            {between}
            d = Conv <pads = [1, 1, 1, 1], group = 6> (r, w2, b2)
            s = Relu (d)
            y = Conv (s, w3, b3)
        }}""",
        w1=weights(6, 3, 3, 3, spread=3),
        b1=weights(6),
        w2=weights(6, 1, 3, 3, seed=1, spread=3),
        b2=weights(6, seed=2),
        w3=weights(4, 6, 1, 1, seed=3),
        b3=weights(4, seed=4),
        **more,
    )


class TestRanges:
    def test_two_layers_meet_in_the_geometric_mean(self) -> None:
        model = support.model_from_text(
            """two (float[2,4] x) => (float[2,3] y) {
                a = Gemm <transB = 1> (x, w1, b1)
                r = Relu (a)
                y = Gemm (r, w2, b2)
            }""",
            w1=weights(8, 4, spread=3),
            b1=weights(8, seed=1),
            w2=weights(8, 3, seed=2, spread=3),
            b2=weights(3, seed=3),
        )
        old = layers(model)
        mean = np.sqrt(ranges(old["a"])[0] * ranges(old["y"])[1])
        outcome = equalize(model, data=False)
        new = layers(model)
        np.testing.assert_allclose(ranges(new["a"])[0], mean, rtol=1e-3)
        np.testing.assert_allclose(ranges(new["y"])[1], mean, rtol=1e-3)
        assert outcome.counts["layers_rescaled"] == 2
        assert outcome.counts["channels_rescaled"] == 8

    def test_three_layers_around_a_depthwise_one_meet_in_the_cube_root(self) -> None:
        model = chain()
        old = layers(model)
        product = ranges(old["a"])[0] * ranges(old["d"])[0] * ranges(old["y"])[1]
        equalize(model, data=False)
        new = layers(model)
        for got in (ranges(new["a"])[0], ranges(new["d"])[0], ranges(new["y"])[1]):
            np.testing.assert_allclose(got, np.cbrt(product), rtol=3e-3)

    def test_values_that_hold_other_numbers_have_other_names(self) -> None:
        model = chain()
        equalize(model, data=False)
        names = [node.outputs[0].name for node in model.graph]
        assert names == ["a_equalized", "r_equalized", "d_equalized", "s_equalized", "y"]

    def test_no_channel_goes_beyond_the_widest_of_its_value(self) -> None:
        model = chain()
        before = _reach(model, "r")
        equalize(model)
        assert _reach(model, "r").max() <= before.max() * 1.001

    def test_zeros_stay_zero_and_dead_channels_stay(self) -> None:
        model = chain()
        pruned = g.constant_array(model.graph.initializers["w1"])
        assert pruned is not None
        pruned = pruned.copy()
        pruned[np.abs(pruned) < np.median(np.abs(pruned))] = 0
        pruned[2] = 0
        g.set_constant(model.graph.initializers["w1"], pruned)
        equalize(model, data=False)
        after = g.constant_array(model.graph.initializers["w1"])
        assert after is not None
        assert ((after == 0) == (pruned == 0)).all()


def _reach(model: ir.Model, name: str) -> np.ndarray:
    from converter.execution.runner import with_outputs

    name = next(v.name or "" for n in model.graph for v in n.outputs if _plain(v) == name)
    found = [support.run(with_outputs(model, [name]), feed)[name] for feed in feeds_for(model)]
    return np.abs(np.stack(found)).max(axis=(0, 1, 3, 4))


BETWEEN = {
    "nothing": "r = Identity (a)",
    "leaky": "r = LeakyRelu <alpha = 0.1> (a)",
    "prelu": "r = PRelu (a, slope)",
    "pool": "r = MaxPool <kernel_shape = [2, 2], pads = [0, 0, 1, 1]> (a)",
    "average": "r = AveragePool <kernel_shape = [2, 2], pads = [0, 0, 1, 1]> (a)",
    "constant": "t = Add (a, vector)  r = Relu (t)",
    "factor": "t = Mul (a, factor)  r = Relu (t)",
    "residual": "t = Conv (a, w0, b0)  u = Add (t, a)  r = Relu (u)",
    "concat": "t = Relu (a)  p, q = Split <axis = 1> (t, parts)  r = Concat <axis = 1> (p, q)",
    "sizes": "t = Pad (a, pads)  r = Slice (t, zeros, sizes, axes)",
    "gate": """q = GlobalAveragePool (a)  t = Conv (q, w0, b0)  e = Sigmoid (t)
               u = Mul (a, e)  r = Relu (u)""",
    "turned": """t = Transpose <perm = [0, 2, 3, 1]> (a)  u = Relu (t)
                 r = Transpose <perm = [0, 3, 1, 2]> (u)""",
    "two ways": "t = Relu (a)  u = LeakyRelu (a)  r = Concat <axis = 0> (t, u)",
}


@pytest.mark.parametrize("between", sorted(BETWEEN))
@pytest.mark.parametrize("data", [False, True])
def test_outputs_stay_equal_through(between: str, data: bool) -> None:
    model = chain(
        BETWEEN[between],
        slope=np.abs(weights(6, 1, 1, seed=5)),
        vector=weights(6, 1, 1, seed=6),
        factor=np.float32(0.7),
        w0=weights(6, 6, 1, 1, seed=7, spread=2),
        b0=weights(6, seed=8),
        parts=np.array([2, 4]),
        pads=np.array([0, 0, 1, 0, 0, 0, 0, 1]),
        zeros=np.array([1, 0]),
        sizes=np.array([9, 8]),
        axes=np.array([2, 3]),
    )
    if between == "two ways":
        model.graph.outputs[0].shape = ir.Shape(["M", 4, 8, 8])
    outcome = equalize(model, data=data)
    first = "a" in {_plain(n.outputs[0]) for n in model.graph if _moved(model, n, outcome)}
    assert first == (between not in {"concat", "sizes"})


def _moved(model: ir.Model, node: ir.Node, outcome: Outcome) -> bool:
    """Tell whether the pass left no reason for the node."""
    return layer_of(node) is not None and g.label(node) not in {s.subject for s in outcome.skipped}


class TestForms:
    def test_matmul_add_relu_matmul(self) -> None:
        model = support.model_from_text(
            """mlp (float[2,5,4] x) => (float[2,5,4] y) {
                a = MatMul (x, w1)
                b = Add (b1, a)
                r = Relu (b)
                y = MatMul (r, w2)
            }""",
            w1=weights(4, 8),
            b1=weights(8),
            w2=weights(8, 4, seed=1, spread=3),
        )
        assert equalize(model, data=False).counts["layers_rescaled"] == 2

    def test_grouped_and_transposed_convolutions(self) -> None:
        model = support.model_from_text(
            """groups (float[2,4,6,6] x) => (float[2,3,13,13] y) {
                a = Conv <group = 2> (x, w1, b1)
                r = Relu (a)
                c = Conv <group = 4> (r, w2)
                s = Relu (c)
                t = ConvTranspose <group = 2, strides = [2, 2]> (s, w3, b3)
                u = LeakyRelu (t)
                y = ConvTranspose <strides = [1, 1]> (u, w4)
            }""",
            w1=weights(8, 2, 1, 1, spread=3),
            b1=weights(8),
            w2=weights(8, 2, 1, 1, seed=1, spread=3),
            w3=weights(8, 3, 2, 2, seed=2, spread=3),
            b3=weights(6, seed=3),
            w4=weights(6, 3, 2, 2, seed=4, spread=3),
        )
        assert equalize(model, data=False).counts["layers_rescaled"] == 4

    @pytest.mark.parametrize(
        "way",
        [
            "f = Flatten (r)",
            "f = Reshape (r, shape)",
            "p = GlobalAveragePool (r)  f = Flatten (p)",
            "p = GlobalAveragePool (r)  f = Reshape (p, pooled)",
            "f = ReduceMean <axes = [2, 3], keepdims = 0> (r)",
        ],
    )
    def test_convolution_to_classifier(self, way: str) -> None:
        inputs = 6 * 9 if "Pool" not in way and "Mean" not in way else 6
        model = support.model_from_text(
            f"""classifier (float[2,3,3,3] x) => (float[2,5] y) {{
                a = Conv (x, w1, b1)
                r = Relu (a)
                {way}
                y = Gemm <transB = 1> (f, w2, b2)
            }}""",
            w1=weights(6, 3, 1, 1, spread=3),
            b1=weights(6),
            w2=weights(5, inputs, seed=1),
            b2=weights(5),
            shape=np.array([0, -1]),
            pooled=np.array([-1, 6]),
        )
        assert equalize(model, data=False).counts["channels_rescaled"] == 6

    def test_branches_are_solved_together(self) -> None:
        model = support.model_from_text(
            """fire (float[2,3,4,4] x) => (float[2,4,4,4] y) {
                a = Conv (x, w1, b1)
                r = Relu (a)
                c = Conv (r, w2, b2)
                d = Conv <pads = [1, 1, 1, 1]> (r, w3, b3)
                e = Concat <axis = 1> (c, d)
                f = Relu (e)
                y = Conv (f, w4)
            }""",
            w1=weights(4, 3, 1, 1, spread=3),
            b1=weights(4),
            w2=weights(4, 4, 1, 1, seed=1, spread=2),
            b2=weights(4, seed=1),
            w3=weights(5, 4, 3, 3, seed=2, spread=2),
            b3=weights(5, seed=2),
            w4=weights(4, 9, 1, 1, seed=3),
        )
        outcome = equalize(model, data=False)
        assert outcome.counts["channels_rescaled"] == 4 + 4 + 5


class TestClip:
    CLIP = "r = Clip (a, low, high)"

    def test_without_samples_it_is_left_alone_and_said(self) -> None:
        model = chain(self.CLIP, low=np.float32(0), high=np.float32(6))
        before = g.constant_array(model.graph.initializers["w1"])
        outcome = equalize(model, data=False)
        assert any("--data" in reason for reason in reasons(outcome))
        np.testing.assert_array_equal(before, g.constant_array(model.graph.initializers["w1"]))

    def test_channels_that_reach_the_clip_keep_their_scale(self) -> None:
        model = chain(self.CLIP, low=np.float32(0), high=np.float32(1.5))
        reach = _reach(model, "r")
        before = ranges(layers(model)["a"])[0]
        outcome = equalize(model, absorb=False)
        after = ranges(layers(model)["a"])[0]
        assert (reach >= 1.5).any()
        assert (reach < 1.2).any()
        np.testing.assert_array_equal(after[reach >= 1.5], before[reach >= 1.5])
        assert (after[reach < 1.2] != before[reach < 1.2]).any()
        assert _reach(model, "r").max() <= 1.5
        assert outcome.notes == ("8 calibration samples showed how far channels reach",)


class TestAbsorption:
    def test_a_high_bias_moves_into_the_next_layer(self) -> None:
        bias = np.array([3, 0, 5, -1], np.float32)
        model = support.model_from_text(
            """high (float[2,3,6,6] x) => (float[2,4,6,6] y) {
                a = Conv (x, w1, b1)
                r = Relu (a)
                y = Conv (r, w2, b2)
            }""",
            w1=weights(4, 3, 1, 1) * 0.3,
            b1=bias,
            w2=weights(4, 4, 1, 1, seed=1),
            b2=weights(4),
        )
        before = _reach(model, "r")
        outcome = equalize(model)
        assert outcome.counts["biases_absorbed"] == 2
        assert _reach(model, "r")[2] < before[2]
        moved = g.constant_array(model.graph.initializers["b1"])
        assert moved is not None
        assert np.abs(moved).max() < 2.5

    @pytest.mark.parametrize(("pads", "count"), [("[0, 0, 0, 0]", 2), ("[1, 1, 1, 1]", 0)])
    def test_layers_with_padding_take_nothing_up(self, pads: str, count: int) -> None:
        model = support.model_from_text(
            f"""high (float[2,3,6,6] x) => (float[2,4,M,M] y) {{
                a = Conv (x, w1, b1)
                r = Relu (a)
                y = Conv <pads = {pads}> (r, w2, b2)
            }}""",
            w1=weights(4, 3, 1, 1) * 0.3,
            b1=np.array([3, 0, 5, -1], np.float32),
            w2=weights(4, 4, 3, 3, seed=1),
            b2=weights(4),
        )
        assert equalize(model).counts.get("biases_absorbed", 0) == count

    def test_it_can_be_switched_off(self) -> None:
        model = chain()
        assert "biases_absorbed" not in equalize(model, absorb=False).counts


class TestLeftAlone:
    def test_shared_weights_and_graph_outputs(self) -> None:
        model = support.model_from_text(
            """shared (float[2,4] x) => (float[2,4] y, float[2,4] b) {
                a = MatMul (x, w)
                r = Relu (a)
                b = MatMul (r, w)
                c = MatMul (b, v)
                y = MatMul (c, u)
            }""",
            w=weights(4, 4, spread=2),
            v=weights(4, 4, seed=1, spread=2),
            u=weights(4, 4, seed=2, spread=2),
        )
        outcome = equalize(model, data=False)
        assert "the weight is used elsewhere too" in reasons(outcome)
        assert outcome.counts["layers_rescaled"] == 2

    @pytest.mark.parametrize(
        "between",
        [
            "r = Sigmoid (a)",
            "r = Tanh (a)",
            "t = Softmax <axis = 1> (a)  r = Relu (t)",
            "t = Conv (a, w1)  r = Relu (a)",
            "r = Clip (a, low)",
        ],
    )
    def test_what_does_not_commute(self, between: str) -> None:
        model = chain(between, low=np.float32(0.5))
        if "w1)" in between:
            model = chain("r = Add (a, x6)", x6=weights(1, 6, 8, 8))
        first = g.constant_array(model.graph.initializers["w1"])
        equalize(model, absorb=False)
        np.testing.assert_array_equal(first, g.constant_array(model.graph.initializers["w1"]))

    def test_a_value_read_in_a_branch(self) -> None:
        model = support.model_from_text(
            """branch (float[2,4] x, bool c) => (float[2,4] y) {
                a = MatMul (x, w)
                t = MatMul (a, v)
                e = If (c) <
                    then_branch = yes () => (float[2,4] p) { p = Identity (a) },
                    else_branch = no () => (float[2,4] q) { q = Relu (t) }
                >
                y = Add (t, e)
            }""",
            w=weights(4, 4, spread=2),
            v=weights(4, 4, seed=1, spread=2),
        )
        outcome = Equalize().apply(model, Context(services=InProcess()))
        assert not outcome.modified
        assert "its output is read inside a sub-graph" in reasons(outcome)

    def test_excluded_layers(self) -> None:
        model = chain()
        outcome = equalize(model, data=False, exclude=("op:Conv", "nobody"))
        assert not outcome.modified
        assert "matches no node" in reasons(outcome)


def test_one_scale_per_tensor_gains_from_it() -> None:
    """A depthwise net with weights of very unequal channels, quantized with and without."""
    errors = []
    for first in ((), (Equalize(),)):
        model = ir.load(FIXTURES / "digits_depthwise.onnx")
        _spread(model)
        data = np.load(FIXTURES / "digits_calibration.npz")["image"]
        feeds = [{"image": part} for part in np.array_split(data[:64], 4)]
        test = {"image": np.load(FIXTURES / "digits_test.npz")["image"]}
        expected = support.run(model, test)["scores"]
        for pass_ in (*first, Quantize(method="minmax", per_channel=False, speed="max")):
            pass_.apply(model, context_for(model, feeds))
        got = support.run(model, test)["scores"]
        errors.append(float(((got - expected) ** 2).mean()))
    assert errors[1] < 0.25 * errors[0]


def _spread(model: ir.Model) -> None:
    """Scale channels before each projection up and down as training sometimes leaves them."""
    rng = np.random.default_rng(0)
    from passes.equalization.channels import trace
    from passes.equalization.layers import scale_vector, scale_weight
    from passes.equalization.solve import movable

    flow = trace(model.graph, lambda _: True)
    free = movable(flow)
    for _, ids in flow.limits:
        free[ids] = False
    factors = np.where(free, np.exp2(rng.uniform(-3, 3, free.size)), 1.0)
    read = {side.layer: side.ids for side in flow.readers}
    for side in flow.writers:
        inputs = factors[read[side.layer]] if side.layer in read else np.ones(side.layer.inputs)
        scale_weight(side.layer, inputs, factors[side.ids])
        if side.layer.bias is not None:
            scale_vector(side.layer.bias, 1.0 / factors[side.ids])


def test_quantize_does_it_first_when_asked() -> None:
    """The parameter gives the file that both passes in a row give."""
    made = []
    for steps in (
        (Equalize(), Quantize(method="minmax", speed="max")),
        (Quantize(method="minmax", speed="max", equalize=True),),
    ):
        model = chain()
        context = context_for(model)
        outcomes = [step.apply(model, context) for step in steps]
        made.append(ir.to_proto(model).SerializeToString(deterministic=True))
    assert made[0] == made[1]
    assert outcomes[0].notes[0].endswith(" channels were equalized first")
