"""Makes inputs that have a default value constant, so that other passes may work on them.

Old exporters list every weight as an input of the graph. From IR version 4 on that means that
callers may override it, so no pass may rewrite it: such a model can be neither folded nor
quantized. ``freeze`` takes those inputs off the list; callers that never override them see no
difference.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from converter.core.contract import Outcome, Pass, Skip
from converter.core.params import Param

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context


@dataclass(frozen=True)
class Freeze(Pass):
    """Take inputs with a default value off the list of inputs; their default stays.

    Attributes:
        include: Names of inputs to freeze; empty means all that have a default value.
        exclude: Names of inputs to leave; wins over ``include``.
    """

    name: ClassVar[str] = "freeze"
    summary: ClassVar[str] = "make inputs that have a default value constant"
    exact: ClassVar[bool] = True
    changes_interface: ClassVar[bool] = True

    include: Annotated[tuple[str, ...], Param("names of inputs to freeze, globs allowed")] = ()
    exclude: Annotated[tuple[str, ...], Param("names of inputs to leave, globs allowed")] = ()

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Freeze the chosen inputs of the main graph."""
        graph = model.graph
        skipped: list[Skip] = []
        kept: list[ir.Value] = []
        for value in graph.inputs:
            name = value.name or ""
            if name not in graph.initializers:
                kept.append(value)
            elif not self._chosen(name):
                kept.append(value)
                skipped.append(Skip(name, "not selected"))
            elif value.is_graph_output():
                kept.append(value)
                skipped.append(Skip(name, "it is an output too"))
        frozen = len(graph.inputs) - len(kept)
        if frozen:
            graph.inputs[:] = kept
        return Outcome(bool(frozen), {"inputs_frozen": frozen}, tuple(skipped))

    def _chosen(self, name: str) -> bool:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exclude):
            return False
        return not self.include or any(fnmatch.fnmatchcase(name, p) for p in self.include)
