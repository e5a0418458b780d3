"""Linear algebra on one thread.

OpenBLAS starts as many threads as the machine has processors. On a shared machine they wait for
each other most of the time (measured: eight times slower), and the order of sums, thus the last
bits of a result, follows their number.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np

_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
)


def use_one_thread() -> bool:
    """Let numpy's linear algebra run on one thread in this process from now on.

    Meant for child processes. Returns False, having done nothing, where numpy was built with
    another library than OpenBLAS.
    """
    done = False
    for path in _libraries():
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        setter = next((s for s in _SETTERS if hasattr(library, s)), None)
        if setter is not None:
            getattr(library, setter)(ctypes.c_int(1))
            done = True
    return done


@functools.cache
def _libraries() -> tuple[str, ...]:
    """Return the OpenBLAS libraries that this process has loaded, else those beside numpy."""
    maps = Path("/proc/self/maps")
    if maps.exists():
        lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
        loaded = (line.split(maxsplit=5)[-1] for line in lines if "openblas" in line)
        return tuple(dict.fromkeys(loaded))
    beside = Path(np.__file__).parent
    places = (beside.parent / "numpy.libs", beside / ".dylibs")
    return tuple(sorted(str(p) for place in places for p in place.glob("*openblas*")))
