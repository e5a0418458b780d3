"""The cost model leaves in float what integers would slow down, and the cut is a minimum."""

from __future__ import annotations

import itertools
import random

import numpy as np
import onnx_ir as ir
import pytest
from samples import context_for
from support import model_from_text

from converter.core import graph as g
from converter.core.select import Selection
from converter.ops.integer_cost import RATES, Product, cost, float_conv, integer_conv
from passes.affine.cut import Network
from passes.affine.pay import Estimate, what_pays
from passes.affine.placement import place
from passes.affine.sizes import shapes_of
from passes.quantize import Quantize


def smallest_cut(count: int, edges: list[tuple[int, int, int]]) -> int:
    inner = range(2, count)
    best = None
    for size in range(len(inner) + 1):
        for chosen in itertools.combinations(inner, size):
            kept = {0, *chosen}
            paid = sum(c for a, b, c in edges if a in kept and b not in kept)
            best = paid if best is None else min(best, paid)
    assert best is not None
    return best


@pytest.mark.parametrize("seed", range(20))
def test_the_cut_is_a_minimum(seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randint(3, 8)
    network = Network()
    for _ in range(count - 2):
        network.add()
    edges = []
    for a, b in itertools.permutations(range(count), 2):
        if draw.random() < 0.5 and a != 1 and b != 0:
            edges.append((a, b, draw.randint(0, 9)))
            network.join(*edges[-1])
    kept = network.kept()
    assert 0 in kept
    assert 1 not in kept
    paid = sum(c for a, b, c in edges if a in kept and b not in kept)
    assert paid == smallest_cut(count, edges)


def test_a_long_chain_is_cut_in_time_and_without_recursion() -> None:
    network = Network()
    nodes = [network.add() for _ in range(5000)]
    for i, node in enumerate(nodes):
        network.join(Network.SOURCE, node, 3 if i < 2500 else 1)
        network.join(node, Network.SINK, 2)
    for a, b in itertools.pairwise(nodes):
        network.join(a, b, 1)
    assert network.kept() == {Network.SOURCE, *nodes[:2500]}


def conv_model(channels: int, size: int, layers: int = 3) -> ir.Model:
    body, constants = [], {}
    for i in range(layers):
        body.append(f"v{i + 1} = Conv <pads = [1, 1, 1, 1]> (v{i}, w{i})")
        weight = np.random.default_rng(i).standard_normal((channels, channels, 3, 3))
        constants[f"w{i}"] = (weight / (3 * np.sqrt(channels))).astype(np.float32)
    shape = f"float[1,{channels},{size},{size}]"
    text = f"g ({shape} v0) => ({shape} v{layers}) {{ {chr(10).join(body)} }}"
    return model_from_text(text, opset=17, **constants)


def quantized(model: ir.Model, **parameters: str) -> tuple[int, tuple[str, ...], list[str]]:
    outcome = Quantize(method="minmax", **parameters).apply(model, context_for(model))
    count = sum(1 for node in g.walk(model) if node.op_type == "QuantizeLinear")
    return count, outcome.notes, [skip.reason for skip in outcome.skipped]


def test_wide_convolutions_pay_and_narrow_ones_do_not() -> None:
    wide, _, _ = quantized(conv_model(64, 14))
    assert wide == 4
    narrow, notes, reasons = quantized(conv_model(4, 14))
    assert narrow == 0
    assert len(reasons) == 3
    assert all("does not pay: estimated" in reason for reason in reasons)
    assert any("quantize_weights" in note and "speed=max" in note for note in notes)


def test_speed_max_quantizes_what_does_not_pay() -> None:
    count, notes, reasons = quantized(conv_model(4, 14), speed="max")
    assert count == 4
    assert reasons == []
    assert not any("speed=max" in note for note in notes)


def test_an_average_pool_between_integers_stays_in_float() -> None:
    """The integer AveragePool takes thirty times as long; the weighted nodes around it pay."""
    text = """g (float[1,32,28,28] x) => (float[1,32,28,28] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w)
        b = Conv <pads = [1, 1, 1, 1]> (a, w)
        p = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b)
        y = Conv (p, w)
    }"""
    weight = np.random.default_rng(0).standard_normal((32, 32, 3, 3)).astype(np.float32) / 17
    model = model_from_text(text, opset=17, w=weight)
    plan = place(model, Selection())
    assert [u.node.op_type for u in plan.units] == ["Conv", "Conv", "AveragePool", "Conv"]
    context = context_for(model)
    declined = what_pays(context, model, lambda found: place(model, Selection(), declined=found))
    assert [node.op_type for node in declined] == ["AveragePool"]


def test_a_group_that_does_not_pay_as_a_whole_is_divided() -> None:
    """A tiny convolution on a large image before wide ones: only the wide ones run on integers."""
    text = """g (float[1,4,112,112] x) => (float[1,64,14,14] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w)
        b = Conv <pads = [1, 1, 1, 1]> (a, w)
        c = Conv <strides = [8, 8]> (b, u)
        d = Conv (c, v)
        y = Conv (d, v)
    }"""
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 4, 3, 3), "u": (64, 4, 1, 1), "v": (64, 64, 1, 1)}
    constants = {k: (rng.standard_normal(s) / 6).astype(np.float32) for k, s in shapes.items()}
    model = model_from_text(text, opset=17, **constants)
    before, _, reasons = quantized(model)
    assert len([r for r in reasons if "does not pay" in r]) in {2, 3}
    assert before > 0


def test_shapes_follow_from_the_sample() -> None:
    text = """g (float[N,C,H,W] x) => (float[N,C,P,Q] y) {
        a = Conv (x, w)
        y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)
    }"""
    model = model_from_text(text, opset=17, w=np.ones((5, 3, 3, 3), np.float32))
    values = [node.outputs[0] for node in model.graph]
    feeds = [{"x": np.zeros((2, 3, 10, 12), np.float32)}]
    found = shapes_of(model, values, context_for(model, feeds))
    assert found == {"a": (2, 5, 8, 10), "y": (2, 5, 4, 5)}


def test_shapes_that_depend_on_data_are_observed() -> None:
    text = """g (float[N] x) => (float[M] y) {
        i = NonZero (x)
        f = Cast <to = 1> (i)
        s = ReduceSum <keepdims = 0> (f, a)
        y = Relu (s)
    }"""
    model = model_from_text(text, opset=17, a=np.array([0]))
    values = [node.outputs[0] for node in model.graph]
    feeds = [{"x": np.array([0.0, 1.0, 2.0, 0.0, 3.0], np.float32)}]
    found = shapes_of(model, values, context_for(model, feeds))
    assert found["i"] == (1, 3)
    assert found["y"] == (3,)


def test_unknown_shapes_are_placed_by_the_rules() -> None:
    model = conv_model(4, 14)
    plan = place(model, Selection())
    assert Estimate(plan, {}).declined() == {}


def test_estimates_grow_with_the_work() -> None:
    for kernel, form in (("float", float_conv), ("integer", integer_conv)):
        for groups in (1, 32):
            small = form(Product(100, 32, 32, 9, groups))
            large = form(Product(400, 32, 32, 9, groups))
            assert small[0] == large[0]
            assert cost(f"{kernel}:{small[0]}", small[1]) < cost(f"{kernel}:{large[0]}", large[1])


def test_every_kernel_of_the_formula_has_rates() -> None:
    for groups, inputs in ((1, 3), (1, 33), (1, 32), (32, 32), (4, 64)):
        outputs = 32 if inputs == 3 else inputs
        product = Product(49, inputs, outputs, 9, groups)
        assert f"float:{float_conv(product)[0]}" in RATES
        assert f"integer:{integer_conv(product)[0]}" in RATES
    assert all(rate >= 0 for row in RATES.values() for rate in row.values())
