"""Which pass cost most, when a budget was missed."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from converter.errors import ConverterError
from converter.execution.runner import materialize
from converter.verification.budget import Budget
from converter.verification.verify import verify

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Dataset, RunSettings
    from converter.core.run import Run
    from converter.verification.verdict import Check, Verdict

_PERFECT = {
    "sqnr": 300.0,  # decibels: no noise to speak of
    "cosine": 1.0,
    "agreement": 1.0,
    "flips": 0.0,
    "max_error": 0.0,
    "max_rel_error": 0.0,
}


def blame(
    original: ir.Model, run: Run, verdict: Verdict, samples: Dataset, settings: RunSettings
) -> str:
    """Measure the first missed term of the budget after every pass and name the worst pass.

    Returns:
        A sentence, or "" when no pass changed the model or the term cannot be measured again.
    """
    missed = next((c for c in verdict.checks if not c.passed and c.measured is not None), None)
    changed = [
        (step.spec, model)
        for step, model in zip(run.steps, run.models, strict=True)
        if step.outcome is not None and step.outcome.modified
    ]
    if missed is None or not changed:
        return ""
    try:
        figures = [_start(missed)]
        figures += [_measure(missed, original, m, samples, settings) for _, m in changed[:-1]]
    except ConverterError:
        return ""  # a model in between that cannot be measured must not hide the verdict
    assert missed.measured is not None
    figures.append(missed.measured)
    costs = [_cost(missed, a, b) for a, b in itertools.pairwise(figures)]
    worst = max(range(len(costs)), key=costs.__getitem__)
    if costs[worst] <= 0:
        return f"no single pass is to blame: none made {missed.metric} worse"
    before, after = figures[worst], figures[worst + 1]
    return (
        f"pass {changed[worst][0]} cost most: {missed.metric} went from "
        f"{_words(missed, before)} to {_words(missed, after)}"
    )


def _start(check: Check) -> float:
    """Return the figure of the original held against itself."""
    if check.metric in _PERFECT:
        return _PERFECT[check.metric]
    if check.limit.endswith(("x", "%")) or check.original is None:
        return 1.0
    return check.original


def _measure(
    check: Check,
    original: ir.Model,
    model: ir.Model,
    samples: Dataset,
    settings: RunSettings,
) -> float:
    assert settings.workspace is not None
    found = verify(
        materialize(original, settings.workspace),
        materialize(model, settings.workspace),
        samples,
        budget=Budget.parse(check.limit),
        settings=settings,
        latency=False,
    ).checks[0]
    assert found.measured is not None
    return found.measured


def _cost(check: Check, before: float, after: float) -> float:
    """How much worse the figure became; positive is worse."""
    if check.metric == "sqnr":
        # Noise adds up as power, not as decibels: 60 to 25 dB adds less of it than 25 to 12.
        return float(10 ** (-after / 10) - 10 ** (-before / 10))
    return before - after if ">=" in check.limit else after - before


def _words(check: Check, value: float) -> str:
    if check.metric == "sqnr":
        return "no error" if value >= 200 else f"{value:.1f} dB"
    return f"{value:.4g}" + ("x" if check.limit.endswith("x") else "")
