"""The evolutionary search, the way up, and the bounds they keep to, on a made-up loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from passes.sparsity.evolution import Evolution, Plan
from passes.sparsity.genetic import Breeding, Task, Tried
from passes.sparsity.room import Room
from passes.sparsity.trail import Climb, rungs

if TYPE_CHECKING:
    from passes.sparsity.bench import Bench

SIZES = np.asarray([400, 3_000, 9_000, 600, 20_000, 50, 5_000], np.int64)
SENSITIVITY = np.asarray([9.0, 2.0, 0.5, 6.0, 0.1, 3.0, 1.0])


def damage(zeros: np.ndarray) -> float:
    """Layers matter differently, and damage adds up faster than the sum."""
    density = 1.0 - zeros / SIZES
    single = SENSITIVITY * (1.0 - density) ** 2 / np.maximum(density, 0.01)
    return float(single.sum() + 0.1 * single.sum() ** 2)


def room(share: float, low: np.ndarray | None = None) -> Room:
    return Room.between(
        SIZES, np.zeros_like(SIZES) if low is None else low, round(share * int(SIZES.sum()))
    )


def uniform(share: float) -> np.ndarray:
    return share * SIZES


def search(seed: int, **given: object) -> Evolution:
    made = Evolution(room(0.7), damage, np.random.default_rng(seed), **given)  # type: ignore[arg-type]
    made.run([uniform(0.7)], Plan(12, 15))
    return made


def test_fitted_counts_add_up_and_keep_the_bounds() -> None:
    rng = np.random.default_rng(0)
    low = np.asarray([100, 0, 9_000, 0, 10, 50, 0], np.int64)
    for share in (0.25, 0.5, 0.9, 0.999):
        bounds = room(share, low)
        for _ in range(20):
            found = bounds.fitted(rng.uniform(-0.2, 1.3, len(SIZES)) * SIZES)
            assert found.dtype == np.int64
            assert found.sum() == bounds.wanted
            assert (found >= bounds.low).all()
            assert (found <= bounds.high).all()


def test_fitted_leaves_what_fits_already() -> None:
    bounds = room(0.7)
    zeros = bounds.fitted(uniform(0.7))
    assert np.array_equal(bounds.fitted(zeros), zeros)


def test_every_layer_keeps_weights_where_the_total_allows_it() -> None:
    found = room(0.9).fitted(np.where(np.arange(7) == 4, 20_000, 0.0) + 0.85 * SIZES)
    assert (SIZES - found >= 1).all()


def test_zeros_that_are_there_are_more_than_wanted() -> None:
    low = SIZES // 2
    bounds = room(0.1, low)
    assert bounds.wanted == low.sum()
    assert bounds.fixed
    assert np.array_equal(bounds.fitted(uniform(0.1)), low)


def test_the_search_gets_better_and_keeps_the_sum() -> None:
    found = search(1)
    best = found.survivors[0]
    assert best.loss < 0.6 * damage(room(0.7).fitted(uniform(0.7)))
    for each in found.survivors:
        assert each.zeros.sum() == room(0.7).wanted
        assert each.loss == damage(each.zeros)
    losses = [each.loss for each in found.survivors]
    assert losses == sorted(losses)


def test_the_same_seed_finds_the_same_and_another_seed_another() -> None:
    one, two, three = search(1), search(1), search(2)
    assert [a.zeros.tolist() for a in one.survivors] == [b.zeros.tolist() for b in two.survivors]
    assert one.survivors[0].zeros.tolist() != three.survivors[0].zeros.tolist()


def test_few_samples_reject_children_without_a_run_over_all() -> None:
    found = search(1, quick=damage)
    plain = search(1)
    assert found.rejected > 0
    assert found.evaluations < plain.evaluations
    assert found.survivors[0].loss < 0.6 * damage(room(0.7).fitted(uniform(0.7)))


@pytest.mark.parametrize("allowed", [0, 1, 5, 40])
def test_the_best_so_far_is_usable_whenever_time_is_over(allowed: int) -> None:
    count = [0]

    def expired() -> bool:
        count[0] += 1
        return count[0] > allowed

    found = search(1, expired=expired)
    assert found.survivors
    assert found.survivors[0].loss <= damage(room(0.7).fitted(uniform(0.7)))


def test_losses_that_are_no_numbers_never_win() -> None:
    calls = [0]

    def broken(zeros: np.ndarray) -> float:
        calls[0] += 1
        return float("nan") if calls[0] % 2 else damage(zeros)

    made = Evolution(room(0.7), broken, np.random.default_rng(0))
    made.run([uniform(0.7)], Plan(8, 4))
    assert np.isfinite(made.survivors[0].loss)


def test_all_starts_are_built_whatever_few_samples_say_of_them() -> None:
    even = room(0.5).fitted(uniform(0.5))
    task = Task(
        room(0.5), {"lamp": even, "erk": even, "local": even}, Plan(4, 3), np.random.default_rng(0)
    )
    tried = [
        Tried(name, even, loss, loss)
        for name, loss in (("local", 9.0), ("generation 3", 0.1), ("lamp", 0.2), ("erk", 0.3))
    ]
    breeding = Breeding(task, cast("Bench", None), tried)
    assert [each.name for each in breeding.finalists()] == ["generation 3", "lamp", "erk", "local"]


def test_the_way_up_is_better_than_uniform_at_every_total() -> None:
    climb = Climb(room(0.95), damage)
    trail = climb.run()
    assert trail.complete
    assert trail.zeros[-1].sum() == room(0.95).wanted
    for share in (0.2, 0.5, 0.7, 0.8, 0.9):
        total = round(share * int(SIZES.sum()))
        found = trail.at(total)
        assert found.sum() == total
        assert damage(found) < damage(room(share).fitted(uniform(share)))


def test_the_way_up_never_gives_weights_back() -> None:
    trail = Climb(room(0.9), damage).run()
    assert (np.diff(trail.zeros, axis=0) >= -1).all()  # -1: the last point is rounded to the sum
    assert (np.diff(trail.losses) >= 0).all()


def test_the_way_goes_on_when_time_is_over() -> None:
    calls = [0]

    def expired() -> bool:
        calls[0] += 1
        return calls[0] > 30

    climb = Climb(room(0.8), damage, expired=expired)
    trail = climb.run()
    assert not trail.complete
    assert climb.runs <= 31
    assert trail.zeros[-1].sum() == room(0.8).wanted


def test_many_layers_take_fewer_steps_each() -> None:
    assert rungs(10, 600) == 16
    assert 4 <= rungs(100, 600) < 16
    assert rungs(10_000, 600) == 4
