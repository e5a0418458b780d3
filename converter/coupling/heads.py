"""Which part of a split axis is removed from: heads of an attention, or dimensions within them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


class Choices:
    """Answers ``Site.prefer``.

    Args:
        model: The model.
        shapes: Sizes by value name.
        heads: Whether heads are preferred to the dimensions within them.
    """

    def __init__(
        self, model: ir.Model, shapes: Mapping[str, tuple[int, ...]], *, heads: bool
    ) -> None:
        self._shapes = shapes
        self._heads = heads

    def __call__(self, node: ir.Node, sizes: Sequence[int]) -> tuple[int, str | None]:
        """Return the axis that leaves the most atoms, and the unit of its labels if it has one."""
        return max(range(len(sizes)), key=lambda axis: sizes[axis]), None
