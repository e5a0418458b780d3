"""``convert_opset``: another version of the default operator set, checked, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from converter.core import graph as g
from converter.core.contract import Outcome, Pass
from converter.core.params import Param
from converter.errors import PreconditionError
from passes.opset.definitions import NEWEST, OLDEST

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context


@dataclass(frozen=True)
class ConvertOpset(Pass):
    """Convert the model to another version of the default operator set: ``convert_opset:to=17``.

    Only nodes whose definition differs between the two versions are touched, each by itself, with
    the converter of onnx in a child process that never sees the weights. Names, inner graphs, other
    domains and functions stay; a function with a node that has to change is inlined. The IR version
    is raised where the operator set needs it. The model is converted as a whole or, with the
    reason, not at all, and the result is compared with the model before.
    """

    name: ClassVar[str] = "convert_opset"
    summary: ClassVar[str] = "convert to another version of the default operator set"
    exact: ClassVar[bool] = True
    changes_interface: ClassVar[bool] = True

    to: Annotated[
        int | None, Param(f"target version; none: {NEWEST}, never lower than now", ge=OLDEST)
    ] = None

    def requires(self, model: ir.Model, context: Context) -> None:
        """Check that the target exists and that versions may change.

        Raises:
            PreconditionError: It does not, or the opset is to be kept.
        """
        from passes.opset.definitions import newest

        if self._target(model) == g.opset(model):
            return
        if self.to is not None and self.to > newest():
            raise PreconditionError(
                f"opset {self.to} is newer than onnxruntime runs",
                pass_name=self.name,
                allowed=f"{OLDEST} to {newest()}",
            )
        if context.keep_opset and self.to is not None:
            raise PreconditionError(
                f"opset {g.opset(model)} is to be kept and {self.to} is wanted",
                pass_name=self.name,
                hint="leave out --keep-opset, or this pass",
            )

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Convert the model.

        Raises:
            PreconditionError: A part of it cannot be converted; names the nodes.
        """
        from passes.opset.convert import convert

        before, version, target = g.opset(model), model.ir_version, self._target(model)
        if before == target or context.keep_opset:
            return Outcome(modified=False, notes=(f"the model has opset {before or 'none'}",))
        result = convert(model, target, context)
        if result.reason:
            raise PreconditionError(
                f"the model cannot be converted from opset {before} to {target}: {result.reason}",
                pass_name=self.name,
                hint="choose another target, or leave this pass out",
            )
        notes = [f"opset {before} became {target}"]
        if model.ir_version != version:
            notes.append(f"IR version {version} became {model.ir_version}, as the opset needs")
        counts = {"nodes_converted": result.converted, "calls_inlined": result.inlined}
        found = {name: float(count) for name, count in counts.items() if count}
        return Outcome(modified=True, counts=found, notes=tuple(notes))

    def _target(self, model: ir.Model) -> int:
        before = g.opset(model)
        if self.to is not None and before:
            return self.to
        return max(before, NEWEST) if before else 0
