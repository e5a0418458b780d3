"""A Transpose of the last axes between two Reshapes that join the first ones and split them again.

The exporter of PyTorch writes it for the keys of attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from passes.rewriting.substitute import Found, New, Substitution, UnfitError

if TYPE_CHECKING:
    import onnx_ir as ir

Dims = tuple[Any, ...]


def _merge(found: Found) -> New | None:
    joined = found.work.facts.of(found.node("view").outputs[0]).dims
    before = found.dims("x")
    if before is None or joined is None:
        return None
    perm = found.attribute("turn", "perm") or range(len(joined))[::-1]
    first = len(before) - len(joined) + 1  # axes that become one
    if first < 1 or perm[0] != 0:
        return None
    whole = (*range(first), *(axis + first - 1 for axis in perm[1:]))
    after = tuple(before[axis] for axis in whole)
    tail, target = _sizes(found.node("view"), found)[1:], _sizes(found.root, found)
    if tail != before[first:] or len(target) != len(after) or target.count(-1) > 1:
        return None
    if any(one not in (-1, size) for one, size in zip(target, after, strict=True)):
        return None
    # A size of 0 copies that of the input: 0 as well on axis 0, an error behind its rank.
    if any(not isinstance(size, int) for size in after[1 : len(joined)]):
        raise UnfitError("a size that may be 0 is unknown")
    return New("Transpose", (found["x"],), {"perm": whole})


def _sizes(view: ir.Node, found: Found) -> Dims:
    """Return the sizes that a Reshape asks for, or none if they are unknown or copied."""
    content = found.work.facts.of(view.inputs[1]).content
    return () if content is None or 0 in content else tuple(content)


GROUPED_AXES = Substitution(
    name="transposes_of_groups_merged",
    patterns=("Reshape((turn := Transpose((view := Reshape(x, _)))), _)",),
    rewrite=_merge,
    since=5,
)
RULES = (GROUPED_AXES.rule(),)
"""The rule of this module; it keeps every bit."""
