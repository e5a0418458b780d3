"""Compare a converted model with its original and judge it by a budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.core.context import RunSettings
from converter.core.observe import Progress, Silent
from converter.errors import DataError, MissingDataError
from converter.execution import sandbox
from converter.measure.accuracy import Scores
from converter.measure.difference import OutputDifference
from converter.measure.latency import LatencyComparison, summarize
from converter.measure.macs import Macs
from converter.measure.size import Size, measure_size
from converter.verification.budget import METRICS, Budget, Limit
from converter.verification.compare import Work, compare
from converter.verification.verdict import Check, Verdict

if TYPE_CHECKING:
    from converter.core.context import Dataset, Limits

LATENCY_SECONDS = 1.0
SLOWER = 1.1
"""Ratio of latencies from which on the verdict says so; below it is noise."""
USUAL_BATCHES = 256
_Found = tuple[float | None, float | None, str]


def verify(  # noqa: PLR0913 - the interface of verification
    original: Path,
    converted: Path,
    dataset: Dataset,
    *,
    budget: Budget | None = None,
    settings: RunSettings,
    latency: bool = True,
    progress: Progress | None = None,
) -> Verdict:
    """Run both models over all samples in one child process, measure, and judge.

    Args:
        original: Model file.
        converted: Model file with the same inputs and outputs.
        dataset: Samples; read once, batch by batch.
        budget: What must hold; None: nothing beyond sound outputs.
        settings: Limits, threads, custom operators.
        latency: Measure latency too; a budget on latency switches it on.
        progress: Receives one step per batch.

    Returns:
        The verdict. It fails when a term of the budget does, and when an output has another shape
        or type than the original's or holds NaN or infinity where that has none.

    Raises:
        MissingDataError: The budget names a metric that these samples cannot give.
        VerificationError: The models have different inputs or outputs, or only the converted one
            fails on the samples.
        ModelError: A model cannot be opened, or the original cannot be run.
    """
    import onnxruntime  # noqa: F401 - imported here, every child has it

    budget = budget or Budget()
    progress = progress or Silent()
    _check_measurable(budget, dataset)
    sizes = measure_size(original), measure_size(converted)
    timed = latency or budget.names("latency")
    seconds = LATENCY_SECONDS if timed else 0.0
    work = Work(original, converted, settings, latency_seconds=seconds, macs=True)
    progress.start("verifying", len(dataset))
    try:
        found = sandbox.call(
            compare,
            work,
            dataset,
            limits=_limits(settings.limits, len(dataset)),
            on_progress=progress.advance,
            task="comparing the models",
        )
    finally:
        progress.stop()
    return judge(_Measured(found, sizes, (original.name, converted.name), work), dataset, budget)


def verify_sizes(original: Path, converted: Path, budget: Budget) -> Verdict:
    """Judge what can be judged without running a model: size, nodes, parameters."""
    nothing = {"outputs": [], "scores": [], "random": {}, "samples": 0, "runs": 0}
    nothing |= {"times": None, "macs": None}
    sizes = measure_size(original), measure_size(converted)
    work = Work(original, converted, RunSettings())
    return judge(_Measured(nothing, sizes, (original.name, converted.name), work), None, budget)


def _limits(limits: Limits, batches: int) -> Limits:
    """Grant more time for more samples; the limit stands for a usual number of them."""
    return replace(limits, seconds=limits.seconds * max(1.0, batches / USUAL_BATCHES))


class _Measured:
    """What came back from the child, in its classes again."""

    def __init__(
        self, found: dict[str, Any], sizes: tuple[Size, Size], names: tuple[str, str], work: Work
    ) -> None:
        self.outputs = tuple(OutputDifference(**o) for o in found["outputs"])
        self.scores = tuple(Scores(**s) for s in found["scores"])
        self.random: dict[str, str] = found["random"]
        self.samples: int = found["samples"]
        self.runs: int = found["runs"]
        self.sizes = sizes
        self.macs = None if found["macs"] is None else Macs(*found["macs"])
        self.latency: LatencyComparison | None = None
        if found["times"] is not None:
            self.latency = LatencyComparison(
                summarize(names, found["times"]),
                batch=found["batch"],
                threads=work.settings.threads,
            )


def judge(measured: _Measured, dataset: Dataset | None, budget: Budget) -> Verdict:
    """Hold what was measured against the budget."""
    checks = [_check(limit, measured) for limit in budget.limits]
    checks += [
        Check(
            "outputs", "", None, None, None, passed=False, detail=f"output {o.name!r}: {o.broken}"
        )
        for o in measured.outputs
        if o.broken
    ]
    return Verdict(
        passed=all(check.passed for check in checks),
        checks=tuple(checks),
        outputs=measured.outputs,
        scores=measured.scores,
        size_original=measured.sizes[0],
        size_converted=measured.sizes[1],
        latency=measured.latency,
        macs=measured.macs,
        samples=measured.samples,
        runs=measured.runs,
        synthetic=dataset is not None and dataset.synthetic,
        data="" if dataset is None else dataset.description,
        notes=tuple(_notes(measured, dataset)),
    )


def _notes(measured: _Measured, dataset: Dataset | None) -> list[str]:
    notes = []
    if dataset is not None and dataset.synthetic:
        notes.append(
            "the inputs were made up: the figures say that the model still works, not how well; "
            "give real samples with --data"
        )
    if measured.latency is not None and measured.latency.models[1].ratio > SLOWER:
        notes.append(
            f"the converted model is slower: {measured.latency.models[1].ratio:.2f}x the time of "
            "the original on this machine"
        )
    notes += [
        f"output {name!r} is random by nature ({reason}): only its shape and type were compared"
        for name, reason in measured.random.items()
    ]
    return notes


def _check_measurable(budget: Budget, dataset: Dataset) -> None:
    """Refuse a budget that cannot be measured before anything runs."""
    if not budget.names("accuracy"):
        return
    labelled = getattr(dataset, "labelled", None)
    if labelled is None:
        first = next(iter(dataset), None)
        labelled = first is not None and first.targets is not None
    if not labelled:
        raise MissingDataError(
            "the budget names accuracy and the data has no labels",
            where="--budget",
            allowed="data with an array of labels",
            hint="add an array 'labels' with the right class of each sample, or use agreement or "
            "sqnr instead",
        )


def _check(limit: Limit, measured: _Measured) -> Check:
    original, converted, detail = _FIGURES[limit.metric](measured)
    if converted is None:
        raise DataError(
            f"the budget names {limit.metric}, which cannot be measured here",
            where=f"--budget {limit.text}",
            allowed=f"models and data with {METRICS[limit.metric].needs or 'comparable outputs'}",
            hint="use sqnr, cosine or max_error instead",
        )
    value = converted
    if limit.ratio and limit.metric == "latency":
        assert measured.latency is not None
        value = measured.latency.models[1].ratio
    elif limit.ratio:
        value = converted / original if original else (math.inf if converted else 1.0)
    return Check(limit.metric, limit.text, original, converted, value, limit.holds(value), detail)


# --- figures: (of the original or None, of the converted model or None if unmeasurable, words) ----


def _of_size(field: str) -> Callable[[_Measured], _Found]:
    def read(measured: _Measured) -> _Found:
        return getattr(measured.sizes[0], field), getattr(measured.sizes[1], field), ""

    return read


def _latency(measured: _Measured) -> _Found:
    if measured.latency is None:
        return None, None, ""
    first, second = measured.latency.models
    return first.median, second.median, ""


def _accuracy(measured: _Measured) -> _Found:
    scores = next((s for s in measured.scores if s.accuracy_original is not None), None)
    if scores is None:
        return None, None, ""
    return scores.accuracy_original, scores.accuracy_converted, ""


def _of_scores(field: str, worst: Callable[..., float]) -> Callable[[_Measured], _Found]:
    def read(measured: _Measured) -> _Found:
        figures = [float(getattr(s, field)) for s in measured.scores]
        return None, worst(figures) if figures else None, ""

    return read


def _of_outputs(field: str, worst: Callable[..., Any]) -> Callable[[_Measured], _Found]:
    def read(measured: _Measured) -> _Found:
        outputs = [o for o in measured.outputs if not o.random and not o.broken]
        if not outputs:
            # with every output random nothing is known; with every one broken another check fails
            return None, None if not any(o.broken for o in measured.outputs) else math.nan, ""
        found = worst(outputs, key=lambda o: getattr(o, field))
        return None, float(getattr(found, field)), f"output {found.name!r}"

    return read


def _macs(measured: _Measured) -> _Found:
    found = measured.macs
    return (None, None, "") if found is None else (found.original, found.converted, "")


_FIGURES: dict[str, Callable[[_Measured], _Found]] = {
    "size": _of_size("nbytes"),
    "nodes": _of_size("nodes"),
    "params": _of_size("parameters"),
    "latency": _latency,
    "macs": _macs,
    "accuracy": _accuracy,
    "agreement": _of_scores("agreement", min),
    "flips": _of_scores("flips", max),
    "sqnr": _of_outputs("sqnr_db", min),
    "cosine": _of_outputs("cosine", min),
    "max_error": _of_outputs("max_abs", max),
    "max_rel_error": _of_outputs("max_rel", max),
}
