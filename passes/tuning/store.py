"""Activations between two steps: in memory, or in mapped files once they need too much of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MOST_BYTES = 1 << 30
"""Activations beyond this lie in files; the system keeps as many of their pages as it can."""


class Store:
    """Values by name, one array per batch.

    Args:
        folder: Where files go; removed by whoever made it.
        most_bytes: Most bytes held in memory.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most = most_bytes
        self._held = 0
        self._made = 0
        self._arrays: dict[str, list[Array]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> Sequence[Array]:
        return self._arrays[name]

    def append(self, name: str, array: Array) -> None:
        """Keep one more batch of a value."""
        if self._held + array.nbytes > self._most and array.nbytes:
            array = self._mapped(array)
        else:
            self._held += array.nbytes
        self._arrays.setdefault(name, []).append(array)

    def drop(self, name: str) -> None:
        """Forget a value."""
        for array in self._arrays.pop(name, []):
            if isinstance(array, np.memmap):
                Path(str(array.filename)).unlink(missing_ok=True)
            else:
                self._held -= array.nbytes

    def _mapped(self, array: Array) -> Array:
        path = self._folder / f"values-{self._made}"
        self._made += 1
        mapped = np.memmap(path, array.dtype, "w+", shape=array.shape)
        mapped[...] = array
        return mapped
