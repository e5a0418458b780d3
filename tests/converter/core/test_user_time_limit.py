"""How much of the user's time is over."""

from __future__ import annotations

import time
from dataclasses import replace

from converter.core.context import Limits


def test_nothing_is_late_without_a_limit():
    assert not Limits(seconds=0.0).late(0.5)


def test_late_counts_from_the_end_of_the_users_time():
    limits = replace(Limits(), seconds=100.0, deadline=time.monotonic() + 40.0)
    assert limits.late(0.5)  # 60 of 100 seconds are over
    assert not limits.late(0.7)
    assert replace(limits, deadline=time.monotonic() - 1.0).late(1.0)


def test_long_work_goes_on_unless_the_user_set_a_limit() -> None:
    usual = Limits(seconds=600.0)
    assert (usual.extended(3600.0).seconds, usual.extended(3600.0).patience) == (3600.0, 3600.0)
    assert usual.extended(60.0).seconds == 600.0
    asked = Limits(seconds=100.0, patience=100.0)
    assert asked.extended(3600.0) is asked
