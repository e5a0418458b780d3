"""Range methods: what each keeps, every kind of grid, never worse than min-max by its measure."""

from __future__ import annotations

import time

import numpy as np
import pytest

from converter.calibration.average import Average
from converter.calibration.histogram import Histogram
from converter.calibration.minmax import MinMax
from converter.calibration.statistic import Source
from passes.affine.grid import UINT8, IntegerRange, asymmetric, symmetric
from passes.affine.ranges import (
    STATISTICS_OF,
    Seen,
    _divergence,
    _Mass,
    _squared_error,
    choose,
)

UINT16 = IntegerRange(0, 65535, np.dtype(np.uint16))
RNG = np.random.default_rng(0)
SIZE = 50_000
DATA = {
    "normal": RNG.standard_normal(SIZE),
    "laplace": RNG.laplace(size=SIZE),
    "relu": np.maximum(RNG.standard_normal(SIZE), 0),
    "clipped": np.clip(4 * RNG.standard_normal(SIZE), 0, 6),
    "heavy": RNG.standard_t(3, SIZE),
    "outlier": np.append(RNG.standard_normal(SIZE), [80.0, -3.0]),
    "negative": -RNG.exponential(size=SIZE),
    "constant": np.full(100, 2.5),
    "zeros": np.zeros(50),
    "one": np.array([-0.25]),
    "tiny": RNG.standard_normal(SIZE) * 1e-25,
    "huge": RNG.standard_normal(SIZE) * 1e25,
}


def seen(data: np.ndarray) -> Seen:
    statistics = Seen(MinMax(), Average(), Histogram())
    for i, part in enumerate(np.array_split(data.astype(np.float32), 4)):
        for statistic in (statistics.minmax, statistics.average, statistics.histogram):
            assert statistic is not None
            statistic.update(part, Source(i))
    return statistics


SEEN = {name: seen(data) for name, data in DATA.items()}


def error(data: np.ndarray, ends: tuple[float, float], *, middle: bool = False) -> float:
    grid = (symmetric if middle else asymmetric)(*ends)
    x = data.astype(np.float32)
    return float(np.mean((grid.dequantize(grid.quantize(x)).astype(np.float64) - x) ** 2))


@pytest.mark.parametrize("name", sorted(DATA))
@pytest.mark.parametrize("method", sorted(STATISTICS_OF))
@pytest.mark.parametrize("middle", [False, True])
@pytest.mark.parametrize("integers", [UINT8, UINT16])
def test_every_range_lies_within_what_was_seen_and_makes_a_grid(
    name: str, method: str, *, middle: bool, integers: IntegerRange
) -> None:
    low, high = choose(method, SEEN[name], symmetric=middle, integers=integers)
    assert min(DATA[name].min(), 0) * (1 + 1e-6) <= low <= 0
    assert 0 <= high <= max(DATA[name].max(), 0) * (1 + 1e-6)
    grid = (symmetric if middle else asymmetric)(low, high, integers)
    assert grid.quantize(np.zeros(1))[0] == grid.zero_point


@pytest.mark.parametrize("name", sorted(DATA))
@pytest.mark.parametrize("middle", [False, True])
def test_mse_is_never_worse_than_min_max_on_the_data(name: str, *, middle: bool) -> None:
    chosen = choose("mse", SEEN[name], symmetric=middle)
    widest = choose("minmax", SEEN[name])
    # 2 %: the distribution within a bin is not known
    assert error(DATA[name], chosen, middle=middle) <= 1.02 * error(
        DATA[name], widest, middle=middle
    )


@pytest.mark.parametrize("name", ["normal", "laplace", "relu", "heavy", "outlier"])
def test_mse_finds_what_a_search_on_the_data_finds(name: str) -> None:
    data = DATA[name]
    shares = np.geomspace(0.05, 1, 20)
    low, high = min(data.min(), 0.0), max(data.max(), 0.0)
    best = min(error(data, (low * a, high * b)) for a in shares for b in (shares if high else [1]))
    # 5 %: as above, and the nets of the two searches differ
    assert error(data, choose("mse", SEEN[name])) <= 1.05 * best


@pytest.mark.parametrize("name", sorted(set(DATA) - {"zeros"}))
def test_a_search_never_ends_worse_than_min_max_by_its_own_measure(name: str) -> None:
    statistics = SEEN[name]
    assert statistics.histogram is not None
    ends = choose("minmax", statistics)
    mass = _Mass.of(statistics.histogram, *ends)
    for method, cost in (("mse", _squared_error), ("entropy", _divergence)):
        chosen = choose(method, statistics)
        both = np.array([chosen, ends])
        found, widest = cost(mass, both[:, 0], both[:, 1], 255)
        assert chosen == ends or found < widest


def test_entropy_cuts_off_what_is_rare_and_keeps_what_is_even() -> None:
    high = choose("entropy", SEEN["outlier"])[1]
    assert high < 30
    assert choose("entropy", SEEN["clipped"]) == choose("minmax", SEEN["clipped"])


def test_a_percentile_keeps_that_share() -> None:
    for share in (99.0, 99.9, 99.99):
        low, high = choose("percentile", SEEN["normal"], percentile=share)
        inside = np.mean((DATA["normal"] >= low) & (DATA["normal"] <= high))
        # the bins are 0.4 % of the range wide
        assert inside == pytest.approx(share / 100, abs=1e-3)
        _, bound = choose("percentile", SEEN["normal"], percentile=share, symmetric=True)
        inside = np.mean(np.abs(DATA["normal"]) <= bound)
        assert inside == pytest.approx(share / 100, abs=1e-3)
    widest = choose("minmax", SEEN["normal"])
    assert choose("percentile", SEEN["normal"], percentile=100) == pytest.approx(widest, rel=1e-2)


def test_average_takes_the_mean_of_the_samples_ends() -> None:
    parts = np.array_split(DATA["outlier"].astype(np.float32), 4)
    low, high = choose("average", SEEN["outlier"])
    assert low == pytest.approx(np.mean([p.min() for p in parts]))
    assert high == pytest.approx(np.mean([p.max() for p in parts]))


def test_elements_that_the_histogram_missed_count_at_the_ends() -> None:
    part = seen(DATA["normal"])
    part.minmax.update(np.array([1e6]))
    assert choose("mse", part)[1] > choose("mse", SEEN["normal"])[1]
    assert choose("percentile", part)[1] == pytest.approx(
        choose("percentile", SEEN["normal"])[1],
        rel=0.05,  # the rank is the same but for one element, the bins are wider
    )


def test_statistics_of_values_on_one_grid_are_joined() -> None:
    both = SEEN["normal"].merged(SEEN["relu"])
    whole = seen(np.concatenate([DATA["normal"], DATA["relu"]]))
    for method in ("minmax", "percentile", "mse", "entropy"):
        assert choose(method, both) == choose(method, whole)
    assert SEEN["normal"].histogram is not None
    assert SEEN["normal"].histogram.total == SIZE


def test_without_a_histogram_everything_is_kept() -> None:
    statistics = Seen(SEEN["normal"].minmax, None, Histogram())
    assert choose("mse", statistics) == choose("minmax", statistics)


def test_a_search_takes_milliseconds() -> None:
    start = time.process_time()
    for method in ("percentile", "mse", "entropy"):
        choose(method, SEEN["laplace"])
    assert time.process_time() - start < 0.2
