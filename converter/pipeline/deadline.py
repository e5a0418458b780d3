"""Limits on time: of a whole conversion, and of the runs of one model."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

from converter.core.context import Limits
from converter.core.graph import footprint
from converter.errors import LimitExceededError

if TYPE_CHECKING:
    import onnx_ir as ir

_PATIENCE = 6.0  # seconds for one run of a model of no size to speak of
_PER_NODE = 0.01  # seconds; sessions of long chains take that long to make
_BYTES_PER_SECOND = 10e6


def limits_for(models: Iterable[ir.Model], time_limit: float | None = None) -> Limits:
    """Return how long runs of these models may take.

    A model of a few nodes that keeps one run busy for ten seconds holds a loop that its sender
    meant to last; a large one may need minutes to load. A limit that the user sets stands for all.
    """
    if time_limit is not None:
        return replace(Limits(), seconds=time_limit, patience=time_limit)
    patience = _PATIENCE
    for size in map(footprint, models):
        patience += _PER_NODE * size.nodes + size.tensor_bytes / _BYTES_PER_SECOND
    return replace(Limits(), patience=patience)


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
