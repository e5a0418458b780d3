"""``simplify``: the exact clean-up passes in a fixpoint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from passes.deduplicate import deduplicate
from passes.eliminate import eliminate
from passes.fold_constants import fold_constants
from passes.fuse import fuse
from passes.inline import inline
from passes.rewriting.rewrite import Rewrite
from passes.rewriting.work import Work

MOST_ROUNDS = 12
_PARTS = (eliminate, deduplicate, fold_constants, partial(fuse, rounds=1))


@dataclass(frozen=True)
class Simplify(Rewrite):
    """Run ``eliminate``, ``deduplicate``, ``fold_constants`` and ``fuse`` until nothing changes.

    Neither nodes nor bytes grow, and the signature of the model is kept. Results differ only where
    ``fuse`` moves arithmetic into weights; see there. Calls of model functions are inlined if that
    leaves no more nodes in the main graph; ``inline`` before ``simplify`` inlines them in any case.
    """

    name: ClassVar[str] = "simplify"
    summary: ClassVar[str] = "remove, merge, fold and fuse until nothing changes; never bigger"

    def rewrite(self, work: Work) -> None:
        """Clean up until nothing changes."""
        if work.model.functions and _inlined(work):
            return
        inline(work, only_if_smaller=True)
        _clean(work)


def _inlined(work: Work) -> bool:
    """Try what is left when all calls are inlined first; take it if it is no bigger."""
    model = work.model
    trial = Work(model.clone(), work.context, work.selection)
    inline(trial, new_imports=False)
    if not trial.edits:
        return False
    _clean(trial)
    trial.finish()
    if trial.saved < 0 or len(trial.model.graph) > len(model.graph):
        return False  # what the calls stood for did not fuse
    work.adopt(trial)
    return True


def _clean(work: Work) -> None:
    seen: set[bytes] = set()
    for _ in range(MOST_ROUNDS):
        before = work.edits
        work.forget_facts()
        for part in _PARTS:
            part(work)
        if work.edits == before:
            break
        mark = _fingerprint(work)
        if mark in seen:
            break
        seen.add(mark)


def _fingerprint(work: Work) -> bytes:
    """Digest the structure: equal digests in two rounds mean that rules undo each other."""
    hasher = hashlib.blake2b(digest_size=16)
    for node in work.nodes():
        inputs = tuple(0 if value is None else id(value) for value in node.inputs)
        hasher.update(f"{node.op_type}{id(node)}{inputs}".encode())
    return hasher.digest()
