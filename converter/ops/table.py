"""A table of facts about operators: (domain, operator type, opset range) to one row.

Every table holds one concern (how an operator is quantized, what it costs, ...), so that passes
hold no chains of comparisons with operator names. An operator that is not in a table is unknown
there, and nothing is guessed about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from converter.core.graph import DEFAULT_DOMAINS

Row = TypeVar("Row")
NEWEST = 1 << 30


@dataclass(frozen=True)
class Entry(Generic[Row]):
    """One row with the operators that it is about.

    Attributes:
        op_type: Operator type.
        row: The facts.
        domain: Operator set; "" is the default one of ONNX.
        since: First opset version of that domain for which the row holds.
        until: Last one.
    """

    op_type: str
    row: Row
    domain: str = ""
    since: int = 1
    until: int = NEWEST


class Table(Generic[Row]):
    """Rows by operator. Immutable after construction.

    Args:
        name: Of the table, for messages.
        entries: The rows; the opset ranges of one operator must not overlap.

    Raises:
        ValueError: Two rows claim the same operator and opset.
    """

    def __init__(self, name: str, entries: Iterable[Entry[Row]]) -> None:
        self.name = name
        self._entries: dict[tuple[str, str], list[Entry[Row]]] = {}
        for entry in entries:
            rows = self._entries.setdefault((entry.domain, entry.op_type), [])
            if any(entry.since <= other.until and other.since <= entry.until for other in rows):
                raise ValueError(f"table {name}: two rows for {entry.domain}:{entry.op_type}")
            rows.append(entry)

    def find(self, domain: str, op_type: str, opset: int) -> Row | None:
        """Return the row of an operator at an opset version, or None when it is unknown."""
        domain = "" if domain in DEFAULT_DOMAINS else domain
        for entry in self._entries.get((domain, op_type), ()):
            if entry.since <= opset <= entry.until:
                return entry.row
        return None

    def __iter__(self) -> Iterator[Entry[Row]]:
        """Yield all entries, sorted by domain, operator and opset: for documentation and tests."""
        for key in sorted(self._entries):
            yield from sorted(self._entries[key], key=lambda entry: entry.since)

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._entries.values())
