"""Statistics other than the range: what they say, merging in any grouping, size, odd input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from converter.calibration.average import Average
from converter.calibration.channels import AbsMax, Moments
from converter.calibration.gram import Gram
from converter.calibration.histogram import BINS, Histogram
from converter.calibration.kinds import STATISTICS
from converter.calibration.patches import Geometry, patches
from converter.calibration.statistic import Request, Source, Statistic
from converter.errors import DataError

RNG = np.random.default_rng(1)
TENSORS = [
    (RNG.standard_normal((2, 3, 5)) * scale).astype(np.float32)
    for scale in (1.0, 1e-3, 700.0, 0.5, 3e4, 1e-20)
]
CONV = Geometry((3,), (1,), (1,), ((1, 1),))


def begin(kind: str) -> Statistic:
    return STATISTICS[kind].begin(Request("x", kind, geometry=CONV, rows=4))


def of(kind: str, tensors: Sequence[np.ndarray]) -> Any:
    statistic = begin(kind)
    for i, tensor in enumerate(tensors):
        statistic.update(tensor, Source(i, 1))
    return statistic


def same(left: Any, right: Any) -> bool:
    """Compare states bit by bit."""
    return repr_of(left.state()) == repr_of(right.state())


def repr_of(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return {k: repr_of(v) for k, v in value.items()} if isinstance(value, dict) else repr(value)


@pytest.mark.parametrize("kind", ["minmax", "average", "absmax", "histogram"])
@pytest.mark.parametrize("cut", [[1], [3], [1, 2, 4], [5]])
def test_any_order_and_grouping_gives_equal_bits(kind: str, cut: list[int]) -> None:
    whole = of(kind, TENSORS)
    assert same(whole, of(kind, TENSORS[::-1]))
    parts = [of(kind, list(part)) for part in np.split(np.stack(TENSORS), cut)]
    for order in (parts, parts[::-1]):
        total = begin(kind)
        for part in order:
            total.merge(part)
        assert same(total, whole)


@pytest.mark.parametrize("kind", sorted(STATISTICS))
def test_a_state_is_restored_and_merging_nothing_changes_nothing(kind: str) -> None:
    found = of(kind, TENSORS)
    again = type(found).restore(found.state())
    assert same(found, again)
    again.merge(begin(kind))
    again.update(np.zeros((0, 3, 5), np.float32))
    assert same(found, again)
    empty = begin(kind)
    empty.merge(found)
    assert same(empty, found)


@pytest.mark.parametrize("kind", sorted(STATISTICS))
def test_size_does_not_grow_with_the_samples(kind: str) -> None:
    few, many = of(kind, TENSORS), of(kind, TENSORS * 20)
    assert many.nbytes == few.nbytes


@pytest.mark.parametrize("kind", ["moments", "gram"])
def test_sums_merge_to_the_same_within_rounding(kind: str) -> None:
    whole, left, right = of(kind, TENSORS), of(kind, TENSORS[:2]), of(kind, TENSORS[2:4])
    left.merge(right)
    left.merge(of(kind, TENSORS[4:]))
    for name, value in whole.state().items():
        if isinstance(value, np.ndarray) and kind == "moments":
            np.testing.assert_allclose(left.state()[name], value, rtol=1e-12)
    assert left.state().keys() == whole.state().keys()


def test_average_is_the_mean_of_the_samples_ends() -> None:
    found = Average()
    found.update(np.array([[1.0, 5.0], [-3.0, 1.0]], np.float32), Source(0, 2))
    assert (found.low, found.high) == (-1.0, 3.0)
    found.update(np.array([[math.nan, 9.0]], np.float32))
    assert (found.low, found.high, found.unusable) == (-1.0, 3.0, 1)
    reduced = Average()
    reduced.update_reduced(np.array([1.0, -3.0]), np.array([5.0, 1.0]), source=Source(0, 2))
    assert (reduced.low, reduced.high) == (-1.0, 3.0)
    # an axis that does not count samples is one sample
    reduced.update_reduced(np.array([0.0, -4.0, 0.0]), np.array([5.0, 1.0, 0.0]))
    assert (reduced.low, reduced.count) == (-2.0, 3)


@pytest.mark.parametrize("axis", [1, -1, 2])
def test_moments_and_magnitudes_per_channel(axis: int) -> None:
    x = RNG.standard_normal((4, 3, 6)).astype(np.float32) + 1
    others = tuple(a for a in range(3) if a != axis % 3)
    moments, largest = Moments(axis), AbsMax(axis)
    for i, half in enumerate(np.split(x, 2)):
        moments.update(half, Source(2 * i, 2))
        largest.update(half, Source(2 * i, 2))
    np.testing.assert_allclose(moments.mean, x.mean(axis=others), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, x.var(axis=others), rtol=1e-4)
    by_sample = x.mean(axis=tuple(a for a in others if a))
    expected = by_sample.std(axis=0, ddof=1) / math.sqrt(4)
    np.testing.assert_allclose(moments.error, expected, rtol=1e-4)
    np.testing.assert_array_equal(largest.largest, np.abs(x).max(axis=others))


def test_channels_that_change_their_number_are_a_data_error() -> None:
    moments = Moments(1)
    moments.update(np.ones((1, 3, 4), np.float32))
    with pytest.raises(DataError, match="3 channels in one sample and 4"):
        moments.update(np.ones((1, 4, 4), np.float32))


def test_a_histogram_counts_every_element_in_its_bin() -> None:
    found = Histogram()
    data = np.concatenate([t.reshape(-1) for t in TENSORS])
    for tensor in TENSORS:
        found.update(tensor)
    expected, _ = np.histogram(data, found.edges)
    # numpy closes the last bin on the right; nothing lies there
    np.testing.assert_array_equal(found.counts, expected)
    assert found.total == data.size
    assert BINS // 4 < found.counts.size <= BINS
    assert found.edges[0] <= data.min()
    assert data.max() < found.edges[-1]


DISTRIBUTIONS: list[Callable[[], np.ndarray]] = [
    lambda: np.zeros(7),
    lambda: np.full(5, 3.0),
    lambda: np.full(5, -1e-30),
    lambda: np.array([0.0, 2048.0]),
    lambda: np.array([-1024.0, 1024.0, -1e-9]),
    lambda: np.array([3e38, -3e38, 1.0]),
    lambda: np.array([1e6, 1e6 + 1]),
]


@pytest.mark.parametrize("make", DISTRIBUTIONS)
def test_odd_ranges_fit(make: Callable[[], np.ndarray]) -> None:
    data = make().astype(np.float32)
    whole, single = Histogram(), Histogram()
    whole.update(data)
    for element in data:
        single.update(np.array([element]))
    assert same(whole, single)
    assert whole.total == data.size
    assert whole.counts.size <= BINS


def test_what_is_no_number_is_counted_apart() -> None:
    found = Histogram()
    found.update(np.array([math.nan, 1.0, math.inf, -2.0], np.float32))
    assert (found.total, found.unusable) == (2, 2)


def test_gram_is_the_product_of_the_rows() -> None:
    x = RNG.standard_normal((3, 2, 9)).astype(np.float32)
    found = Gram(CONV, most=100)
    found.update(x)
    rows = patches(x, CONV, 100, 0)[:, 0].astype(np.float64)
    np.testing.assert_allclose(found.products[0], rows.T @ rows, rtol=1e-5, atol=1e-5)
    centred = rows - rows.mean(axis=0)
    np.testing.assert_allclose(found.centred[0], centred.T @ centred, rtol=1e-4, atol=1e-4)
    assert found.rows == 27
    x[0, 0, 0] = math.nan
    found.update(x)
    assert found.unusable == 2
    assert np.isfinite(found.products).all()
