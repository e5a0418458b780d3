"""``unpack``: computed constants as plain ones again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from converter.core.contract import Outcome, Pass
from converter.core.params import Param
from passes.storage.unpack import unpack

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context


@dataclass(frozen=True)
class Unpack(Pass):
    """Replace what a file decodes at load by the constants themselves; the file grows.

    Passes that look at weights find none in a packed file. The pipeline unpacks a model that
    ``pack`` wrote before the first such pass; this pass does it at will, also for runtimes that
    would run the decoders with every call.
    """

    name: ClassVar[str] = "unpack"
    summary: ClassVar[str] = "turn packed constants into plain ones again"
    exact: ClassVar[bool] = True

    by: Annotated[
        Literal["pack", "any"], Param("whose decoders: those of pack, or of other tools too")
    ] = "any"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Compute every packed constant and store it."""
        return unpack(model, context, ours=self.by == "pack")
