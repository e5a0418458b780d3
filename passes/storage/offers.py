"""What storing constants in other forms would take: each alone, or many together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from passes.storage import places, pool
from passes.storage.content import Content, Values, contents
from passes.storage.form import Constant, Offer, Pool

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.encoding.build import Builder

Array = np.ndarray[Any, Any]

_OLDEST_DENSE = 7
"""First opset whose Mul broadcasts; forms with positions or tables need 11."""
MOST_TOGETHER = 1 << 24
"""Elements of one pool; larger constants have a decoder of their own."""
_WORTH = 0.98
"""Part of the bytes now that a form must stay below."""
_SLOWEST = 2
_EFFORT = 1.01
"""The width with most codes, and what its bytes count: it is left for another as good as it."""


def offers(constant: Constant, opset: int, *, values: Values = "exact") -> list[Offer]:
    """Return the ways to store one constant in fewer bytes, smallest first.

    Args:
        constant: Any.
        opset: Version of the default operator set.
        values: What elements of float matrices may be rounded to.
    """
    found = []
    for content in contents(constant, values):
        stored = [one for one in pool.ways(constant, content) if _possible(one, opset)]
        single = [pool.make_pool([one]) for one in stored]
        if single:
            costs = [
                one.nbytes * _effort(way.width) for one, way in zip(single, stored, strict=True)
            ]
            found.append(_offer(single[int(np.argmin(costs))]))
    smaller = [offer for offer in found if offer.nbytes < _WORTH * constant.nbytes]
    return sorted(smaller, key=lambda offer: (offer.nbytes, offer.nanoseconds))


def pooled(
    constants: Sequence[Constant],
    opset: int,
    *,
    values: Values = "exact",
    most: int = MOST_TOGETHER,
) -> list[Pool]:
    """Return decoders for many constants of one graph, which together make the file smallest.

    Args:
        constants: Constants of one graph.
        opset: Version of the default operator set.
        values: What elements of float matrices may be rounded to.
        most: Elements that may share a decoder.

    Returns:
        Pools in the order of their first members. A constant that would not become smaller is in
        none.
    """
    chosen: dict[int, pool.Stored] = {}
    small = [c for c in constants if c.array.size <= most]
    groups = [small, *([c] for c in constants if c.array.size > most)]
    for group in groups:
        chosen.update(_choose(group, opset, values))
    order = [chosen[id(c)] for c in constants if id(c) in chosen]
    return [pool.make_pool(part) for part in _parts(order, most)]


def _effort(width: int) -> float:
    return _EFFORT if width == _SLOWEST else 1.0


def _offer(single: Pool) -> Offer:
    member = single.members[0]

    def write(build: Builder) -> ir.Value:
        return single.write(build)[0]

    return Offer(
        form=member.form,
        nbytes=single.nbytes,
        nanoseconds=member.nanoseconds,
        peak=single.peak,
        error=member.error,
        decoded=member.decoded,
        write=write,
    )


def _possible(one: pool.Stored, opset: int) -> bool:
    """Tell whether an opset has the operators that a form needs."""
    if one.constant.array.size > places.MOST_ELEMENTS and (one.width or one.content.bits < 8):
        return False
    simple = one.width == places.DENSE and one.content.kind != "palette" and one.content.bits >= 8
    return opset >= (_OLDEST_DENSE if simple else places.OLDEST_OPSET)


def _parts(order: list[pool.Stored], most: int) -> list[list[pool.Stored]]:
    """Divide constants among decoders, in order."""
    parts: list[list[pool.Stored]] = []
    latest: dict[pool.Key, tuple[list[pool.Stored], int]] = {}
    for one in order:
        part, elements = latest.get(one.key, ([], most + 1))
        if elements + one.constant.array.size > most:
            part, elements = [], 0
            parts.append(part)
        part.append(one)
        latest[one.key] = (part, elements + one.constant.array.size)
    return parts


def _choose(constants: Sequence[Constant], opset: int, values: Values) -> dict[int, pool.Stored]:
    """Choose a form for each constant; a decoder is paid for once by all that use it.

    All forms are allowed first; then the one that saves most by not being used is dropped, until
    none does.
    """
    options: list[dict[tuple[pool.Key, int], pool.Stored]] = []
    for constant in constants:
        found: list[Content] = list(contents(constant, values))
        every = [one for content in found for one in pool.ways(constant, content)]
        options.append({(one.key, one.width): one for one in every if _possible(one, opset)})
    columns = sorted({column for one in options for column in one})
    costs = np.full((len(constants), len(columns) + 1), np.inf)
    for row, (constant, ways) in enumerate(zip(constants, options, strict=True)):
        costs[row, -1] = constant.nbytes * _WORTH
        for column, name in enumerate(columns):
            if name in ways:
                costs[row, column] = ways[name].nbytes * _effort(name[1])
    kept = _fewest(costs, columns)
    best = np.argmin(costs[:, kept], axis=1) if constants else np.zeros(0, int)
    names = [columns[i] if i < len(columns) else None for i in kept]
    picked = {id(c): (options[row], names[best[row]]) for row, c in enumerate(constants)}
    return {key: ways[name] for key, (ways, name) in picked.items() if name is not None}


def _fewest(costs: Array, columns: list[tuple[pool.Key, int]]) -> list[int]:
    """Return the columns worth having; the last one, leaving constants as they are, always."""
    kept = list(range(len(columns) + 1))
    while len(kept) > 1:
        totals = [_total(costs, columns, kept)]
        trials = [[c for c in kept if c != gone] for gone in kept[:-1]]
        totals += [_total(costs, columns, trial) for trial in trials]
        best = int(np.argmin(totals))
        if best == 0:
            break
        kept = trials[best - 1]
    return kept


def _total(costs: Array, columns: list[tuple[pool.Key, int]], kept: list[int]) -> float:
    """Return the bytes when only some columns may be used."""
    used = [columns[i] for i in kept[:-1]]
    overhead = sum(map(pool.key_overhead, {key for key, _ in used}))
    overhead += sum(pool.width_overhead(width) for _, width in used)
    return float(costs[:, kept].min(axis=1).sum()) + overhead
