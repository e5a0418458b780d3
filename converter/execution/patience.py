"""How long to wait for a sign of life of a child process."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

_BUSIEST = 8.0  # so much slower may a crowded machine be than an idle one


class Patience:
    """Wall time, unless the machine had no time for the child: then what the child itself used.

    On an idle machine both are the same for a child that computes without end.

    Args:
        pid: The child.
        seconds: Longest time between two signs of life; infinite: for ever.
    """

    def __init__(self, pid: int, seconds: float) -> None:
        self._pid = pid
        self._seconds = seconds
        self.sign()

    def sign(self) -> None:
        """The child has given a sign of life."""
        self._since = time.monotonic()
        self._used = math.nan if math.isinf(self._seconds) else _processor_seconds(self._pid)

    def left(self) -> float:
        """Return the seconds after which to ask again; 0 when patience is at its end."""
        waited = time.monotonic() - self._since
        if waited < self._seconds:
            return self._seconds - waited
        used = _processor_seconds(self._pid) - self._used
        if used < self._seconds and waited < _BUSIEST * self._seconds:
            return max(0.1, self._seconds - used)
        return 0.0


def _processor_seconds(pid: int) -> float:
    """Return the processor time of a process; NaN where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        user, system = fields.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return math.nan
