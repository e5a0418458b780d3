"""What the report proves of a quantized model: what runs on integers, and what saturates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.core.contract import Skip
from converter.core.graph import walk
from converter.errors import ConverterError
from converter.measure.integers import Integers, count_integers, quantized
from converter.report.words import plural
from converter.search.saturation import find_saturation
from converter.verification.verify import SLOWER

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Dataset, RunSettings
    from converter.core.run import Step
    from converter.verification.verdict import Verdict

MUCH = 0.01
"""Share of a value's elements beyond its grid from which on the report warns."""
_MOST_SATURATED = 20


@dataclass(frozen=True)
class Proof:
    """How a quantized model runs.

    Attributes:
        integers: What runs on integers.
        saturated: Share of elements beyond their grid by value, the largest first.
        notes: Warnings, with what to do.
    """

    integers: Integers
    saturated: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data; the largest shares only."""
        shares = list(self.saturated.items())[:_MOST_SATURATED]
        return {
            **self.integers.to_dict(),
            "saturated": [{"value": name, "share": share} for name, share in shares],
            "saturated_values": len(self.saturated),
        }


@dataclass(frozen=True)
class Case:
    """What is looked at.

    Attributes:
        original, model: Before and after.
        path: A file with the model after.
        steps: Of the pipeline; they say what was left alone.
        samples: For saturation; None: not measured.
        verdict: For the latency; None without verification.
    """

    original: ir.Model
    model: ir.Model
    path: Path
    steps: Sequence[Step]
    samples: Dataset | None
    verdict: Verdict | None


def prove(case: Case, settings: RunSettings) -> Proof | None:
    """Look at a converted model; None if nothing in it is quantized.

    A proof that cannot be made is left out with a note: it must not stop a conversion.
    """
    if not quantized(case.model):
        return None
    reasons = {skip.subject: skip.reason for skip in _skips(case.steps)}
    try:
        integers = count_integers(case.model, case.path, settings=settings, reasons=reasons)
    except ConverterError as error:
        return Proof(Integers("", 0, 0, {}, 0), notes=(f"not counted: {error.what}",))
    notes = list(_count_notes(integers))
    saturated: dict[str, float] = {}
    if case.samples is not None and _static(case.model):
        try:
            saturated = find_saturation(case.original, case.model, case.samples, settings=settings)
        except ConverterError as error:
            notes.append(f"saturation was not measured: {error.what}")
    notes += _saturation_notes(saturated)
    notes += _latency_notes(case.verdict)
    return Proof(integers, saturated, tuple(notes))


def _static(model: ir.Model) -> bool:
    """Tell whether a model rounds to grids that were fixed beforehand."""
    return any(node.op_type == "QuantizeLinear" for node in walk(model))


def _skips(steps: Sequence[Step]) -> list[Skip]:
    return [skip for step in steps if step.outcome for skip in step.outcome.skipped]


def _count_notes(integers: Integers) -> list[str]:
    missing = integers.float_layers - len(integers.left)
    if missing <= 0 or not integers.runtime:
        return []
    layers, them = ("layer runs", "it") if missing == 1 else ("layers run", "them")
    return [
        f"{missing} quantized {layers} in float: {integers.runtime} did not fuse {them}; "
        f"the file is smaller, and no faster for {them}"
    ]


def _saturation_notes(saturated: dict[str, float]) -> list[str]:
    much = [name for name, share in saturated.items() if share > MUCH]
    if not much:
        return []
    return [
        f"more than {MUCH:.0%} of the elements of {plural(len(much), 'value')} lie beyond the grid "
        f"(worst: {much[0]}, {saturated[much[0]]:.1%}): give more, or more typical, calibration "
        "samples, or choose method=minmax"
    ]


def _latency_notes(verdict: Verdict | None) -> list[str]:
    if verdict is None or verdict.latency is None:
        return []
    ratio = verdict.latency.models[1].ratio
    if ratio <= SLOWER:
        return []
    return [
        "integers do not pay on this machine: quantize_weights keeps float speed at a small size, "
        "exclude=... leaves the layers that lose in float, and a processor with VNNI instructions "
        "(or another target) may differ"
    ]
