"""The base of passes that are made of exact rules."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from converter.core.contract import Outcome, Pass
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
        work = Work(model, context, Selection(self.include, self.exclude))
        self.rewrite(work)
        return work.outcome()

    @abstractmethod
    def rewrite(self, work: Work) -> None:
        """Edit the model of ``work`` in place."""
