"""Counts by rules that need no data."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from passes.sparsity import simple
from passes.sparsity.room import exact
from tests.passes.sparsity.test_masks import problem, random

RULES = (
    simple.local,
    simple.global_,
    simple.erk,
    simple.lamp,
    simple.linear,
    simple.polynomial,
)


def chain(scales=(1.0, 0.1, 3.0, 0.5), widths=(12, 40, 64, 24, 5)):
    return [
        scale * random(shape, seed)
        for seed, (scale, shape) in enumerate(zip(scales, pairwise(widths), strict=True))
    ]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize("share", [0.0, 0.123, 0.5, 0.9, 0.995])
def test_the_sum_is_exact(rule, criterion, share) -> None:
    weights = [weight.astype(np.float32) for weight in chain()]
    given = problem(weights, share=share, criterion=criterion)
    zeros = rule(given).zeros
    assert zeros.dtype == np.int64
    assert zeros.sum() == given.wanted
    assert (zeros >= 0).all()
    assert (zeros <= given.sizes).all()


@pytest.mark.parametrize("rule", RULES)
def test_zeros_that_are_there_count(rule) -> None:
    weights = [weight.astype(np.float32) for weight in chain()]
    weights[1][:, :60] = 0
    weights[3][:] = 0
    there = [int((weight == 0).sum()) for weight in weights]
    for share in (0.1, 0.7, 0.95):
        given = problem(weights, share=share)
        zeros = rule(given).zeros
        assert (zeros >= there).all()
        assert zeros.sum() == max(given.wanted, sum(there))


def test_local_is_the_same_share_everywhere() -> None:
    weights = [random((8, 8)), random((8, 40), 1), random((40, 3), 2)]
    zeros = simple.local(problem(weights, share=0.7)).zeros
    assert np.abs(zeros - 0.7 * np.array([64, 320, 120])).max() < 1


def test_global_is_one_threshold() -> None:
    weights = chain()
    given = problem([weight.astype(np.float32) for weight in weights], share=0.6)
    flat = np.sort(np.concatenate([np.abs(weight).reshape(-1) for weight in weights]))
    edge = flat[given.wanted - 1].astype(np.float32)
    expected = [int((np.abs(weight).astype(np.float32) <= edge).sum()) for weight in weights]
    assert simple.global_(given).zeros.tolist() == expected
    masked = simple.global_(problem([w.astype(np.float32) for w in weights], pattern="1x4")).zeros
    assert (masked % 4 == 0).sum() >= 2


def test_erk_densities() -> None:
    """Density in proportion to (in + out) / (in out); small layers stay dense."""
    given = problem([random((200, 200)), random((200, 100), 1), random((100, 4), 2)], share=0.8)
    density = 1 - simple.erk(given).zeros / given.sizes
    assert density[2] == 1.0
    raw = np.array([400 / 40_000, 300 / 20_000])
    assert density[0] / density[1] == pytest.approx(raw[0] / raw[1], rel=1e-3)


def test_depth_rules_rise() -> None:
    weights = [random((32, 32), seed) for seed in range(6)]
    line = simple.linear(problem(weights, share=0.5)).zeros / 1024
    np.testing.assert_allclose(np.diff(line), 1 / 6, atol=2e-3)
    curve = simple.polynomial(problem(weights, share=0.5)).zeros / 1024
    assert (np.diff(curve) > 0).all()
    assert (np.diff(np.diff(curve)) < 0).all()
    steep = simple.linear(problem(weights, share=0.9)).zeros / 1024
    assert steep.max() == pytest.approx(0.99, abs=1e-3)
    assert simple.linear(problem(weights, share=0.995)).zeros.std() < 1


def test_lamp_of_blocks_follows_the_blocks() -> None:
    rng = np.random.default_rng(0)
    smooth = np.repeat(rng.standard_normal((32, 8)), 4, axis=1).astype(np.float32)
    rough = rng.permuted(smooth, axis=1).astype(np.float32)
    # columns are the inputs of a product: the stored tensor is (inputs, outputs)
    given = problem([smooth.T.copy(), rough.T.copy()], pattern="1x4")
    zeros = simple.lamp(given).zeros
    assert zeros.sum() == given.wanted
    assert zeros[0] > zeros[1]


def test_whole_numbers_near_wishes() -> None:
    low, high = np.array([0, 5, 0]), np.array([10, 10, 3])
    assert exact(np.array([2.5, 2.5, 2.5]), low, high, 10).tolist() == [3, 5, 2]
    assert exact(np.array([0.0, 0, 0]), low, high, 23).tolist() == [10, 10, 3]
    assert exact(np.array([9.0, 9, 9]), low, high, 0).tolist() == [0, 5, 0]
