"""The affine map ``q = clamp(round(x / s) + z)``, ``x' = s (q - z)``: its laws, for every width.

docs/quantization.md, section 1, promises each of them.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import support
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from passes.affine.grid import INT8_SYMMETRIC, UINT8, Grid, IntegerRange, asymmetric, symmetric
from passes.affine.scale import (
    bias_scales,
    largest,
    quantize_bias,
    quantize_weight,
    weight_scales,
)

UINT4 = IntegerRange(0, 15, np.dtype(np.uint8))
INT4 = IntegerRange(-7, 7, np.dtype(np.int8))
INT8 = IntegerRange(-128, 127, np.dtype(np.int8))
UINT16 = IntegerRange(0, 65535, np.dtype(np.uint16))
INT16 = IntegerRange(-32768, 32767, np.dtype(np.int16))
WIDTHS = {
    "uint4": UINT4,
    "int4": INT4,
    "uint8": UINT8,
    "int8": INT8,
    "int8 symmetric": INT8_SYMMETRIC,
    "uint16": UINT16,
    "int16": INT16,
}
F32 = np.float32
TINY, HUGE = float(np.finfo(F32).tiny), float(np.finfo(F32).max)
DENORMAL = float(np.finfo(F32).smallest_subnormal)
EXTREMES = [0.0, -0.0, DENORMAL, -DENORMAL, TINY, -TINY, 1e-38, -1e-38, 1e38, -1e38, HUGE, -HUGE]
NUMBERS = st.one_of(st.floats(-1e6, 1e6, width=32), st.sampled_from(EXTREMES))
WIDTH = st.sampled_from(sorted(WIDTHS))
LAWS = settings(derandomize=True, deadline=None)  # the same cases in every run
SEEDS = st.integers(0, 2**32 - 1)


def grids(one: float, other: float, width: str) -> list[Grid]:
    """Both kinds of grid for the range between two numbers."""
    low, high = min(one, other), max(one, other)
    return [make(low, high, WIDTHS[width]) for make in (asymmetric, symmetric)]


def samples(grid: Grid, seed: int, reach: float = 1.0) -> np.ndarray:
    """Numbers on, between and beside the steps of a grid, sorted; ``reach`` times its ends."""
    rng = np.random.default_rng(seed)
    low, high = max(grid.low * reach, -HUGE), min(grid.high * reach, HUGE)
    ends = np.linspace(low, high, 33) if high - low < math.inf else np.array([low, 0.0, high])
    inner = rng.uniform(low / 2, high / 2, 100)
    steps = grid.scale * rng.integers(-300, 300, 50)
    made = np.concatenate([ends, inner, steps, steps + grid.scale / 2])
    return np.sort(np.clip(made, -HUGE, HUGE).astype(F32).clip(-HUGE, HUGE))


def all_integers(grid: Grid) -> np.ndarray:
    return np.arange(grid.integers.low, grid.integers.high + 1).astype(grid.integers.dtype)


class TestGrids:
    @LAWS
    @given(NUMBERS, NUMBERS, WIDTH)
    def test_zero_is_exact_and_every_part_is_sound(
        self, one: float, other: float, width: str
    ) -> None:
        for grid in grids(one, other, width):
            zeros = np.array([0.0, -0.0], F32)
            assert (grid.quantize(zeros) == grid.zero_point).all()
            back = grid.dequantize(grid.quantize(zeros))
            assert (back == 0.0).all()
            assert grid.integers.low <= grid.zero_point <= grid.integers.high
            assert grid.scale > 0
            assert math.isfinite(grid.scale)
            assert grid.scale == float(F32(grid.scale))

    @LAWS
    @given(NUMBERS, NUMBERS, WIDTH, SEEDS)
    def test_inside_the_range_the_error_is_half_a_step(
        self, one: float, other: float, width: str, seed: int
    ) -> None:
        for grid in grids(one, other, width):
            values = samples(grid, seed)
            low, high = max(grid.low, -HUGE / 2), min(grid.high, HUGE / 2)
            inside = values[(values >= low) & (values <= high)].astype(np.float64)
            back = grid.dequantize(grid.quantize(inside.astype(F32))).astype(np.float64)
            # Beside half a step: float32 rounds the quotient and the product, each to 2^-24.
            slack = np.abs(inside) * 2.0**-22 + DENORMAL
            assert (np.abs(back - inside) <= grid.scale / 2 + slack).all()

    @LAWS
    @given(NUMBERS, NUMBERS, WIDTH)
    def test_the_range_that_was_asked_for_is_covered(
        self, one: float, other: float, width: str
    ) -> None:
        low, high = min(one, other, 0.0), max(one, other, 0.0)
        for grid in grids(one, other, width):
            # The zero point is a whole number, so an end may lie half a step beyond the grid.
            slack = grid.scale * 0.5 + max(-low, high) * 1e-6
            assert grid.low <= low + slack
            assert grid.high >= high - slack

    @LAWS
    @given(NUMBERS, NUMBERS, WIDTH)
    def test_outside_it_saturates_and_never_wraps(
        self, one: float, other: float, width: str
    ) -> None:
        for grid in grids(one, other, width):
            low, high = grid.integers.low, grid.integers.high
            assert grid.quantize(np.array([-np.inf, np.inf], F32)).tolist() == [low, high]
            just = (grid.low - grid.scale, grid.high + grid.scale)
            if just[0] >= -HUGE and just[1] <= HUGE:
                beyond = np.array([*just, -HUGE, HUGE], F32)
                assert grid.quantize(beyond).tolist() == [low, high, low, high]

    @LAWS
    @given(NUMBERS, NUMBERS, WIDTH, SEEDS)
    def test_order_is_kept(self, one: float, other: float, width: str, seed: int) -> None:
        for grid in grids(one, other, width):
            integers = grid.quantize(samples(grid, seed, reach=3.0)).astype(np.int64)
            assert (np.diff(integers) >= 0).all()

    @LAWS
    @given(NUMBERS, NUMBERS, WIDTH)
    def test_every_integer_survives_a_round_trip(
        self, one: float, other: float, width: str
    ) -> None:
        for grid in grids(one, other, width):
            integers = all_integers(grid)
            if abs(grid.scale) * (integers.size + 1) >= HUGE:
                continue  # an end of the grid that no float32 number can name
            once = grid.dequantize(integers)
            assert (grid.quantize(once) == integers).all()
            np.testing.assert_array_equal(grid.dequantize(grid.quantize(once)), once)

    @LAWS
    @given(NUMBERS, WIDTH)
    def test_symmetric_grids_commute_with_the_sign(self, bound: float, width: str) -> None:
        integers = WIDTHS[width]
        assume(bound != 0.0)  # else nothing is negative, and the grid has one side only
        grid = symmetric(-abs(bound), abs(bound), integers)
        values = samples(grid, 0)
        values = values[np.abs(values) <= min(grid.high, HUGE)]
        plus = grid.quantize(values).astype(np.int64) - grid.zero_point
        minus = grid.quantize(-values).astype(np.int64) - grid.zero_point
        np.testing.assert_array_equal(plus, -minus)

    @LAWS
    @given(NUMBERS, NUMBERS, WIDTH, st.integers(-20, 20))
    def test_powers_of_two_scale_the_grid_alone(
        self, one: float, other: float, width: str, power: int
    ) -> None:
        factor = 2.0**power
        sizes = [abs(number) for number in (one, other) if number]
        assume(sizes)
        assume(max(sizes) < 1e20 and min(sizes) > 1e-20)
        for plain, scaled in zip(
            grids(one, other, width), grids(one * factor, other * factor, width), strict=True
        ):
            values = samples(plain, 1)
            assert scaled.scale == plain.scale * factor
            np.testing.assert_array_equal(
                plain.quantize(values), scaled.quantize(values * F32(factor))
            )


class TestWeights:
    @LAWS
    @given(SEEDS, st.sampled_from([0, 1]), st.integers(1, 6), st.integers(1, 6))
    def test_channels_do_not_know_of_each_other(
        self, seed: int, axis: int, rows: int, columns: int
    ) -> None:
        rng = np.random.default_rng(seed)
        weight = (rng.standard_normal((rows, columns)) * 10.0 ** rng.integers(-6, 6)).astype(F32)
        order = rng.permutation(weight.shape[axis])
        scales = weight_scales(largest(weight, axis))
        integers = quantize_weight(weight, scales, axis)
        moved = np.take(weight, order, axis)
        moved_scales = weight_scales(largest(moved, axis))
        np.testing.assert_array_equal(moved_scales, scales[order])
        np.testing.assert_array_equal(
            quantize_weight(moved, moved_scales, axis), np.take(integers, order, axis)
        )

    @LAWS
    @given(SEEDS, st.sampled_from([None, 0, 1]))
    def test_laws_hold_per_channel(self, seed: int, axis: int | None) -> None:
        rng = np.random.default_rng(seed)
        weight = (rng.standard_normal((5, 7)) * np.exp(rng.uniform(-30, 30, (5, 1)))).astype(F32)
        weight[rng.random((5, 7)) < 0.3] = 0.0
        scales = weight_scales(largest(weight, axis))
        integers = quantize_weight(weight, scales, axis)
        step = scales if axis is None else np.expand_dims(scales, 1 - axis)
        back = integers.astype(np.float64) * step
        assert (integers[weight == 0] == 0).all()
        assert np.abs(integers.astype(int)).max() <= 127
        assert (np.abs(back - weight) <= step * 0.5 * (1 + 1e-5)).all()
        np.testing.assert_array_equal(
            quantize_weight((integers * step).astype(F32), scales, axis), integers
        )

    @LAWS
    @given(SEEDS)
    def test_a_bias_fits_whatever_the_weights_are(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        magnitude = np.exp(rng.uniform(-60, 5, 8))
        bias = (rng.standard_normal(8) * np.exp(rng.uniform(-10, 10, 8))).astype(F32)
        step = float(F32(np.exp(rng.uniform(-10, 3))))
        scales = bias_scales(weight_scales(magnitude, bias, step), step)
        integers = quantize_bias(bias, scales)
        assert np.abs(integers.astype(np.int64)).max() <= 2**31 - 1
        back = integers.astype(np.float64) * scales
        assert (np.abs(back - bias) <= scales * 0.5 + np.abs(bias) * 1e-6).all()


KINDS = {
    "uint4": TensorProto.UINT4,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "uint16": TensorProto.UINT16,
    "int16": TensorProto.INT16,
}


def runtime(grid: Grid, width: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What onnxruntime makes of the values: integers and the numbers that they stand for."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("Cast", ["q"], ["i"], to=TensorProto.INT32),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    constants = [
        helper.make_tensor("s", TensorProto.FLOAT, [], [grid.scale]),
        helper.make_tensor("z", KINDS[width], [], [grid.zero_point]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [values.size])]
    outputs = [
        helper.make_tensor_value_info("i", TensorProto.INT32, [values.size]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [values.size]),
    ]
    graph = helper.make_graph(nodes, "map", inputs, outputs, constants)
    opset = [helper.make_opsetid("", 21)]
    found = support.run(helper.make_model(graph, ir_version=10, opset_imports=opset), {"x": values})
    return found["i"], found["y"]


@pytest.mark.parametrize("width", sorted(KINDS))
@settings(LAWS, max_examples=25)
@given(one=NUMBERS, other=NUMBERS, seed=SEEDS)
def test_onnxruntime_computes_the_same_bits(
    width: str, one: float, other: float, seed: int
) -> None:
    for grid in grids(one, other, width):
        extremes = np.array([*EXTREMES, np.inf, -np.inf], F32)
        values = np.concatenate([samples(grid, seed, reach=2.0), extremes])
        integers, numbers = runtime(grid, width, values)
        ours = grid.quantize(values)
        np.testing.assert_array_equal(ours.astype(np.int32), integers)
        np.testing.assert_array_equal(grid.dequantize(ours), numbers)


@pytest.mark.parametrize("axis", [0, 1])
def test_onnxruntime_rounds_weights_to_the_same_integers(axis: int) -> None:
    rng = np.random.default_rng(3)
    weight = (rng.standard_normal((6, 8)) * np.exp(rng.uniform(-8, 8, (6, 1)))).astype(F32)
    scales = weight_scales(largest(weight, axis))
    model = support.model_from_text(
        f"""g (float[6,8] x) => (int8[6,8] q) {{ q = QuantizeLinear <axis = {axis}> (x, s, z) }}""",
        s=scales,
        z=np.zeros(scales.shape, np.int8),
    )
    expected = support.run(model, {"x": weight})["q"]
    np.testing.assert_array_equal(quantize_weight(weight, scales, axis), expected)
