"""A pass that lives in a distribution of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from converter.core.contract import Outcome, Pass
from converter.core.params import Param

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context


@dataclass(frozen=True)
class Annotate(Pass):
    """Write a remark into the model's metadata."""

    name: ClassVar[str] = "annotate"
    summary: ClassVar[str] = "write a remark into the metadata"

    remark: Annotated[str, Param("the remark")] = "made by a plugin"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Set one metadata entry."""
        del context
        if model.metadata_props.get("remark") == self.remark:
            return Outcome(modified=False)
        model.metadata_props["remark"] = self.remark
        return Outcome(modified=True, counts={"remarks": 1})
