"""Patience counts what a child computes, not what a crowded machine makes it wait."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from converter.execution.patience import Patience

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")


def compute(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_computing_without_a_sign_ends_it() -> None:
    patience = Patience(os.getpid(), 0.2)
    assert patience.left() > 0
    compute(0.3)
    assert patience.left() == 0
    patience.sign()
    assert 0 < patience.left() <= 0.2


def test_waiting_for_the_processor_does_not() -> None:
    patience = Patience(os.getpid(), 0.2)
    time.sleep(0.3)
    assert patience.left() > 0
    time.sleep(1.6)
    assert patience.left() == 0  # not for ever either


def test_a_process_that_is_gone_is_waited_for_by_the_clock() -> None:
    patience = Patience(2**22 + 1, 0.05)
    time.sleep(0.06)
    assert patience.left() == 0


def test_infinite_patience_never_ends() -> None:
    assert Patience(os.getpid(), math.inf).left() == math.inf
