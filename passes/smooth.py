"""``smooth``: activations with a few wide channels get ranges that one 8-bit grid holds better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from converter.core import graph as g
from converter.core.contract import Need, Outcome, Pass
from converter.core.params import Param
from converter.core.select import Selection
from passes.smoothing.sites import find, smooth

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context


@dataclass(frozen=True)
class Smooth(Pass):
    """Divide wide channels of what matrix products read, and multiply the weights by as much.

    The outputs stay equal up to rounding (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438). The
    factors go into constants that are there already: scale and bias of a normalization, the layer
    before, constants of GELU; never into a new product. Where others read a normalization too, it
    is computed a second time for the products. Without alpha, the factors of every activation are
    those with the smallest predicted error of 8-bit products, none where that gains little. Pays
    before quantization of MatMul and Gemm, static or dynamic.
    """

    name: ClassVar[str] = "smooth"
    summary: ClassVar[str] = "even out channels of what matrix products read, before quantization"
    reads_weights: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})
    follows: ClassVar[frozenset[str]] = frozenset(
        {"simplify", "fuse", "prune", "prune_channels", "drop_layers"}
    )
    exact: ClassVar[bool] = True
    idempotent: ClassVar[bool] = False  # smoother activations lead to other factors

    alpha: Annotated[
        float | None,
        Param("share of the spread that goes into the weights; none: what is best", ge=0, le=1),
    ] = None
    include: Annotated[tuple[str, ...], Param("products to smooth: name, glob or op:TYPE")] = ()
    exclude: Annotated[tuple[str, ...], Param("products to leave as they are")] = ()

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Smooth every activation that pays; see :class:`Outcome` for what was left and why.

        Raises:
            MissingDataError: There is no calibration data.
            ConverterError: The model cannot be run on the calibration data.
        """
        selection = Selection(self.include, self.exclude)
        skipped = selection.misses(g.walk(model))
        sites, refused = find(model, selection)
        counts, more, notes = smooth(model, sites, context, self.alpha)
        return Outcome(bool(counts), counts, (*skipped, *refused, *more), notes)
