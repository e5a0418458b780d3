"""How the share of zeros rises over several steps with recovery between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

Schedule = Literal["constant", "linear", "polynomial"]

_RISES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda part: 1.0,
    "linear": lambda part: part,
    # Zhu and Gupta 2017, arXiv 1710.01878, equation 1, from 0
    "polynomial": lambda part: 1.0 - (1.0 - part) ** 3,
}


def shares(final: float, steps: int, schedule: Schedule) -> list[float]:
    """Return the share of zeros after each step; the last is ``final`` exactly.

    Args:
        final: Share of zeros at the end, 0 <= final < 1.
        steps: From 1 on.
        schedule: constant: all at once, then fitted again; linear; polynomial: fast at first.
    """
    rise = _RISES[schedule]
    return [final * rise((step + 1) / steps) for step in range(steps - 1)] + [final]
