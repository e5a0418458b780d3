"""Range statistics: merging, grouping, emptiness and NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest

from converter.calibration.minmax import MinMax


def of(*arrays: np.ndarray) -> MinMax:
    statistic = MinMax()
    for array in arrays:
        statistic.update(array)
    return statistic


def test_result_does_not_depend_on_order_or_grouping() -> None:
    data = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
    whole = of(data)
    parts, reverse = of(*data), of(*data[::-1])
    halves = of(data[:3])
    halves.merge(of(data[3:]))
    assert whole == parts == reverse == halves
    assert (whole.low, whole.high) == (data.min(), data.max())


def test_empty_tensors_change_nothing() -> None:
    statistic = of(np.zeros((0, 3), np.float32))
    assert not statistic.seen
    statistic.merge(MinMax())
    assert not statistic.seen
    statistic.update(np.array([2.0]))
    assert statistic.seen
    assert statistic.finite


@pytest.mark.parametrize("at", [0, 1, 2])
def test_nan_stays(at: int) -> None:
    arrays = [np.array([1.0]), np.array([-3.0]), np.array([5.0])]
    arrays[at] = np.array([0.5, math.nan])
    statistic = of(*arrays)
    assert math.isnan(statistic.low)
    assert math.isnan(statistic.high)
    assert statistic.seen
    assert not statistic.finite


def test_infinity_is_seen_and_not_finite() -> None:
    statistic = of(np.array([-math.inf, 1.0]))
    assert statistic.seen
    assert not statistic.finite


def test_state_round_trip_and_constant_size() -> None:
    statistic = of(np.arange(1000.0))
    assert MinMax.restore(statistic.state()) == statistic
    assert statistic.nbytes == MinMax().nbytes


def test_reduced_update_equals_the_full_one() -> None:
    array = np.array([[3.0, -1.0], [0.5, 2.0]], np.float32)
    statistic = MinMax()
    statistic.update_reduced(array.min(), array.max())
    assert statistic == of(array)
