"""Bias correction: what compression added to the means of layers is taken out again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from converter.core import graph as g
from converter.core.contract import Need, Outcome, Pass
from converter.core.params import Param
from converter.core.select import Selection
from passes.bias.fit import Move, Plan, best, correct, distance, replay
from passes.bias.measure import Samples, measure, of_original
from passes.bias.stations import Station, stations

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context

_ENOUGH = 4  # runs to judge by, below which nothing is decided
_WORTH = 0.02  # share of the error that a further correction must remove


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Move biases until the mean of every channel is what it was before lossy passes.

    Rounding and pruning shift the means of layers, and a mean reaches every position. Each layer of
    the original is run on the changed model's own values, and the mean of the difference goes into
    the bias (Nagel et al. 2019, arXiv 1906.04721, section 4.2). What is left of the differences to
    the original is corrected layer by layer, shrunk by its standard error over the samples; float
    weights also get back the variance of each channel, as do BatchNormalizations that are still
    there. A quarter of the samples decides which corrections bring the outputs closer to the
    original's; none is kept that does not. Works after prune, cluster_weights, quantize_weights and
    quantize, whose int32 biases it rewrites.
    """

    name: ClassVar[str] = "correct_bias"
    summary: ClassVar[str] = "restore the means that lossy passes before it have shifted"
    reads_weights: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})
    follows: ClassVar[frozenset[str]] = frozenset(
        {
            "simplify",
            "equalize",
            "prune",
            "prune_channels",
            "drop_layers",
            "reconstruct",
            "cluster_weights",
            "quantize_weights",
            "quantize",
        }
    )
    idempotent: ClassVar[bool] = False  # it measures again, and what was rounded is not zero

    rounds: Annotated[
        int,
        Param(
            "runs of the samples for what comes from the layers before: one per layer at most, or "
            "several layers at once; 0: only what each layer itself adds",
            ge=0,
            le=1000,
        ),
    ] = 64
    include: Annotated[
        tuple[str, ...], Param("layers to correct: name, glob or op:TYPE; all when empty")
    ] = ()
    exclude: Annotated[tuple[str, ...], Param("layers to leave as they are")] = ()

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Correct what the samples show; see :class:`Outcome` for what was decided and why.

        Raises:
            MissingDataError: There is no calibration data.
            ConverterError: A model cannot be run on the calibration data.
        """
        selection = Selection(self.include, self.exclude)
        skipped = selection.misses(g.walk(model))
        original = context.comparable
        if original is None:
            return Outcome(modified=False, skipped=tuple(skipped), notes=(_NOTHING_BEFORE,))
        found, reasons = stations(model, original, selection)
        skipped += reasons
        if not found:
            note = "no layer can be corrected"
            return Outcome(modified=False, skipped=tuple(skipped), notes=(note,))
        plans = [Plan("nothing"), Plan("what each layer adds", inputs=True)]
        if self.rounds:
            label = "also what comes from the layers before"
            plans.append(Plan(label, inputs=True, groups=self.rounds))
        correction = _Correction(model, original, context, selection)
        context.progress.start("correcting biases", None)
        try:
            changed, note = correction.run(found, plans)
        finally:
            context.progress.stop()
        counts = {"values_corrected": float(changed)} if changed else {}
        return Outcome(bool(changed), counts, tuple(skipped), (note,))


_NOTHING_BEFORE = (
    "no pass before it changed the outputs, so there is nothing to compare with: give the float "
    "model as input and put correct_bias behind the passes that compress it"
)


class _Correction:
    """One run of the pass."""

    def __init__(
        self, model: ir.Model, original: ir.Model, context: Context, selection: Selection
    ) -> None:
        self.model = model
        self.original = original
        self.selection = selection
        self.samples = Samples.of(original, context)

    def run(self, found: list[Station], plans: Sequence[Plan]) -> tuple[int, str]:
        """Try the plans on clones, and do what the best one did on the model itself.

        Returns:
            How many values were corrected, and what was decided and why.
        """
        learn, judge = self.samples.split()
        if len(judge.rows) < _ENOUGH:
            means = of_original(self.original, found, self.samples, outputs=False)
            moves = correct(self.model.clone(), self._find, means, self.samples, plans[1])
            note = f"only {len(self.samples.rows)} runs of the samples: none was held out to decide"
            return replay(self.model, self._find, moves), f"corrected {plans[1].label}; {note}"
        means = of_original(self.original, found, learn, outputs=False)
        expected = measure(self.original, (), judge)
        tried: dict[Plan, list[Move]] = {}
        errors = []
        for plan in plans:
            trial = self.model.clone()
            tried[plan] = correct(trial, self._find, means, learn, plan)
            errors.append((plan, distance(expected, measure(trial, (), judge))))
        chosen = best(errors, worth=_WORTH)
        figures = ", ".join(f"{plan.label}: {far}" for plan, far in errors)
        return replay(self.model, self._find, tried[chosen]), (
            f"corrected {chosen.label}; {errors[0][1].measure} of the outputs on "
            f"{len(judge.rows)} runs that were held out: {figures}"
        )

    def _find(self, model: ir.Model) -> list[Station]:
        return stations(model, self.original, self.selection)[0]
