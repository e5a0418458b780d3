"""The affine map between numbers and integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.affine.grid import UINT8, Grid, asymmetric, symmetric

NUMBERS = st.floats(-1e6, 1e6, width=32)


def grids(low: float, high: float) -> list[Grid]:
    low, high = min(low, high), max(low, high)
    return [asymmetric(low, high), symmetric(low, high)]


@given(NUMBERS, NUMBERS)
def test_zero_is_exact(low: float, high: float) -> None:
    for grid in grids(low, high):
        zero = grid.quantize(np.zeros(1, np.float32))
        assert zero[0] == grid.zero_point
        assert grid.dequantize(zero)[0] == 0.0
        assert 0 <= grid.zero_point <= 255
        assert grid.scale > 0


@given(NUMBERS, NUMBERS, st.integers(0, 2**32 - 1))
def test_round_trip_error_is_at_most_half_a_step(low: float, high: float, seed: int) -> None:
    low, high = min(low, high), max(low, high)
    values = np.random.default_rng(seed).uniform(low, high, 50).astype(np.float32)
    for grid in grids(low, high):
        error = np.abs(grid.dequantize(grid.quantize(values)) - values)
        # Half a step, and at the ends another half because the zero point is a whole number.
        assert (error <= grid.scale * 1.01).all()
        inside = (values >= grid.low) & (values <= grid.high)
        assert (error[inside] <= grid.scale * 0.5 + np.abs(values[inside]) * 1e-5).all()


@given(NUMBERS, NUMBERS)
def test_numbers_outside_saturate_and_never_wrap(low: float, high: float) -> None:
    for grid in grids(low, high):
        ends = np.array([-3.0e38, 3.0e38, -np.inf, np.inf], np.float32)
        assert grid.quantize(ends).tolist() == [0, 255, 0, 255]


@given(NUMBERS, NUMBERS)
def test_idempotent(low: float, high: float) -> None:
    for grid in grids(low, high):
        integers = np.arange(256).astype(np.uint8)
        assert (grid.quantize(grid.dequantize(integers)) == integers).all()


def test_a_range_without_width_is_safe() -> None:
    assert asymmetric(0.0, 0.0) == Grid(1.0, 0)
    assert symmetric(0.0, 0.0) == Grid(1.0, 0)
    assert symmetric(-1.0, 0.5).zero_point == 128
    assert asymmetric(1e-45, 1e-45).scale > 0
    assert math.isfinite(asymmetric(-3.4e38, 3.4e38).scale)


def test_relu_and_relu6_ranges_are_covered_exactly() -> None:
    grid = asymmetric(0.0, 6.0)
    assert grid.zero_point == 0
    assert grid.low == 0.0
    assert grid.high == pytest.approx(6.0, rel=1e-6)
    assert asymmetric(2.0, 6.0) == grid


@pytest.mark.parametrize("ends", [(math.nan, 1.0), (0.0, math.inf), (2.0, 1.0)])
def test_impossible_ranges_are_refused(ends: tuple[float, float]) -> None:
    for make in (asymmetric, symmetric):
        with pytest.raises(ValueError, match="no grid"):
            make(*ends)


def test_integers_in_use_fit_the_type() -> None:
    info = np.iinfo(UINT8.dtype)
    assert (UINT8.low, UINT8.high) == (info.min, info.max)
