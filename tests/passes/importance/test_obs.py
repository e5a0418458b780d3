"""Greedy optimal brain surgeon over groups of columns, against least squares solved anew."""

from __future__ import annotations

import numpy as np
import pytest

from passes.importance.obs import (
    Reader,
    Task,
    invert,
    refit,
    relative_power,
    remove,
    ridge_for,
)


def rows(count, columns, seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, columns)) @ rng.standard_normal((columns, columns))
    return np.concatenate([mixed + 1.0, np.ones((count, 1))], axis=1)


def reader(seed=0, *, atoms=6, width=2, outputs=5, compensate=True):
    """Return a reader with a bias column, and its rows."""
    x = rows(400, atoms * width, seed)
    weight = np.random.default_rng(seed + 1).standard_normal((outputs, atoms * width + 1))
    gram = x.T @ x / len(x)
    owner = np.append(np.repeat(np.arange(atoms), width), -1)
    power = relative_power(gram, weight, bias=True)
    return Reader(gram, weight, owner, power, compensate), x


def solved(one, gone, ridge=1e-3):
    """Return the best weight without some atoms, and the damped error."""
    damped = one.gram + ridge * np.trace(one.gram) / len(one.gram) * np.eye(len(one.gram))
    stays = ~np.isin(one.owner, gone)
    fitted = np.zeros_like(one.weight)
    fitted[:, stays] = np.linalg.solve(damped[np.ix_(stays, stays)], damped[stays] @ one.weight.T).T
    change = one.weight - fitted
    return fitted, float(np.sum((change @ damped) * change)) / one.power


def task(readers, size=6, **more):
    return Task(size, readers, more.pop("extra", np.zeros(size)), **more)


def test_power_is_the_variance_of_the_outputs():
    one, x = reader()
    outputs = x @ one.weight.T
    assert one.power == pytest.approx(outputs.var(axis=0).sum(), rel=1e-9)


def test_every_step_is_the_cheapest_and_its_error_that_of_a_new_fit():
    one, _ = reader()
    found = remove(task([one], snapshots=(1, 2, 3)))
    gone = []
    for step in range(5):
        costs = {a: solved(one, [*gone, a])[1] for a in range(6) if a not in gone}
        gone.append(min(costs, key=costs.get))
        assert list(found.order[: step + 1]) == gone
        assert found.errors[step + 1] == pytest.approx(costs[gone[-1]], rel=1e-6)
    for step in (1, 2, 3):
        expected, _ = solved(one, found.order[:step])
        np.testing.assert_allclose(found.weights[step][0], expected, rtol=1e-4, atol=1e-5)
        assert not found.weights[step][0][:, np.isin(one.owner, found.order[:step])].any()


def test_errors_of_several_readers_are_added():
    first, second = reader(0)[0], reader(7, outputs=3)[0]
    found = remove(task([first, second]))
    gone = found.order[:3]
    assert found.errors[3] == pytest.approx(solved(first, gone)[1] + solved(second, gone)[1])


def test_what_others_can_replace_costs_nothing():
    one, x = reader()
    x[:, 4:6] = x[:, 0:2] - 2.0 * x[:, 8:10]
    gram = x.T @ x / len(x)
    found = remove(task([Reader(gram, one.weight, one.owner, one.power)]))
    assert found.order[0] in (0, 2, 4)
    assert found.errors[1] < 0.02 * found.errors[2]


def test_a_large_component_goes_in_batches_and_hardly_costs_more():
    x = rows(900, 160)
    weight = np.random.default_rng(3).standard_normal((12, 161))
    gram = x.T @ x / len(x)
    owner = np.append(np.arange(160), -1)
    one = Reader(gram, weight, owner, relative_power(gram, weight, bias=True))
    found = remove(task([one], 160, keep=20, snapshots=(50, 90)))
    assert len(found.errors) == 141
    assert (np.diff(found.errors) >= 0).all()
    expected, error = solved(one, found.order[:90])
    np.testing.assert_allclose(found.weights[90][0], expected, rtol=1e-3, atol=1e-4)
    assert found.errors[90] == pytest.approx(error, rel=1e-6)


def test_blocks_lose_equally():
    one, _ = reader(atoms=8)
    blocks = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    found = remove(task([one], 8, blocks=blocks, keep=1))
    assert found.unit == 2
    assert len(found.errors) == 4
    for done in range(1, 5):
        assert np.bincount(blocks[found.order[: 2 * done]]).tolist() == [done, done]


def test_a_given_rank_decides_the_order_but_not_the_error():
    one, _ = reader()
    rank = np.array([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])
    found = remove(task([one], rank=rank))
    assert found.order.tolist() == [1, 2, 0, 5, 4, 3]
    assert found.errors[2] == pytest.approx(solved(one, [1, 2])[1])


def test_a_given_order_is_fitted_at_once_as_it_is_step_by_step():
    blocks = np.array([0, 0, 0, 1, 1, 1])
    readers = [reader()[0], reader(5)[0], reader(7, compensate=False)[0]]
    rank = np.array([3.0, 1, 2, 6, 5, 4])
    for more in ({}, {"blocks": blocks}):
        last = 2 if more else 5
        wanted = task(readers, rank=rank, snapshots=(1, last), keep=1, **more)
        slow, fast = remove(wanted).weights, refit(wanted)
        assert list(fast) == [1, last]
        for rounds in fast:
            for one, other in zip(slow[rounds], fast[rounds], strict=True):
                np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5)
                assert not ((one == 0) ^ (other == 0)).any()


def test_without_compensation_the_error_is_that_of_leaving_out():
    one, x = reader(compensate=False)
    found = remove(task([one], snapshots=(3,)))
    left = one.weight * ~np.isin(one.owner, found.order[:3])
    lost = x @ (one.weight - left).T
    assert found.errors[3] == pytest.approx((lost**2).mean(axis=0).sum() / one.power)
    np.testing.assert_allclose(found.weights[3][0], left, rtol=1e-6)


def test_extra_costs_alone_make_an_order():
    found = remove(task([], 4, extra=np.array([0.3, 0.1, 0.4, 0.2])))
    assert found.order.tolist() == [1, 3, 0, 2]
    np.testing.assert_allclose(found.errors, [0, 0.1, 0.3, 0.6])


def test_atoms_without_columns_go_first():
    one, _ = reader()
    owner = np.where(one.owner == 2, -1, one.owner)
    found = remove(task([Reader(one.gram, one.weight, owner, one.power)]))
    assert found.order[0] == 2
    assert found.errors[1] == 0.0


def test_empty_matrices_do_not_stop_anything():
    assert np.isfinite(invert(np.zeros((3, 3)), 1e-3)).all()
    dead = Reader(np.zeros((7, 7)), np.ones((2, 7)), np.append(np.arange(6), -1), 0.0)
    assert np.isfinite(remove(task([dead])).errors).all()


def test_few_rows_are_damped_more():
    assert ridge_for(4000, 100) == pytest.approx(1e-3)
    assert ridge_for(100, 100) == pytest.approx(16e-3)
    assert ridge_for(1, 1000) == 1.0
