"""PLACEHOLDER replaced by its owner: Param annotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Param:
    """Documentation and bounds of one field of a pass: ``Annotated[float, Param("share", ge=0, lt=1)] = 0.5``.

    Attributes:
        help: One line for ``convert passes NAME``.
        ge, gt, le, lt: Bounds of a number.
        search: Values worth trying in a search.
    """

    help: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    search: tuple[Any, ...] = ()
