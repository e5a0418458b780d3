"""The base of passes that are made of exact rules."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from converter.core.contract import Outcome, Pass, Skip
from converter.core.graph import walk
from converter.core.params import Param
from converter.core.select import Selection
from passes.rewriting.work import Work

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context


@dataclass(frozen=True)
class Rewrite(Pass):
    """A pass that applies exact rules to the chosen nodes of all scopes.

    Attributes:
        include: Nodes that may change; empty means all.
        exclude: Nodes that stay; wins over ``include``.
    """

    exact: ClassVar[bool] = True

    include: Annotated[tuple[str, ...], Param("only these nodes (name, glob, op:TYPE)")] = ()
    exclude: Annotated[tuple[str, ...], Param("never these nodes (name, glob, op:TYPE)")] = ()

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Apply the rules and say what they did."""
        selection = Selection(self.include, self.exclude)
        chosen = bool(self.include or self.exclude)
        lost = selection.unmatched(list(walk(model))) if chosen else ()
        work = Work(model, context, selection)
        self.rewrite(work)
        outcome = work.outcome()
        skips = tuple(Skip(pattern, "matches no node") for pattern in lost)
        return replace(outcome, skipped=(*skips, *outcome.skipped)) if lost else outcome

    @abstractmethod
    def rewrite(self, work: Work) -> None:
        """Edit the model of ``work`` in place."""
