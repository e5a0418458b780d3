"""Sets of labels against a plain implementation; blocks; shapes that are changed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from converter.coupling.balance import blocks_of
from converter.coupling.union import Labels
from converter.ops.axes.reshape import factor_groups, reshaped
from converter.ops.axes.site import Unclear

Array = np.ndarray[Any, Any]


def naive(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Return the smallest label that each label is united with."""
    roots = list(range(count))
    for a, b in pairs:
        low, high = sorted((roots[a], roots[b]))
        roots = [low if root == high else root for root in roots]
    return roots


@pytest.mark.parametrize("seed", range(8))
def test_union_by_arrays_equals_union_one_by_one(seed: int) -> None:
    source = np.random.default_rng(seed)
    labels = Labels()
    made = labels.fresh(1500)
    assert made[0] == 1
    frozen = np.unique(source.integers(1, 1500, 6))
    labels.freeze(frozen[:3], "a", "first")
    pairs: list[tuple[int, int]] = []
    for _ in range(6):
        first, second = source.integers(1, 1500, (2, 150))
        labels.unite(first, second)
        pairs += list(zip(first.tolist(), second.tolist(), strict=True))
    labels.freeze(frozen[3:], "b", "second")
    expected = naive(1501, pairs)
    assert labels.find(made).tolist() == expected[1:]
    first_roots = {expected[i] for i in frozen[:3].tolist()}
    both = first_roots | {expected[i] for i in frozen[3:].tolist()}
    reasons = labels.reason(made)
    for label, number in zip(made.tolist(), reasons.tolist(), strict=True):
        root = expected[label]
        why = "first" if root in first_roots else "second" if root in both else None
        assert (labels.reasons[number][1] if number else None) == why


def test_the_first_reason_is_kept() -> None:
    labels = Labels()
    made = labels.fresh(4)
    labels.freeze(made[2:3], "late", "one")
    labels.freeze(made[:1], "early", "two")
    labels.unite(made[:1], made[2:3])
    assert [labels.reasons[i][1] for i in labels.reason(made[[0, 2]])] == ["one", "one"]
    assert not labels.frozen(made)
    assert labels.frozen(made[[0, 2]])


def test_blocks() -> None:
    component = np.zeros(6, np.int64)
    members = [np.arange(6)]
    found: dict[int, Array] = {}
    assert blocks_of(np.arange(6).reshape(3, 2), component, members, found)
    assert found[0].tolist() == [0, 0, 1, 1, 2, 2]
    assert blocks_of(np.arange(6).reshape(3, 2)[::-1], component, members, found)
    assert not blocks_of(np.arange(6).reshape(2, 3), component, members, found)
    finer = {0: np.array([0, 0, 0, 1, 1, 1])}
    assert blocks_of(np.arange(6)[:, None], component, members, finer)
    assert finer[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_blocks_that_need_nothing_or_cannot_be() -> None:
    component, members = np.array([0, 0, 1, 1]), [np.array([0, 1]), np.array([2, 3])]
    assert blocks_of(np.array([[0, 1], [0, 1]]), component, members, {})
    assert blocks_of(np.full((2, 2), -1), component, members, {})
    assert not blocks_of(np.array([[0, 1], [2, 3]]), component, members, {})
    assert not blocks_of(np.array([[0, -1], [-1, -1]]), component, members, {})


def test_groups_of_factors() -> None:
    assert list(factor_groups((2, 3, 4), (6, 4))) == [((0, 1), (0,)), ((2,), (1,))]
    assert next(factor_groups((8, 1, 5), (2, 4, 5))) == ((0,), (0, 1))
    for first, second in (((2, 3), (7,)), ((0, 3), (3, 0))):
        with pytest.raises(Unclear):
            list(factor_groups(first, second))


class Stub:
    """A site that has labels and nothing else; splits take a chosen axis."""

    def __init__(self, choice: int) -> None:
        self.union = Labels()
        self.choice = choice

    def roots(self, labels: Array) -> Array:
        return self.union.find(labels)

    def frozen(self, labels: Array) -> bool:
        return self.union.frozen(labels)

    def freeze(self, labels: Array, reason: str) -> None:
        self.union.freeze(labels, "stub", reason)

    def unite(self, first: Array, second: Array) -> Array:
        self.union.unite(first, second)
        return first

    def prefer(self, sizes: Sequence[int]) -> int:
        options = [axis for axis, size in enumerate(sizes) if size > 1]
        return options[self.choice % len(options)]


SHAPES = [
    ((2, 12, 3, 3), (2, 3, 4, 9)),
    ((2, 12, 3, 3), (2, 4, 27)),
    ((2, 4, 27), (2, 12, 3, 3)),
    ((5, 2, 12), (5, 6, 4)),
    ((6, 5, 4), (2, 3, 5, 4)),
    ((2, 12, 5), (24, 5)),
    ((2, 12, 5), (120,)),
    ((2, 12), (1, 2, 1, 12, 1)),
    ((4, 6), (6, 4)),
    ((3, 8, 2), (2, 12, 2)),
    ((2, 2, 6, 2, 2), (4, 2, 3, 4)),
    ((12, 7), (2, 2, 3, 7)),
]


@pytest.mark.parametrize(("shapes", "choice"), list(itertools.product(SHAPES, range(3))))
def test_reshaped_labels_are_those_of_the_elements(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], choice: int
) -> None:
    """Every element carries the same label before and after, whatever axis holds it."""
    first, second = shapes
    for labelled in range(len(first)):
        site = Stub(choice)
        given = site.union.fresh(first[labelled])
        axes = tuple(given if axis == labelled else None for axis in range(len(first)))
        made = reshaped(site, axes, first, second)  # type: ignore[arg-type]
        carrying = [axis for axis, labels in enumerate(made) if labels is not None]
        assert len(carrying) == 1
        after = made[carrying[0]]
        assert after is not None
        assert len(after) == second[carrying[0]]
        ones = [1] * len(first)
        ones[labelled] = -1
        old = np.broadcast_to(given.reshape(ones), first).reshape(-1)
        ones = [1] * len(second)
        ones[carrying[0]] = -1
        new = np.broadcast_to(after.reshape(ones), second).reshape(-1)
        assert math.prod(first) == len(old)
        assert np.array_equal(site.roots(old), site.roots(new))
