"""What can be removed from a model, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from converter.report import words as w

Data = Mapping[str, Any]
Row = tuple[object, ...]
_MOST_FROZEN = 20


def tables(data: Data) -> Iterator[tuple[str, tuple[str, ...], Sequence[Row], Sequence[int]]]:
    """Yield title, heads, rows and the columns that are aligned to the right."""
    total = f"{w.count(data['macs'])} multiply-accumulates, {w.count(data['parameters'])} weights"
    rows = [_component(row) for row in data["components"]]
    if rows:
        yield (
            f"What can be removed, of {total} (shares overlap where two meet in a layer)",
            ("made by", "units", "MACs", "weights"),
            rows,
            (
                1,
                2,
                3,
            ),
        )
    else:
        yield f"Nothing can be removed, of {total}", ("", ""), [], ()
    frozen = data["frozen"]
    if frozen:
        shown: list[Row] = [
            (row["subject"], w.count(row["size"]), row["reason"]) for row in frozen[:_MOST_FROZEN]
        ]
        rest = frozen[_MOST_FROZEN:]
        if rest:
            shown.append((f"{len(rest)} more", w.count(sum(row["size"] for row in rest)), ""))
        yield "What stays", ("made by", "indices", "because"), shown, (1,)


def answers(data: Data) -> dict[str, list[str]]:
    """Return what was asked of single nodes, by node."""
    found: dict[str, list[str]] = {}
    for answer in data["answers"]:
        found.setdefault(answer["subject"], []).append(answer["what"])
    return found


def _component(row: Data) -> Row:
    kind = "unit" if row["unit"] == "hidden" else row["unit"]
    blocks = f" in {row['blocks']} blocks" if row["blocks"] > 1 else ""
    return (
        row["name"],
        w.plural(row["atoms"], kind) + blocks,
        w.percent(row["macs"]),
        w.percent(row["parameters"]),
    )
