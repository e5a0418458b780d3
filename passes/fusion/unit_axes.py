"""A Transpose that moves only axes of size 1 is a Reshape, and part of the Reshape before it.

Exporters write it for attention with one head.
"""

from __future__ import annotations

import numpy as np

from passes.rewriting.substitute import Found, New, Substitution, UnfitError
from passes.rewriting.targets import target_of


def _merge(found: Found) -> New | None:
    dims = found.work.facts.of(found.node("view").outputs[0]).dims
    if dims is None or 0 in dims:  # a target of 0 means the size of the input
        return None
    perm = found.attribute("turn", "perm") or range(len(dims))[::-1]
    long = [axis for axis in perm if dims[axis] != 1]
    if long != sorted(long):
        return None
    target = target_of(tuple(dims[axis] for axis in perm), found.dims("x"))
    if target is None:
        raise UnfitError("more than one size of its result is unknown")
    return New("Reshape", (found["x"], np.array(target, np.int64)))


UNIT_AXES = Substitution(
    name="transposes_of_ones_merged",
    patterns=("(turn := Transpose((view := Reshape(x, _))))",),
    rewrite=_merge,
    since=5,
)
RULES = (UNIT_AXES.rule(),)
"""The rule of this module; it keeps every bit."""
