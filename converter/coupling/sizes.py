"""Sizes that a model computes with: an axis stays where its size becomes part of a result."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converter.coupling.propagate import Propagation


def freeze_computed_sizes(walk: Propagation) -> None:
    """Freeze axes whose observed size is used as a number, not as the size of an axis."""
