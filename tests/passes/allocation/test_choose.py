"""Exact costs by rounds, and the ways to divide a target among components."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from passes.allocation import choose
from passes.allocation.choose import Options
from passes.allocation.cost import Cost, Term
from passes.allocation.curves import Curve, interpolated, levels


def curves(*sizes, keep=1, seed=0):
    """Return curves of components with these numbers of atoms, with rising damage."""
    rng = np.random.default_rng(seed)
    found, first = [], 0
    for index, size in enumerate(sizes):
        order = first + rng.permutation(size)
        losses = np.concatenate([[0.0], np.cumsum(np.sort(rng.random(size - keep)) ** 2)])
        found.append(Curve(index, order, 1, losses, losses))
        first += size
    return found


def chain(found):
    """Return the cost of layers in a row: 3 inputs, the components, 5 outputs."""
    axes = [np.full(3, -1), *(np.sort(c.order) for c in found), np.full(5, -1)]
    terms = [Term(9.0, pair) for pair in itertools.pairwise(axes)]
    return Cost(terms, found, sum(len(c.order) for c in found))


def options(found):
    stops = [np.arange(c.rounds + 1) for c in found]
    return [
        Options(s, c.losses, np.diff(c.losses, prepend=0.0))
        for s, c in zip(stops, found, strict=True)
    ]


def loss(found, picks):
    return sum(float(c.losses[k]) for c, k in zip(found, picks, strict=True))


def test_costs_are_exact():
    found = curves(6, 8, 4)
    cost = chain(found)
    for rounds in ([0, 0, 0], [1, 0, 3], [5, 7, 3], [2, 3, 1]):
        a, b, c = (n - r for n, r in zip((6, 8, 4), rounds, strict=True))
        assert cost.total(rounds) == 9 * (3 * a + a * b + b * c + c * 5)
    sizes = cost.sizes([1, 2, 3])
    saved = cost.total([1, 2, 3]) - cost.total([1, 6, 3])
    assert cost.saving(sizes, 1, 2, 6) == saved
    np.testing.assert_array_equal(cost.moved(sizes, 1, 2, 6), cost.sizes([1, 6, 3]))


def test_axes_with_atoms_of_several_components_and_repeated_ones():
    found = curves(3, 2)
    axis = np.array([-1, 0, 1, 2, 3, 4, 0, 1, 2])
    cost = Cost([Term(2.0, (axis,)), Term(1.0, (np.full(7, -1),))], found, 5)
    assert cost.total([0, 0]) == 25
    assert cost.total([1, 0]) == 21
    assert cost.total([2, 1]) == 15
    assert cost.fixed() == 7


def test_atoms_of_one_round_go_together():
    curve = Curve(0, np.array([3, 0, 1, 2]), 2, np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert Cost([Term(1.0, (np.arange(4),))], [curve], 4).total([1]) == 2


@pytest.mark.parametrize("share", [0.9, 0.6, 0.3])
@pytest.mark.parametrize("way", [choose.greedy, choose.knapsack])
def test_the_choice_is_near_the_best_of_all(way, share):
    found = curves(6, 7, 5)
    cost = chain(found)
    goal = share * cost.total([0, 0, 0])
    every = itertools.product(*(range(c.rounds + 1) for c in found))
    best = min(loss(found, p) for p in every if cost.total(p) <= goal)
    picks = way(options(found), cost, goal)
    assert cost.total(picks) <= goal
    # the best of all needs exponential time; a quarter more is what look-ahead may miss
    assert loss(found, picks) <= 1.25 * best + 1e-9


@pytest.mark.parametrize("way", [choose.greedy, choose.knapsack, choose.by_threshold])
def test_a_goal_that_cannot_be_met_takes_all(way):
    found = curves(6, 8)
    assert way(options(found), chain(found), 1.0) == [5, 7]


@pytest.mark.parametrize("way", [choose.greedy, choose.knapsack, choose.by_threshold])
def test_a_goal_that_is_met_takes_nothing(way):
    found = curves(6, 8)
    cost = chain(found)
    assert way(options(found), cost, cost.total([0, 0])) == [0, 0]


def test_a_cliff_does_not_hide_what_is_cheap_behind_it():
    steep = np.concatenate([[0.0], np.full(15, 1.0)])  # one costly atom, then free ones
    even = np.linspace(0.0, 15.0, 16)
    found = [
        Curve(i, np.arange(16) + 16 * i, 1, losses, losses)
        for i, losses in enumerate((steep, even))
    ]
    cost = Cost([Term(1.0, (np.arange(32),))], found, 32)
    assert choose.greedy(options(found), cost, 18.0) == [14, 0]


def test_uniform_takes_the_same_share():
    found = curves(20, 40)
    cost = Cost([Term(1.0, (np.arange(60),))], found, 60)
    assert choose.uniform(options(found), cost, 30.0, [20, 40]) == [10, 20]


def test_a_threshold_takes_what_matters_least():
    found = curves(20, 30)
    cost = Cost([Term(1.0, (np.arange(50),))], found, 50)
    picks = choose.by_threshold(options(found), cost, 35.0)
    assert sum(picks) == 15
    steps = [np.diff(c.losses) for c in found]
    taken = max(s[:k].max() for s, k in zip(steps, picks, strict=True) if k)
    assert all(s[k] >= taken for s, k in zip(steps, picks, strict=True))


def test_steps_that_the_goal_does_not_need_are_given_back():
    found = curves(6, 8)
    cost = chain(found)
    goal = cost.total([2, 2])
    picks = choose.give_back(options(found), cost, goal, [5, 7])
    assert cost.total(picks) <= goal
    for i in range(2):
        fewer = list(picks)
        fewer[i] -= 1
        assert fewer[i] < 0 or cost.total(fewer) > goal


def test_levels_reach_the_deepest():
    assert levels(10, 5) == [2, 4, 6, 8, 10]
    assert levels(2, 7) == [1, 2]
    assert levels(0, 5) == []


def test_curves_follow_the_local_error_between_levels():
    errors = np.array([0.0, 1.0, 3.0, 4.0, 8.0])
    found = interpolated(errors, {2: 0.6, 4: 1.0})
    np.testing.assert_allclose(found, [0.0, 0.2, 0.6, 0.68, 1.0])


def test_curves_never_fall_and_bear_broken_outputs():
    errors = np.array([0.0, 0.0, 0.0, 1.0, 2.0])
    found = interpolated(errors, {1: 0.5, 2: 0.3, 3: np.inf, 4: np.inf})
    assert found[1] == found[2] == 0.5
    assert found[3] > 1e20
    assert (np.diff(found) >= 0).all()
