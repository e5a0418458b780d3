"""A wall-clock limit on a whole conversion."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from converter.errors import LimitExceededError


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise inside the block once it has taken ``seconds``; None is no limit.

    An alarm interrupts the block wherever it is, which works in the main thread only; elsewhere
    the pipeline still looks at the clock between passes.

    Raises:
        LimitExceededError: The time is up.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(_signal: int, _frame: FrameType | None) -> None:
        raise LimitExceededError(
            f"the time limit of {seconds:g} s was reached",
            hint="raise --time-limit, use fewer passes or fewer samples",
        )

    earlier = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
