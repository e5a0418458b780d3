"""Least squares after lossy passes: weights that give the original's values, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from converter.core import graph as g
from converter.core.contract import Need, Outcome, Pass
from converter.core.params import Param
from converter.core.select import Selection
from passes.reconstruction.fit import Recipe
from passes.reconstruction.walk import reconstruct

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, Context


@dataclass(frozen=True)
class Reconstruct(Pass):
    """Fit the float weights that are left so that each layer makes what it made before.

    Original and changed model advance side by side. Each Conv, Gemm and MatMul is fitted by ridge
    regression to what the original makes there, from what the layers before it now give (He et al.
    2017, arXiv 1707.06168), also through the sum and the Relu or Clip that follow. Weights that are
    zero stay zero. The ridge of each layer is chosen on samples that are not fitted on, and nothing
    is kept that is not better on them. Works after prune and other passes that change float
    weights; of quantized layers correct_bias moves the biases.
    """

    name: ClassVar[str] = "reconstruct"
    summary: ClassVar[str] = "refit float weights to the original after lossy passes"
    reads_weights: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})
    follows: ClassVar[frozenset[str]] = frozenset(
        {
            "simplify",
            "prune",
            "prune_channels",
            "drop_layers",
            "cluster_weights",
            "quantize_weights",
            "quantize",
            "cast",
        }
    )
    idempotent: ClassVar[bool] = False  # it starts from the weights that it finds

    method: Annotated[
        Literal["least_squares", "moments", "bias"],
        Param("moments: only mean and deviation of every channel; bias: only means"),
    ] = "least_squares"
    samples: Annotated[int, Param("most samples to fit on, spread over the data", ge=1)] = 512
    positions: Annotated[
        int, Param("rows of each sample for a layer; more where there are few samples", ge=1)
    ] = 48
    ridge: Annotated[
        float,
        Param("least pull towards the present weights, by the mean power of inputs", gt=0, le=1),
    ] = 1e-3
    iterations: Annotated[
        int, Param("rounds that take Relu, Clip or LeakyRelu into account", ge=0, le=100)
    ] = 3
    include: Annotated[
        tuple[str, ...], Param("layers to fit: name, glob or op:TYPE; all when empty")
    ] = ()
    exclude: Annotated[tuple[str, ...], Param("layers to leave as they are")] = ()

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Fit what the samples show; see :class:`Outcome` for what was decided and why.

        Raises:
            MissingDataError: There is no calibration data.
            ConverterError: A model cannot be run on the calibration data.
        """
        selection = Selection(self.include, self.exclude)
        skipped = selection.misses(g.walk(model))
        teacher = context.comparable
        if teacher is None:
            return Outcome(modified=False, skipped=tuple(skipped), notes=(_NOTHING_BEFORE,))
        repair = reconstruct(
            teacher.clone(),
            model,
            {},
            self._batches(context),
            context.settings,
            recipe=Recipe(
                self.method,
                positions=self.positions,
                ridge=self.ridge,
                iterations=self.iterations,
            ),
            selection=selection,
            progress=context.progress,
        )
        changed = sum(layer.after < layer.before for layer in repair.layers)
        counts = {"layers_fitted": float(changed)} if repair.modified else {}
        return Outcome(repair.modified, counts, (*skipped, *repair.skipped), repair.notes)

    def _batches(self, context: Context) -> list[Batch]:
        assert context.dataset is not None
        every = max(1, -(-context.dataset.samples // self.samples))
        found = islice(iter(context.dataset), None, None, every)
        return [replace(batch, targets=None) for batch in found]


_NOTHING_BEFORE = (
    "no pass before it changed the outputs, so there is nothing to compare with: give the float "
    "model as input and put reconstruct behind the passes that compress it"
)
