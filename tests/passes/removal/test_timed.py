"""How deep a latency target cuts when the estimate by layers is off."""

from __future__ import annotations

import pytest

from passes.removal.timed import CLOSE, TRIES, search


@pytest.mark.parametrize(
    "taken",
    [
        lambda asked: asked,
        lambda asked: 0.3 + 0.7 * asked,  # fixed costs that the layers know nothing of
        lambda asked: asked**0.5,
        lambda asked: asked**3,  # a plan that promises too little is not cut deeper than needed
    ],
)
@pytest.mark.parametrize("wanted", [0.4, 0.6, 0.9])
def test_reaches_the_time_from_both_sides(taken, wanted):
    timed = search(taken, wanted)
    assert timed.taken <= wanted * (1 + CLOSE)
    assert timed.taken >= 0.9 * wanted
    assert timed.taken == taken(timed.asked)


def test_takes_the_fastest_when_the_time_cannot_be_reached():
    asked = []

    def taken(share):
        asked.append(share)
        return 0.5 + 0.5 * share

    timed = search(taken, 0.3)
    assert len(asked) <= TRIES
    assert timed.asked == min(asked)
    assert timed.taken < 0.6


def test_steps_are_no_endless_search():
    """Between 0.5 and 0.8 of the time there is nothing: blocks of channels."""
    timed = search(lambda asked: 0.8 if asked > 0.55 else 0.5, 0.7)
    assert timed.taken == 0.5
    assert 0.4 < timed.asked <= 0.55
