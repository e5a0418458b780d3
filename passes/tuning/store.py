"""Activations between two steps: in memory, or in files once they need too much of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

Array = np.ndarray[Any, Any]

MOST_BYTES = 384 << 20
"""Activations beyond this lie in files, and are read one batch at a time."""


@dataclass
class Budget:
    """Memory that several stores share.

    Attributes:
        most: Most bytes held in memory.
        held: Bytes held now.
    """

    most: int = MOST_BYTES
    held: int = 0


@dataclass(frozen=True)
class _Filed:
    """An array in a file of its own."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self) -> Array:
        return np.fromfile(self.path, self.dtype).reshape(self.shape)


class Batches(Sequence[Array]):
    """The arrays of one value; those in files are read when they are asked for.

    Attributes:
        parts: Arrays, or what stands for them; all have ``shape`` and ``dtype``.
    """

    def __init__(self) -> None:
        self.parts: list[Array | _Filed] = []

    def __len__(self) -> int:
        return len(self.parts)

    @overload
    def __getitem__(self, index: int) -> Array: ...

    @overload
    def __getitem__(self, index: slice) -> list[Array]: ...

    def __getitem__(self, index: int | slice) -> Array | list[Array]:
        """Return the array of one batch, or of several."""
        if isinstance(index, slice):
            return [_read(part) for part in self.parts[index]]
        return _read(self.parts[index])

    def __iter__(self) -> Iterator[Array]:
        return (_read(part) for part in self.parts)


class Store:
    """Values by name, one array per batch.

    Args:
        folder: Where files go; removed by whoever made it.
        budget: Memory, shared with other stores.
    """

    def __init__(self, folder: Path, budget: Budget) -> None:
        self._folder = folder
        self._budget = budget
        self._made = 0
        self._values: dict[str, Batches] = {}
        self._lent: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> Batches:
        return self._values[name]

    def append(self, name: str, array: Array) -> None:
        """Keep one more batch of a value."""
        part: Array | _Filed = array
        plain = array.dtype.kind in "biufc"
        if plain and array.nbytes and self._budget.held + array.nbytes > self._budget.most:
            part = self._filed(array)
        else:
            self._budget.held += array.nbytes
        self._values.setdefault(name, Batches()).parts.append(part)

    def lend(self, name: str, array: Array) -> None:
        """Refer to one more batch that somebody else holds anyway."""
        self._values.setdefault(name, Batches()).parts.append(array)
        self._lent.add(name)

    def drop(self, name: str) -> None:
        """Forget a value."""
        found = self._values.pop(name, None)
        if name in self._lent:
            self._lent.discard(name)
            return
        for part in [] if found is None else found.parts:
            if isinstance(part, _Filed):
                part.path.unlink(missing_ok=True)
            else:
                self._budget.held -= part.nbytes

    def _filed(self, array: Array) -> _Filed:
        path = self._folder / f"values-{self._made}"
        self._made += 1
        np.ascontiguousarray(array).tofile(path)
        return _Filed(path, array.shape, array.dtype)


def _read(part: Array | _Filed) -> Array:
    return part.read() if isinstance(part, _Filed) else part
