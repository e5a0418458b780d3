"""Passes that exist only to be parsed, described and written."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from converter.core.contract import Outcome, Pass
from converter.core.params import Param
from converter.errors import ParameterError, UnknownPassError


class Method(enum.Enum):
    MINMAX = "minmax"
    ENTROPY = "entropy"


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


@dataclass(frozen=True)
class Everything(Pass):
    """One field of every type that a parameter can have."""

    name: ClassVar[str] = "everything"
    summary: ClassVar[str] = "has every type"

    flag: Annotated[bool, Param("a switch")] = False
    count: Annotated[int, Param("an integer", ge=0, le=10**30)] = 3
    share: Annotated[float, Param("a number", ge=0, lt=1)] = 0.5
    free: Annotated[float, Param("a number without bounds")] = 0.0
    word: Annotated[str, Param("text")] = ""
    place: Annotated[Path | None, Param("a path")] = None
    method: Annotated[Method, Param("an enum of texts")] = Method.MINMAX
    level: Annotated[Level, Param("an enum of numbers")] = Level.LOW
    scope: Annotated[Literal["global", "local"], Param("a choice")] = "global"
    bits: Annotated[Literal[4, 8], Param("a choice of numbers")] = 8
    limit: Annotated[float | None, Param("a number or none", gt=0)] = 1.5
    label: Annotated[str | None, Param("text or none")] = "x"
    include: Annotated[tuple[str, ...], Param("patterns")] = ()
    sizes: Annotated[tuple[int, ...], Param("numbers", ge=1)] = (1, 2)
    ratios: Annotated[tuple[float, ...] | None, Param("numbers or none")] = None

    def apply(self, model, context) -> Outcome:
        return Outcome(False)


@dataclass(frozen=True)
class Required(Pass):
    """Must be told how much, and refuses two ways of saying it."""

    name: ClassVar[str] = "required"

    amount: Annotated[float, Param("how much", gt=0)]
    percent: Annotated[float | None, Param("the other way")] = None

    def validate_parameters(self) -> None:
        if self.percent is not None:
            raise ParameterError("amount and percent exclude each other", where="percent")

    def apply(self, model, context) -> Outcome:
        return Outcome(False)


def find(name: str) -> type[Pass]:
    """Stand in for the registry."""
    known = {"everything": Everything, "required": Required}
    if name not in known:
        raise UnknownPassError(f"no pass is named {name!r}")
    return known[name]
