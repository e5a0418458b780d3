"""Choosing the smallest form of each constant that may be used, and writing it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from converter.core.contract import Skip
from converter.core.packed import DECODER, is_decoder
from passes.encoding.build import Builder, drop
from passes.storage.content import Values
from passes.storage.find import Place, has_negative_zeros
from passes.storage.form import Constant, Member, Offer, Pool
from passes.storage.offers import offers, pooled

Array = np.ndarray[Any, Any]

_GAIN = 0.97
_LEAST_SAVED = 64
"""A form must bring so many bytes, and so large a share, to be worth its nodes."""
_PEAK_BYTES = 4 << 30
"""Bytes that decoding one constant may need for a moment beside the result."""
_TOGETHER = 1 << 26
"""Elements of constants that are in memory together."""
_SIGNED = "it holds negative zeros, which may mean something where it is used"
NO_FORM = "no form of it is smaller"
SLOW = "the smaller forms take longer to load than load= allows"
_LARGE = "decoding it would need more than 4 GiB beside the result"


@dataclass(frozen=True, eq=False)
class Chosen:
    """The form of one constant.

    Attributes:
        index: Position in the list of places.
        name: Of the constant, for people.
        size: Elements.
        before: Bytes of the elements now.
        after: Bytes that the form takes.
        form: Its name.
        nanoseconds: What decoding costs at load, per element, estimated.
        error: Largest difference, relative to the largest element.
        signed: Negative zeros become zeros.
        decoded: Computes the array that comes out of the decoder.
    """

    index: int
    name: str
    size: int
    before: int
    after: int
    form: str
    nanoseconds: float
    error: float
    signed: bool
    decoded: Callable[[], Array]


@dataclass(frozen=True, eq=False)
class Choice:
    """Constants that are written together: one, or those that share a decoder.

    Attributes:
        members: The constants.
        write: Adds the nodes and returns one value per member.
    """

    members: tuple[Chosen, ...]
    write: Callable[[Builder], Sequence[ir.Value]]


def choose(
    places: Sequence[Place], opset: int, values: Values, load: float
) -> tuple[list[Choice], list[Skip]]:
    """Return the smallest form of each constant that brings something.

    Args:
        places: The constants.
        opset: Version of the default operator set.
        values: What weights may be rounded to.
        load: Most nanoseconds per element that decoding may take.
    """
    found: list[Choice] = []
    skipped: list[Skip] = []
    for group in _groups(places):
        signed = [at for at in group if has_negative_zeros(places[at].tensor.numpy())]
        odd = {at for at in signed if not places[at].multiplied}
        skipped += [Skip(places[at].name, _SIGNED) for at in sorted(odd)]
        constants = {at: places[at].constant() for at in group if at not in odd}
        pools = pooled(list(constants.values()), opset, values=values)
        numbers = {id(constant): at for at, constant in constants.items()}
        slow = {id(m.constant) for p in pools for m in p.members if m.nanoseconds > load}
        if slow:  # they would slow others down that share their decoder
            quick = [c for c in constants.values() if id(c) not in slow]
            pools = pooled(quick, opset, values=values)
        found += [_together(pool, numbers, places, signed) for pool in pools if _pays(pool)]
        for constant in (c for c in constants.values() if id(c) in slow):
            at = numbers[id(constant)]
            offer = best(constant, offers(constant, opset, values=values), load)
            if isinstance(offer, str):
                skipped.append(Skip(places[at].name, offer))
            else:
                found.append(_single(at, places[at], constant, offer, signed=at in signed))
    taken = {member.index for choice in found for member in choice.members}
    taken |= {at for at, place in enumerate(places) for s in skipped if s.subject == place.name}
    rest = (place for at, place in enumerate(places) if at not in taken)
    skipped += [Skip(place.name, NO_FORM, minor=True) for place in rest]
    return found, skipped


def _groups(places: Sequence[Place]) -> Iterator[list[int]]:
    """Yield positions of constants that are looked at together: of one graph, not too large."""
    by_graph: dict[int, list[int]] = {}
    for at, place in enumerate(places):
        by_graph.setdefault(id(place.graph), []).append(at)
    for members in by_graph.values():
        group: list[int] = []
        elements = 0
        for at in members:
            size = places[at].tensor.size
            if group and elements + size > _TOGETHER:
                yield group
                group, elements = [], 0
            group.append(at)
            elements += size
        yield group


def _pays(pool: Pool) -> bool:
    before = sum(member.constant.nbytes for member in pool.members)
    return pool.nbytes <= min(_GAIN * before, before - _LEAST_SAVED) and pool.peak <= _PEAK_BYTES


def best(constant: Constant, made: Iterable[Offer], load: float) -> Offer | str:
    """Return the smallest offer within the limits that brings something, or why there is none."""
    reason = NO_FORM
    kept: list[Offer] = []
    most = min(_GAIN * constant.nbytes, constant.nbytes - _LEAST_SAVED)
    for offer in made:
        if offer.nbytes > most or offer.form == "plain":
            continue
        if offer.nanoseconds > load:
            reason = SLOW
        elif offer.peak > _PEAK_BYTES:
            reason = _LARGE
        else:
            kept.append(offer)
    if not kept:
        return reason
    return min(kept, key=lambda offer: (offer.nbytes, offer.nanoseconds, offer.form))


def _single(index: int, place: Place, constant: Constant, offer: Offer, *, signed: bool) -> Choice:
    member = _chosen(index, place, constant, offer, signed=signed)
    return Choice((member,), lambda build: (offer.write(build),))


def _together(
    pool: Pool, numbers: Mapping[int, int], places: Sequence[Place], signed: Sequence[int]
) -> Choice:
    members = []
    for member in pool.members:
        at = numbers[id(member.constant)]
        form = _chosen(at, places[at], member.constant, member, signed=at in signed)
        members.append(form)
    return Choice(tuple(members), pool.write)


def _chosen(
    index: int, place: Place, constant: Constant, form: Offer | Member, *, signed: bool
) -> Chosen:
    return Chosen(
        index=index,
        name=place.name,
        size=int(constant.array.size),
        before=constant.nbytes,
        after=form.nbytes,
        form=form.form,
        nanoseconds=form.nanoseconds,
        error=form.error,
        signed=signed,
        decoded=form.decoded,
    )


def write(model: ir.Model, places: Sequence[Place], choices: Iterable[Choice]) -> dict[str, int]:
    """Store constants in the forms chosen for them; decoded values take over their names.

    Returns:
        The names of all nodes added, each with the position of the choice it belongs to.
    """
    names = _Names(model)
    builders: dict[int, Builder] = {}
    added: dict[str, int] = {}
    for position, choice in enumerate(choices):
        graph = places[choice.members[0].index].graph
        if id(graph) not in builders:
            builders[id(graph)] = Builder(graph, names, g.opset(model), stem="d")
        values = choice.write(builders[id(graph)])
        for member, value in zip(choice.members, values, strict=True):
            _replace(places[member.index].value, value, names)
        added.update(dict.fromkeys(names.given, position))
        names.given.clear()
    return added


class _Names(g.Names):
    """Remembers the names that it hands out."""

    def __init__(self, model: ir.Model) -> None:
        super().__init__(model)
        self.given: list[str] = []

    def fresh(self, base: str) -> str:
        name = super().fresh(base)
        self.given.append(name)
        return name


def _replace(old: ir.Value, new: ir.Value, names: g.Names) -> None:
    """Let a decoded value take the place, the name and what is known of a constant."""
    producer = new.producer()
    assert producer is not None
    if not is_decoder(producer):
        producer.name = names.fresh(DECODER)
    new.shape, new.type, new.doc_string = old.shape, old.type, old.doc_string
    new.metadata_props.update(old.metadata_props)
    ir.convenience.replace_all_uses_with(old, new)
    drop(old)
    new.name = old.name  # which stays: its tensor has it too, and may be shared with other models


def rounded(places: Sequence[Place], choices: Iterable[Choice]) -> None:
    """Give constants the values that their chosen forms decode to, as plain constants."""
    for choice in choices:
        for member in choice.members:
            if member.error or member.signed:
                value = places[member.index].value
                tensor = ir.tensor(member.decoded(), dtype=value.dtype, name=value.name)
                g.replace_tensor(value, tensor)
