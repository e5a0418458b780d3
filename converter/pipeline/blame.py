"""Which pass cost most, when a budget was missed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from converter.errors import ConverterError
from converter.execution.runner import materialize
from converter.verification.budget import Budget
from converter.verification.verify import verify

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Dataset, RunSettings
    from converter.core.contract import Pass
    from converter.core.run import Run
    from converter.verification.verdict import Check, Verdict

_QUALITY: Mapping[str, Callable[[float, float], float]] = {
    "accuracy": lambda bound, found: max(0.0, 1.0 - bound) / max(1e-9, 1.0 - found),
    "agreement": lambda bound, found: max(0.0, 1.0 - bound) / max(1e-9, 1.0 - found),
    "flips": lambda bound, found: bound / max(1e-9, found),
    "sqnr": lambda bound, found: 10 ** ((found - bound) / 10),
    "cosine": lambda bound, found: (1.0 - bound) / max(1e-9, 1.0 - found),
    "max_error": lambda bound, found: (bound / max(1e-9, found)) ** 2,
    "max_rel_error": lambda bound, found: (bound / max(1e-9, found)) ** 2,
}
"""By which factor the power of the errors must fall from what was found to keep the bound."""
_USUAL_DIVERGENCE = 0.01  # nats; about one row of a hundred then gets another class
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


def advice(passes: Sequence[Pass], verdict: Verdict, kept: Sequence[Path]) -> str:
    """Return what to do about a missed budget, with the words to use where a pass has them."""
    written = f"the file was kept as {kept[0]}" if kept else "nothing was written"
    quality = any(not check.passed and check.metric in _QUALITY for check in verdict.checks)
    able = next((p for p in passes if getattr(p, "max_loss", 0.0) is None), None)
    if quality and able is not None:
        loss = _suggested(verdict)
        return (
            f"{written}; {able.name}:max_loss={loss:.2g} leaves as few layers in float as keep the "
            "loss within that (smaller: more layers), and convert sensitivity ranks them"
        )
    if kept:
        return written
    return (
        f"{written}; relax the budget, or leave out or soften the pass; --keep writes the file "
        "all the same"
    )


def _suggested(verdict: Verdict) -> float:
    """Return a loss to ask for: such that the errors fall to what was allowed.

    Of class scores the loss is a divergence, which a verdict does not hold: a usual one is given.
    """
    if verdict.scores:
        return _USUAL_DIVERGENCE
    worst = 1.0
    for check in verdict.checks:
        if check.passed or check.measured is None or check.metric not in _QUALITY:
            continue
        bound = Budget.parse(check.limit).limits[0].value
        worst = min(worst, _QUALITY[check.metric](bound, check.measured))
    known = [1.0 - o.cosine for o in verdict.outputs if not o.random and math.isfinite(o.cosine)]
    return max(1e-6, worst * max(known, default=1.0))


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
