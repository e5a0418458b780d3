"""``eliminate``: remove what computes nothing; outputs stay equal to the last bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from passes.elimination import (
    arithmetic,
    casts,
    concats,
    copies,
    dead,
    identities,
    outputs,
    pairs,
    shapes,
    slices,
    states,
    transposes,
    views,
)
from passes.rewriting import branches
from passes.rewriting.rewrite import Rewrite
from passes.rewriting.rule import minor
from passes.rewriting.work import Work

_MOST_ROUNDS = 8


@dataclass(frozen=True)
class Eliminate(Rewrite):
    """Remove dead code, identities and operators that provably change nothing.

    Nodes without used outputs go when the ONNX specification defines them; operators of unknown
    domains stay, because they may have effects. Names of inputs and outputs never change.
    """

    name: ClassVar[str] = "eliminate"
    summary: ClassVar[str] = "remove dead code, identities and operators that change nothing"

    def rewrite(self, work: Work) -> None:
        """Remove what computes nothing."""
        for _ in range(_MOST_ROUNDS):
            before = work.edits
            eliminate(work)
            if work.edits == before:
                break
            work.forget_facts()


def eliminate(work: Work) -> None:
    """Remove what computes nothing; the body of the pass, used by ``simplify`` too."""
    dead.remove_dead(work)
    work.sweep(RULES)
    if not work.selection.include:
        dead.remove_unused_initializers(work)
        dead.remove_unused_functions(work)


RULES = minor(
    (
        *identities.RULES,
        *casts.RULES,
        *transposes.RULES,
        *views.RULES,
        *copies.RULES,
        *concats.RULES,
        *slices.RULES,
        *arithmetic.RULES,
        *pairs.RULES,
        *shapes.RULES,
        *outputs.RULES,
        *states.RULES,
        *branches.RULES,
    ),
    "dropouts_removed",  # in training mode: exported so by mistake
)
"""All rules of ``eliminate``; each keeps every output bit for bit. Cheap ones come first."""
