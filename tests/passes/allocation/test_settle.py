"""Exchanges of channels for time."""

from __future__ import annotations

import numpy as np
import pytest

from passes.allocation import choose
from passes.allocation.cost import Cost, Term
from passes.allocation.curves import Curve
from passes.allocation.settle import Terms, balance, settle


class Stairs(Cost):
    """Every axis costs what the next multiple of 8 costs."""

    def values(self, terms, sizes):
        return super().values(terms, -(-sizes // 8) * 8)


def _setup(most=np.inf, goal=36.0):
    curves = [
        Curve(i, np.arange(24) + 24 * i, 1, losses, losses)
        for i, losses in enumerate([np.linspace(0, 1, 25), np.linspace(0, 1.2, 25)])
    ]
    axes = [Term(1.0, (np.arange(24) + 24 * i,)) for i in range(2)]
    options = [
        choose.Options(np.arange(25), c.losses, np.diff(c.losses, prepend=0)) for c in curves
    ]
    cost, work = Cost(axes, curves, 48), Stairs(axes, curves, 48)
    return options, Terms(cost, goal, work, 1e-3, most)


def _numbers(options, terms, at):
    loss = sum(float(o.losses[k]) for o, k in zip(options, at, strict=True))
    return loss, terms.cost.total(at), terms.work.total(at)


def test_an_exchange_saves_work_and_meets_the_goal():
    options, terms = _setup()
    start = [7, 6]
    found = settle(options, terms, start)
    loss, cost, work = _numbers(options, terms, found)
    before = _numbers(options, terms, start)
    assert cost <= terms.goal
    assert work < before[2]
    assert balance(loss + terms.slack, work) < balance(before[0] + terms.slack, before[2])


def test_damage_stays_within_its_bound():
    options, terms = _setup(most=0.6)
    found = settle(options, terms, [7, 6])
    assert _numbers(options, terms, found)[0] <= 0.6


@pytest.mark.parametrize("start", [[12, 0], [0, 12], [24, 24]])
def test_it_never_gets_worse(start):
    options, terms = _setup()
    found = settle(options, terms, start)
    loss, _, work = _numbers(options, terms, found)
    before = _numbers(options, terms, start)
    assert balance(loss + 1e-3, work) <= balance(before[0] + 1e-3, before[2])


def test_one_more_stop_is_put_where_it_belongs():
    options = choose.Options(np.array([0, 4, 8]), np.array([0.0, 1.0, 3.0]), np.array([0.0, 1, 2]))
    more = choose.including(options, 6, 1.5)
    assert more.stops.tolist() == [0, 4, 6, 8]
    assert more.losses.tolist() == [0.0, 1.0, 1.5, 3.0]
    assert choose.including(options, 8, 3.0) is options
