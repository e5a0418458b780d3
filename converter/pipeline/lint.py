"""What is unusual about the order of passes: advice for the report, never an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converter.core.contract import Pass

_REPAIRS = {
    "reconstruct": "fits weights to what the model was before lossy passes",
    "correct_bias": "takes out of biases what lossy passes before it shifted",
}
"""Passes that have nothing to do unless a lossy one ran before them."""


def unusual(passes: Sequence[Pass]) -> list[str]:
    """Return a sentence about each pass that stands where it usually does not.

    A pass says which others it follows when both are used (:attr:`Pass.follows`). It is told when
    such a pass comes behind it and not before it as well. Two passes that follow each other may
    stand in any order.

    Args:
        passes: In the order in which they run.
    """
    found: list[str] = []
    for i, first in enumerate(passes):
        before = {other.name for other in passes[:i]}
        lossy = any(not other.exact for other in passes[:i])
        if first.name in _REPAIRS:
            if not lossy:
                found.append(f"{first.name} {_REPAIRS[first.name]}, and none runs before it")
            continue
        behind = {other.name: other for other in passes[i + 1 :]}
        found += [
            f"{first.name} runs before {name}, and usually after it: what {name} changes comes too "
            f"late for {first.name}"
            for name in sorted((first.follows & behind.keys()) - before)
            if first.name not in behind[name].follows
        ]
    return list(dict.fromkeys(found))
