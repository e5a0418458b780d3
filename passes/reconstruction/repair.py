"""What a recovery did, for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.core.contract import Skip

_NAMED = 4
UNDONE = "undone, because the outputs got worse"


@dataclass(frozen=True)
class Fitted:
    """What became of one layer.

    Attributes:
        name: For people.
        before: Power of the error behind the layer as a share of the output's variance.
        after: The same with the new weights; equal when they were not taken.
        what: What was done, or why nothing was.
        few: There were less than twice as many rows as inputs.
    """

    name: str
    before: float
    after: float
    what: str
    few: bool = False

    @property
    def gained(self) -> bool:
        """Tell whether the new weights are better."""
        return self.after < self.before


@dataclass(frozen=True)
class Repair:
    """What a recovery did.

    Attributes:
        modified: The model was changed.
        layers: In the order of the graph.
        skipped: Layers that were left alone.
        before: Damage of the outputs on samples that were not fitted on, without recovery.
        after: The same with it.
        measure: What the damage is.
        notes: Sentences for the report.
    """

    modified: bool
    layers: tuple[Fitted, ...] = ()
    skipped: tuple[Skip, ...] = ()
    before: float = 0.0
    after: float = 0.0
    measure: str = ""
    notes: tuple[str, ...] = ()


def notes_of(layers: Sequence[Fitted], found: Mapping[str, Any], *, taken: bool) -> tuple[str, ...]:
    """Say how a recovery went.

    Args:
        layers: What became of each.
        found: Damage ``before`` and ``after``, its ``measure``, on how many samples (``held``), and
            whether these were not fitted on (``apart``).
        taken: The new weights are used.
    """
    solved = [layer for layer in layers if layer.gained]
    figures = f"{found['measure']} {found['before']:.4g} before, {found['after']:.4g} after"
    on = f"on {found['held']} samples" + (
        " that were not fitted on" if found["apart"] else ": too few to hold some out"
    )
    if not taken:
        return (f"recovery was undone, it makes the outputs worse: {figures}, {on}",)
    if not solved:
        return ("no layer gained by a fit",)
    said = f"fitted {len(solved)} of {len(layers)} layers: {figures}, {on}"
    few = [layer.name for layer in solved if layer.few]
    if not few:
        return (said,)
    names = ", ".join(few[:_NAMED]) + (f" and {len(few) - _NAMED} more" if few[_NAMED:] else "")
    return (said, f"more samples would help {names}: less than two rows per input to fit on")
