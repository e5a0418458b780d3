"""The rule of Einsum: what has the same letter goes together."""

from __future__ import annotations

from dataclasses import dataclass, field

from converter.ops.axes.align import extent
from converter.ops.axes.blocks import freeze_inputs, positions
from converter.ops.axes.site import Axes, Labels, Rule, Site
from converter.ops.table import Entry

_UNCLEAR = "the equation of Einsum is not clear"


@dataclass
class _Letter:
    """All axes with one letter: labels, the size, and where they are: (position, axis)."""

    labels: Labels = None
    size: int = 1
    places: list[tuple[int, int]] = field(default_factory=list)


def einsum(site: Site) -> None:
    """Axes with the same letter go together; letters that the output lacks are summed over."""
    terms = _terms(site)
    if terms is None:
        freeze_inputs(site, _UNCLEAR)
        return
    inputs, output = terms
    letters: dict[str, _Letter] = {}
    for position, names in zip(positions(site), inputs, strict=True):
        for axis, name in enumerate(names):
            _meet(site, letters.setdefault(name, _Letter()), position, axis)
    for name, letter in letters.items():
        if name not in output:
            _sum(site, letter)
    result: Axes = tuple(letters[name].labels for name in output)
    site.put(result)
    if len(inputs) > 1:
        site.work(1, *(extent(letter.labels, letter.size) for letter in letters.values()))


def _meet(site: Site, letter: _Letter, position: int, axis: int) -> None:
    """Add one axis to a letter; an axis of size 1 is spread over the others."""
    labels, size = site.labels(position)[axis], site.shape(position)[axis]
    if size == 1:
        return
    letter.places.append((position, axis))
    letter.labels = labels if letter.size == 1 else site.unite(letter.labels, labels)
    letter.size = size


def _sum(site: Site, letter: _Letter) -> None:
    """Note where a letter is summed: with constants, with activations, or alone."""
    if letter.labels is None:
        return
    active = [place for place in letter.places if not site.fixed(place[0])]
    fixed = [place for place in letter.places if site.fixed(place[0])]
    if not active:
        site.freeze(letter.labels, "constants are summed over it")
        return
    position, axis = active[0]
    if len(letter.places) == 1:
        site.sink(position, axis, "sum")
    elif len(active) == 1 and len(fixed) == 1:
        site.sink(position, axis, "weights", weight=fixed[0][0], weight_axis=fixed[0][1])
    else:
        site.sink(position, axis, "product")


def _terms(site: Site) -> tuple[list[list[str]], list[str]] | None:
    """Return the letters of every input and of the output; an ellipsis becomes numbers."""
    equation = site.node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    operands = left.split(",")
    places = positions(site)
    if len(operands) != len(places):
        return None
    inputs = []
    for position, operand in zip(places, operands, strict=True):
        names = _letters(operand, len(site.shape(position)))
        if names is None or len(set(names)) != len(names):
            return None  # a diagonal, or not as many letters as axes
        inputs.append(names)
    flat = [name for names in inputs for name in names]
    dots = sorted({name for name in flat if name.startswith(".")})[::-1]
    if arrow:
        output = _output(right, dots)
    else:
        output = dots + sorted({name for name in flat if flat.count(name) == 1} - set(dots))
    return (inputs, output) if set(output) <= set(flat) else None


def _letters(operand: str, rank: int) -> list[str] | None:
    """Spell out an operand; the axes of an ellipsis are extent from the right."""
    before, dots, after = operand.partition("...")
    missing = rank - len(before) - len(after)
    if missing < 0 or (missing and not dots):
        return None
    return [*before, *(f".{i:02d}" for i in range(missing - 1, -1, -1)), *after]


def _output(text: str, dots: list[str]) -> list[str]:
    before, found, after = text.partition("...")
    return [*before, *(dots if found else []), *after]


ENTRIES: tuple[Entry[Rule], ...] = (Entry("Einsum", einsum),)
