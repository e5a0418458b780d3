"""What verification found: measured figures, and the checks that decide."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from converter.measure.accuracy import Scores
from converter.measure.difference import OutputDifference
from converter.measure.latency import LatencyComparison
from converter.measure.macs import Macs
from converter.measure.size import Size


@dataclass(frozen=True)
class Check:
    """One thing that had to hold.

    Attributes:
        metric: Name of the metric, or ``outputs`` for broken outputs.
        limit: What was asked for, e.g. ``size<=0.3x``.
        original: The original's figure, where there is one.
        converted: The converted model's figure.
        measured: The figure that was held against the limit: ``converted`` or its ratio.
        passed: It holds.
        detail: More words, e.g. the worst output.
    """

    metric: str
    limit: str
    original: float | None
    converted: float | None
    measured: float | None
    passed: bool
    detail: str = ""

    def __str__(self) -> str:
        if self.measured is None:
            return f"{self.metric}: {self.detail}"
        ratio = self.limit.endswith("x")
        shown = f"{self.measured:.4g}x" if ratio else _amount(self.metric, self.measured)
        words = f"{self.limit} measured {shown}"
        if ratio and self.original is not None and self.converted is not None:
            before, after = (_amount(self.metric, v) for v in (self.original, self.converted))
            words += f" ({before} -> {after})"
        return words + (f" ({self.detail})" if self.detail else "")


def _amount(metric: str, value: float) -> str:
    if metric == "latency":
        return f"{value * 1e3:.4g} ms"
    if metric == "macs":
        return f"{value / 1e6:,.4g} M"
    if metric == "size":
        return f"{value / 1e3:,.1f} kB"
    return f"{value:.6g}" if abs(value) < 1e6 else f"{value:,.0f}"


@dataclass(frozen=True)
class Verdict:
    """The comparison of a converted model with its original.

    Attributes:
        passed: Every check holds.
        checks: The budget's terms, and what is wrong with outputs.
        outputs: Distance per output.
        scores: Agreement and accuracy of each output that looks like class scores.
        size_original, size_converted: Bytes, nodes, parameters.
        latency: Both models side by side; None when not measured.
        macs: Multiply-accumulates of one sample; None when not counted.
        samples: Number of samples that were run.
        runs: Number of runs that they took.
        synthetic: The samples were made up.
        data: Where they come from.
        notes: Sentences that the reader must not miss.
    """

    passed: bool
    checks: tuple[Check, ...]
    outputs: tuple[OutputDifference, ...]
    scores: tuple[Scores, ...]
    size_original: Size
    size_converted: Size
    latency: LatencyComparison | None
    samples: int
    runs: int
    synthetic: bool
    data: str
    notes: tuple[str, ...] = field(default=())
    macs: Macs | None = None

    @property
    def worst(self) -> OutputDifference | None:
        """The output with the lowest SQNR; None when no output was compared by value."""
        compared = [o for o in self.outputs if not o.random]
        return min(compared, key=lambda o: o.sqnr_db, default=None)

    @property
    def accuracy(self) -> Scores | None:
        """The first output that could be held against labels."""
        return next((s for s in self.scores if s.accuracy_original is not None), None)

    @property
    def agreement(self) -> float | None:
        """Lowest agreement of the outputs that look like class scores, 0 to 1."""
        return min((s.agreement for s in self.scores), default=None)

    @property
    def max_abs(self) -> float:
        """Largest absolute difference of any output compared by value."""
        return max((o.max_abs for o in self.outputs if not o.random), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return data for strict JSON; infinities and NaN become None."""
        worst = self.worst
        accuracy = self.accuracy
        size = (self.size_original, self.size_converted)
        made = {
            "passed": self.passed,
            "checks": [asdict(check) for check in self.checks],
            "outputs": [{**asdict(o), "equal": o.equal} for o in self.outputs],
            "worst_output": worst.name if worst else None,
            "equal": all(o.equal for o in self.outputs if not o.random),
            "sqnr_db": worst.sqnr_db if worst else None,
            "cosine": min((o.cosine for o in self.outputs if not o.random), default=None),
            "max_error": self.max_abs,
            "max_rel_error": max((o.max_rel for o in self.outputs if not o.random), default=0.0),
            "scores": [asdict(s) for s in self.scores],
            "agreement": self.agreement,
            "flips": None if self.agreement is None else max(s.flips for s in self.scores),
            "accuracy": None
            if accuracy is None
            else {
                "original": accuracy.accuracy_original,
                "converted": accuracy.accuracy_converted,
                "output": accuracy.output,
            },
            "size": _pair("nbytes", *size),
            "nodes": _pair("nodes", *size),
            "params": _pair("parameters", *size),
            "macs": None if self.macs is None else {**asdict(self.macs), "ratio": self.macs.ratio},
            "latency": None if self.latency is None else self.latency.to_dict(),
            "samples": self.samples,
            "runs": self.runs,
            "synthetic": self.synthetic,
            "data": self.data,
            "notes": list(self.notes),
        }
        plain: dict[str, Any] = _jsonable(made)
        return plain


def _pair(key: str, original: Size, converted: Size) -> dict[str, Any]:
    before, after = getattr(original, key), getattr(converted, key)
    return {
        "original": before,
        "converted": after,
        "ratio": after / before if before else None,
    }


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
