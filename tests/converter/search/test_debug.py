"""Two models value by value: planted faults are found where they were planted."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from support import model_from_text

import converter
from converter.errors import VerificationError
from converter.search.gaps import Debugging, Gap
from passes import Fuse, Quantize

NET = """g (float[N,3,H,8] x) => (float[N,4,H,8] y) {
    [c1] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    [bn] n = BatchNormalization(a, s, t, m, v)
    [r1] b = Relu(n)
    [c2] c = Conv<pads=[1,1,1,1]>(b, w2)
    [add] d = Add(b, c)
    [c3] y = Conv(d, w3)
}"""


def net() -> ir.Model:
    draw = np.random.default_rng(4).standard_normal
    shapes = {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (6, 6, 3, 3), "w3": (4, 6, 1, 1)}
    made = {
        n: (draw(s) / math.sqrt(math.prod(s[1:]))).astype(np.float32) for n, s in shapes.items()
    }
    made |= {n: draw(6).astype(np.float32) for n in ("s", "t", "m")}
    made["v"] = np.ones(6, np.float32)
    return model_from_text(NET, **made)


SAMPLES = {"x": np.random.default_rng(5).standard_normal((6, 3, 8, 8)).astype(np.float32)}


def with_weight(name: str, change: object) -> ir.Model:
    model = net()
    value = model.graph.initializers[name]
    array = change(value.const_value.numpy().copy())  # type: ignore[operator]
    value.const_value = ir.tensor(array.astype(np.float32), name=name)
    return model


def by_value(found: Debugging) -> dict[str, Gap]:
    return {gap.value: gap for gap in found.values}


def test_equal_models_do_not_deviate() -> None:
    found = converter.debug(net(), net(), data=SAMPLES)
    assert found.first is None
    assert found.worst_layer is None
    assert all(gap.equal for gap in found.values)
    assert found.samples == 6


def test_a_changed_weight_is_found_at_its_node() -> None:
    found = converter.debug(net(), with_weight("w2", lambda w: w * 1.1), data=SAMPLES)
    gaps = by_value(found)
    assert found.first == found.worst_layer == "c"
    assert gaps["c"].layer == "c2"
    # a tenth of the signal is noise: 20 dB, accumulated and local alike
    assert gaps["c"].local_sqnr_db == pytest.approx(20.0, abs=0.1)
    assert gaps["c"].sqnr_db == pytest.approx(20.0, abs=0.1)
    assert gaps["b"].equal
    assert gaps["y"].local_sqnr_db is None, "the last layer did not change"
    assert not gaps["y"].equal
    order = [gap.sqnr_db for gap in found.values]
    assert order == sorted(order)


def test_local_errors_do_not_see_what_came_before() -> None:
    broken = with_weight("w1", lambda w: -w)
    broken.graph.initializers["w3"].const_value = ir.tensor(
        net().graph.initializers["w3"].const_value.numpy() * np.float32(1.01), name="w3"
    )
    gaps = by_value(converter.debug(net(), broken, data=SAMPLES))
    assert gaps["y"].local_sqnr_db == pytest.approx(40.0, abs=0.1)
    assert gaps["y"].sqnr_db < 10


def test_models_with_other_nodes_are_paired_where_they_can_be() -> None:
    fused = converter.convert(net(), passes=[Fuse()], verify=False).model
    assert len(list(fused.graph)) < len(list(net().graph))
    found = converter.debug(net(), fused, data=SAMPLES)
    assert found.first is None, "folding a BatchNormalization only rounds"
    assert {"b", "c", "d", "y"} <= by_value(found).keys()


def test_quantized_values_are_compared_after_their_grid_and_saturation_is_counted() -> None:
    few = {"x": SAMPLES["x"][:1] * 0.5}  # calibrated on half the range
    quantized = converter.convert(
        net(), passes=[Fuse(), Quantize(method="minmax", speed="max")], data=few, verify=False
    ).model
    found = converter.debug(net(), quantized, data=SAMPLES)
    gaps = by_value(found)
    assert {"b", "c"} <= gaps.keys()
    assert 0.0 < gaps["b"].saturated < 0.5
    assert gaps["b"].local_sqnr_db is not None
    assert found.first == "b"
    same = converter.debug(net(), quantized, data=few)
    assert by_value(same)["b"].saturated == 0.0


def test_dead_channels_are_counted() -> None:
    dead = with_weight("s", lambda s: np.where(np.arange(6) == 2, 0.0, s))
    dead.graph.initializers["t"].const_value = ir.tensor(
        np.where(np.arange(6) == 2, -1.0, net().graph.initializers["t"].const_value.numpy()).astype(
            np.float32
        ),
        name="t",
    )
    gap = by_value(converter.debug(net(), dead, data=SAMPLES))["b"]
    assert (gap.died, gap.channels) == (1, 6)
    before = by_value(converter.debug(net(), net(), data=SAMPLES))["b"]
    both = by_value(converter.debug(dead, dead, data=SAMPLES))["b"]
    assert (both.died, both.dead) == (0, before.dead + 1)


def test_broken_values_come_first() -> None:
    found = converter.debug(net(), with_weight("w2", lambda w: w * np.nan), data=SAMPLES)
    assert found.values[0].broken
    assert found.first == "c"


def test_shapes_may_vary_from_sample_to_sample() -> None:
    rows = [SAMPLES["x"][:1, :, :h] for h in (3, 5, 8)]
    found = converter.debug(
        net(), with_weight("w3", lambda w: w * 1.01), data=[{"x": r} for r in rows]
    )
    assert found.samples == 3
    assert by_value(found)["y"].sqnr_db == pytest.approx(40.0, abs=0.1)


def test_without_samples_inputs_are_made_up_and_that_is_said() -> None:
    found = converter.debug(net(), net())
    assert found.synthetic
    assert any("made up" in note for note in found.notes)


def test_models_that_cannot_be_compared_are_refused() -> None:
    other = model_from_text("g (float[N,2] z) => (float[N,2] q) { q = Relu(z) }")
    with pytest.raises(VerificationError, match="different inputs"):
        converter.debug(net(), other)
    strange = model_from_text("g (float[N,3,H,8] x) => (float[N,3,H,8] q) { q = Relu(x) }")
    with pytest.raises(VerificationError, match="share no value"):
        converter.debug(net(), strange)


def test_results_are_plain_data() -> None:
    plain = converter.debug(net(), net(), data=SAMPLES).to_dict()
    assert {"values", "first", "worst_layer", "samples"} <= plain.keys()
    assert plain["values"][0]["value"]


OPERATORS = """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
    x_quantized = QuantizeLinear(x, sx, zx)
    a_quantized = QLinearConv<pads=[1,1,1,1]>(x_quantized, sx, zx, w1q, s1, z1, sb, zb)
    c_quantized = QLinearConv(a_quantized, sb, zb, w2q, s2, z1, sy, zy)
    y = DequantizeLinear(c_quantized, sy, zy)
}"""
FLOATS = """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
    [c1] a = Conv<pads=[1,1,1,1]>(x, w1)
    [r1] b = Relu(a)
    [c2] y = Conv(b, w2)
}"""


def test_values_between_integer_operators_are_compared_too() -> None:
    """The first product keeps the name of what came before Relu, which its grid replaces."""
    draw = np.random.default_rng(6)
    w1q = draw.integers(-127, 128, (6, 3, 3, 3)).astype(np.int8)
    w2q = draw.integers(-127, 128, (4, 6, 1, 1)).astype(np.int8)
    numbers = {
        n: np.float32(v)
        for n, v in zip(
            ("sx", "s1", "sb", "s2", "sy"), (0.03, 0.003, 0.04, 0.005, 0.08), strict=True
        )
    }
    numbers |= {"zx": np.uint8(128), "z1": np.int8(0), "zb": np.uint8(0), "zy": np.uint8(128)}
    floats = {"w1": w1q * np.float32(0.003), "w2": w2q * np.float32(0.005)}
    first = model_from_text(FLOATS, **floats)
    second = model_from_text(OPERATORS, w1q=w1q, w2q=w2q, **numbers)
    gaps = by_value(converter.debug(first, second, data=SAMPLES))
    assert gaps["b"].layer == "c1"
    assert gaps["b"].saturated is not None
    for value in ("b", "y"):
        assert 25 < gaps[value].local_sqnr_db < 60
        assert gaps[value].local_sqnr_db >= gaps[value].sqnr_db - 1.0
