"""The report of a conversion: what was done, what was left alone and why, gained and lost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from converter.core.contract import Skip
    from converter.core.graph import Footprint
    from converter.core.run import Step
    from converter.report.proof import Proof
    from converter.verification.verdict import Verdict

SCHEMA = 1
_EXAMPLES = 3
Status = Literal["done", "not verified", "budget missed", "failed"]


@dataclass(frozen=True)
class FileFacts:
    """One model file in figures.

    Attributes:
        name: File name without its folder; empty for a model that only lives in memory.
        nbytes: Size on disk with external data.
        digest: SHA-256 over its files as hex; empty when not computed.
        footprint: Nodes, parameters (packed ones as what they decode to), tensor bytes.
        opsets: Operator-set versions by domain (``ai.onnx`` for the default one).
        ir_version: Version of the file format.
        files: Names of external data files.
        content: Bytes of the model in a file that is compressed for transport; else None.
        zeros: Share of zeros among the weights; None when it was not counted.
    """

    name: str
    nbytes: int
    digest: str
    footprint: Footprint
    opsets: Mapping[str, int]
    ir_version: int
    files: tuple[str, ...] = ()
    content: int | None = None
    zeros: float | None = None

    @classmethod
    def of(cls, model: ir.Model, files: Sequence[Path], digest: str = "") -> FileFacts:
        """Count a model that lies in ``files``, the model file first."""
        # onnx_ir is heavy; listing passes needs none
        from converter.core.graph import footprint
        from converter.io.compressed import content_bytes
        from converter.io.meta import CONTENT
        from converter.report.storage import packed, parameters
        from converter.report.zeros import zero_share

        figures = footprint(model)
        count = parameters(model, packed(model, read=False), figures.parameters)
        content = model.meta.get(CONTENT) or (content_bytes(files[0]) if files else None)
        return cls(
            name=files[0].name if files else "",
            nbytes=sum(file.stat().st_size for file in files),
            digest=digest,
            footprint=replace(figures, parameters=count),
            opsets={domain or "ai.onnx": v for domain, v in sorted(model.opset_imports.items())},
            ir_version=model.ir_version,
            files=tuple(file.name for file in files[1:]),
            content=content,
            zeros=zero_share(model, figures),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return {
            "file": self.name,
            "bytes": self.nbytes,
            "uncompressed_bytes": self.nbytes if self.content is None else self.content,
            "sha256": self.digest,
            **_footprint(self.footprint),
            "zeros": self.zeros,
            "opsets": dict(self.opsets),
            "ir_version": self.ir_version,
            "external_files": list(self.files),
        }


@dataclass(frozen=True)
class Usage:
    """The samples of a conversion.

    Attributes:
        description: Where they come from.
        synthetic: They were made up from the model's own shapes.
        uses: Number of samples by purpose, e.g. ``{"calibration": 32, "verification": 32}``.
    """

    description: str
    synthetic: bool
    uses: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return {
            "description": self.description,
            "synthetic": self.synthetic,
            "samples": dict(self.uses),
        }


@dataclass(frozen=True)
class Report:
    """Everything about one conversion.

    Attributes:
        status: How it ended.
        source: The model as it was read.
        target: The model as it was written (or would have been); None when a pass failed.
        passes: Canonical text of the pipeline.
        recipe: The resolved recipe as data.
        seed: Root of all random streams.
        steps: One per pass.
        data: Samples and their use; None when none were used.
        verdict: The comparison with the original; None without verification.
        notes: Sentences that the reader must not miss.
        explained: Answers to ``--explain``; see :mod:`converter.report.explain`.
        proof: How a quantized model runs; None when nothing in it is quantized.
        versions: Versions of this tool and of what the result depends on.
        seconds: Wall time of the whole conversion.
        error: What stopped the conversion, else empty.
    """

    status: Status
    source: FileFacts
    target: FileFacts | None = None
    passes: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    steps: tuple[Step, ...] = ()
    data: Usage | None = None
    verdict: Verdict | None = None
    notes: tuple[str, ...] = ()
    explained: tuple[Mapping[str, str], ...] = ()
    proof: Proof | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data; numbers that JSON cannot hold become None."""
        made = {
            "schema": SCHEMA,
            "status": self.status,
            "error": self.error,
            "source": self.source.to_dict(),
            "target": None if self.target is None else self.target.to_dict(),
            "passes": self.passes,
            "recipe": dict(self.recipe),
            "seed": self.seed,
            "steps": [step_dict(step) for step in self.steps],
            "data": None if self.data is None else self.data.to_dict(),
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
            "notes": list(self.notes),
            "explained": list(self.explained),
            "integers": None if self.proof is None else self.proof.to_dict(),
            "versions": dict(self.versions),
            "seconds": self.seconds,
        }
        plain: dict[str, Any] = jsonable(made)
        return plain


def step_dict(step: Step) -> dict[str, Any]:
    """Return one step as JSON-able data."""
    outcome = step.outcome
    return {
        "pass": step.spec,
        "seconds": step.seconds,
        "modified": bool(outcome and outcome.modified),
        "counts": dict(outcome.counts) if outcome else {},
        "rule_seconds": dict(outcome.seconds) if outcome else {},
        "skipped": group_skips(outcome.skipped) if outcome else [],
        "notes": list(outcome.notes) if outcome else [],
        "before": _footprint(step.before),
        "after": _footprint(step.after),
        "error": step.error,
        "checked": step.checked,
        "max_difference": step.max_difference,
        "interface_changes": list(step.interface_changes),
    }


def group_skips(skips: Iterable[Skip]) -> list[dict[str, Any]]:
    """Group what was left alone by reason, most frequent first, with a few examples each."""
    subjects: dict[str, list[str]] = {}
    for skip in (skip for skip in skips if not skip.minor):
        subjects.setdefault(skip.reason, []).append(skip.subject)
    rows = [
        {"reason": reason, "count": len(found), "examples": found[:_EXAMPLES]}
        for reason, found in subjects.items()
    ]
    return sorted(rows, key=lambda row: (-len(subjects[str(row["reason"])]), str(row["reason"])))


def jsonable(value: Any) -> Any:
    """Make data that strict JSON can hold: NaN and infinities become None, keys text."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(v) for v in value]
    if isinstance(value, bool | str | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # a number of numpy
        return jsonable(value.item())
    return str(value)


def _footprint(size: Footprint) -> dict[str, int]:
    return {
        "nodes": size.nodes,
        "parameters": size.parameters,
        "tensor_bytes": size.tensor_bytes,
    }
