"""The units in which weights go: one by one, N of M, blocks, or whole rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from converter.errors import ParameterError

Array = np.ndarray[Any, Any]
ALLOWED = "unstructured, N:M with N kept of M as 2:4 or 4:8, blocks RxC as 1x4 or 4x4, row"
_MOST = 1024  # of M, and of a block's sides


@dataclass(frozen=True)
class Pattern:
    """A pattern as given: ``unstructured``, ``2:4``, ``1x4``, ``4x4``, ``row``.

    Attributes:
        kind: Which of them.
        first: Of N:M how many of ``second`` neighbours are kept; of a block its rows.
        second: M, or the columns of a block.

    Rows are outputs of the layer and columns the axis that products are summed over (for Conv:
    input channels and kernel, flattened), however the tensor is stored
    (:func:`passes.sparsity.matrix.matrix_of`). Groups of M and blocks start at the first column
    and row; what is left at the end of a row and has fewer than M columns stays dense, and blocks
    at the edges are smaller.
    """

    kind: Literal["unstructured", "n:m", "block", "row"] = "unstructured"
    first: int = 1
    second: int = 1

    @property
    def text(self) -> str:
        """As it is given."""
        if self.kind == "n:m":
            return f"{self.first}:{self.second}"
        return f"{self.first}x{self.second}" if self.kind == "block" else self.kind

    @property
    def share(self) -> float | None:
        """Share of zeros that the pattern itself decides; None: any share is possible."""
        return 1.0 - self.first / self.second if self.kind == "n:m" else None

    def fixed(self, rows: int, columns: int) -> int:
        """Return how many of so many weights go by N:M: all but N of every whole group of M."""
        return rows * (columns // self.second) * (self.second - self.first)

    def units(self, rows: int, columns: int) -> Units:
        """Return the blocks that a matrix falls into; single weights are blocks of one."""
        high, wide = self.first, self.second
        if self.kind == "row":
            high, wide = 1, max(1, columns)
        return Units(rows, columns, high, wide)

    def densest(self, scores: Array) -> Array:
        """Return which weights go by N:M, the lowest scores of every group: bool (rows, columns).

        Args:
            scores: (rows, columns), any numbers. Of equal ones the lower column goes first.
        """
        rows, columns = scores.shape
        gone = np.zeros((rows, columns), bool)
        whole = columns // self.second * self.second
        if whole:
            groups = scores[:, :whole].reshape(rows, -1, self.second)
            order = np.argsort(groups, axis=2, kind="stable")[:, :, : self.second - self.first]
            cut = np.zeros(groups.shape, bool)
            np.put_along_axis(cut, order, values=True, axis=2)
            gone[:, :whole] = cut.reshape(rows, whole)
        return gone


@dataclass(frozen=True)
class Units:
    """A matrix cut into blocks, those at the lower and right edges may be smaller.

    Attributes:
        rows, columns: Of the matrix.
        high, wide: Of a whole block.
    """

    rows: int
    columns: int
    high: int
    wide: int

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks below and beside each other."""
        return -(-self.rows // self.high), -(-self.columns // self.wide)

    def sizes(self) -> Array:
        """Return the weights of every block: int64 (grid)."""
        down = np.diff(np.append(np.arange(0, self.rows, self.high), self.rows))
        across = np.diff(np.append(np.arange(0, self.columns, self.wide), self.columns))
        return np.outer(down, across).astype(np.int64)

    def sums(self, matrix: Array) -> Array:
        """Add up a matrix (rows, columns) by block: float64 (grid)."""
        if self.high == self.wide == 1:
            return matrix.astype(np.float64)
        across = np.add.reduceat(
            matrix, np.arange(0, self.columns, self.wide), axis=1, dtype=np.float64
        )
        down: Array = np.add.reduceat(across, np.arange(0, self.rows, self.high), axis=0)
        return down

    def spread(self, blocks: Array) -> Array:
        """Give every weight what its block has: (grid) to (rows, columns)."""
        tall = np.repeat(blocks, self.high, axis=0)[: self.rows]
        return np.repeat(tall, self.wide, axis=1)[:, : self.columns]


UNSTRUCTURED = Pattern()


def parse(text: str) -> Pattern:
    """Read a pattern.

    Raises:
        ParameterError: It has another form.
    """
    plain = text.strip().lower()
    if plain in ("unstructured", "row"):
        return Pattern("row" if plain == "row" else "unstructured")
    found = re.fullmatch(r"(\d{1,4})([:x])(\d{1,4})", plain)
    if found is None:
        raise _error(text)
    first, second = int(found[1]), int(found[3])
    if not 1 <= first <= _MOST or not 1 <= second <= _MOST:
        raise _error(text, f"numbers from 1 to {_MOST}")
    if found[2] == "x":
        return Pattern("block", first, second) if first * second > 1 else UNSTRUCTURED
    if first >= second:
        raise _error(text, "N:M keeps N of M neighbours, so N is less than M")
    return Pattern("n:m", first, second)


def _error(text: str, why: str = "") -> ParameterError:
    return ParameterError(
        f"pattern {text!r} is unknown" if not why else f"pattern {text!r} is impossible: {why}",
        where="prune",
        allowed=ALLOWED,
        hint="for instance prune:pattern=2:4",
    )
