"""Weights as they are stored: zeros and their pattern, packed forms, what packing would bring."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from converter.core.forecast import UNASKED_BYTES
from converter.report import words as w

Data = Mapping[str, Any]
Row = tuple[object, ...]
Table = tuple[str, tuple[str, ...], Sequence[Row], Sequence[int]]
_MOST = 10
_FEW = 0.01  # zeros below this share are no pattern worth a word


def tables(data: Data) -> Iterator[Table]:
    """Yield title, heads, rows and the columns that are aligned to the right."""
    if data["largest"]:
        heads = ("name", "type", "shape", "size", "zeros", "pattern")
        yield "Largest tensors", heads, [*_largest(data)], (3, 4)
    if data["packed"]:
        heads = ("weights", "form", "stored as", "size", "bits each", "zeros")
        yield "Packed, decoded by the runtime", heads, [*_packed(data["packed"])], (3, 4, 5)
    decoded = [x for one in data["packed"] for x in one["tensors"]]
    if decoded:
        rows = [*_decoded(decoded)]
        yield "Packed weights as they are used", ("name", "shape", "zeros", "pattern"), rows, (2,)
    packing = data["packing"]
    if packing is not None and packing["savings"]:
        title = f"What packing would bring: {w.size(packing['saved'])} less"
        yield title, ("tensor", "form", "now", "then"), [*_savings(packing["savings"])], (2, 3)


def remarks(data: Data) -> list[str]:
    """Return what there is to say about packing."""
    packing = data["packing"]
    if packing is None:
        large = data["tensor_bytes"] > UNASKED_BYTES
        return ["what packing would bring: --packing (it reads all weights)"] if large else []
    if not packing["savings"] and not packing["notes"]:
        return ["packing would bring nothing"]
    return list(packing["notes"])


def _largest(data: Data) -> Iterator[Row]:
    for x in data["largest"][:_MOST]:
        figures = w.size(x["nbytes"]), _zeros(x["zeros"]), _pattern(x)
        yield x["name"] or "(constant)", x["kind"], _shape(x), *figures
    shown = {(x["name"], x["nbytes"]) for x in data["largest"][:_MOST]}
    rest = [x for x in data["weights"] if (x["name"], x["nbytes"]) not in shown]
    if rest:
        total = sum(x["nbytes"] for x in rest)
        yield f"{w.count(len(rest))} more", "", "", w.size(total), _zeros(_share(rest)), ""


def _share(tensors: Sequence[Data]) -> float | None:
    """Return the share of zeros of several tensors, of those for which it is known."""
    told = [(math.prod(x["shape"]), x["zeros"]) for x in tensors if x["zeros"] is not None]
    elements = sum(count for count, _ in told)
    return sum(count * zeros for count, zeros in told) / elements if elements else None


def _shape(tensor: Data) -> str:
    return "x".join(map(str, tensor["shape"])) or "scalar"


def _pattern(tensor: Data) -> str:
    few = tensor["pattern"] == "unstructured" and tensor["zeros"] < _FEW
    return "" if few else str(tensor["pattern"])


def _packed(groups: Sequence[Data]) -> Iterator[Row]:
    """Yield a row per form and stored types, the largest first."""
    kinds: dict[tuple[str, str], list[Data]] = {}
    for one in groups:
        kinds.setdefault((one["form"], ", ".join(one["kinds"])), []).append(one)
    rows = sorted(kinds.items(), key=lambda item: -sum(one["nbytes"] for one in item[1]))
    for (form, stored), members in rows[:_MOST]:
        names = [name for one in members for name in one["names"]]
        who = names[0] if len(names) == 1 and names[0] else w.plural(len(names), "weight")
        yield who, form, stored, *_figures(members)
    rest = [one for _, members in rows[_MOST:] for one in members]
    if rest:
        count = sum(len(one["names"]) for one in rest)
        yield f"{w.count(count)} more", "", "", *_figures(rest)


def _decoded(tensors: Sequence[Data]) -> Iterator[Row]:
    ordered = sorted(tensors, key=lambda x: -math.prod(x["shape"]))
    for x in ordered[:_MOST]:
        yield x["name"], _shape(x), _zeros(x["zeros"]), _pattern(x)
    rest = ordered[_MOST:]
    if rest:
        yield f"{w.count(len(rest))} more", "", _zeros(_share(rest)), ""


def _figures(groups: Sequence[Data]) -> tuple[str, str, str]:
    """Size, bits per weight, share of zeros; what is not known for all of them stays empty."""
    nbytes = sum(one["nbytes"] for one in groups)
    known = all(one["elements"] for one in groups)
    elements = sum(one["elements"] for one in groups) if known else 0
    bits = f"{8 * nbytes / elements:.2f}" if elements else ""
    told = known and all(one["zeros"] is not None for one in groups)
    zeros = _zeros(sum(one["zeros"] for one in groups) / elements) if told else ""
    return w.size(nbytes), bits, zeros


def _savings(savings: Sequence[Data]) -> Iterator[Row]:
    ordered = sorted(savings, key=lambda one: one["after"] - one["before"])
    for one in ordered[:_MOST]:
        yield one["subject"], one["form"], w.size(one["before"]), w.size(one["after"])
    rest = ordered[_MOST:]
    if rest:
        before, after = (sum(one[key] for one in rest) for key in ("before", "after"))
        yield f"{w.count(len(rest))} more", "", w.size(before), w.size(after)


def _zeros(share: float | None) -> str:
    return "" if share is None else w.percent(share)
