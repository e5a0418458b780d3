"""What ``debug`` reports: the values of two models, the worst first."""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.core.observe import Progress, Silent
from converter.execution import sandbox
from converter.search.debug import Comparison, compare_values

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Dataset, RunSettings

ROUNDING_DB = 90.0
"""Signal to noise above which two values differ by float rounding only."""


@dataclass(frozen=True)
class Gap:
    """One value in both models.

    Attributes:
        value: Its name.
        node, op_type: The node of the first model that makes it.
        layer: Name of the layer that ends here, if the second model computes it differently.
        sqnr_db: Signal to noise with all errors before it; infinite when equal.
        local_sqnr_db: Signal to noise when the second model's layer gets the first model's inputs;
            None where both compute the same.
        cosine, max_abs: Of the accumulated difference.
        saturated: Share of the first model's elements beyond the second one's grid, 0 to 1; None
            without a grid.
        dead: Channels that are zero on all samples in both models.
        died: Channels that are zero on all samples in the second model only.
        channels: Of so many.
        elements: Elements compared.
        equal: Every element is equal.
        kind: ``float`` or ``exact``, as of :class:`~converter.measure.difference.DifferenceMeter`.
        broken: What is wrong as such: NaN where there was none, another shape.
    """

    value: str
    node: str
    op_type: str
    layer: str
    sqnr_db: float
    local_sqnr_db: float | None
    cosine: float
    max_abs: float
    saturated: float | None
    dead: int
    died: int
    channels: int
    elements: int
    equal: bool
    kind: str
    broken: str

    @property
    def deviates(self) -> bool:
        """True when more than float rounding lies between the values."""
        return bool(self.broken) or (not self.equal and self.sqnr_db < ROUNDING_DB)


@dataclass(frozen=True)
class Debugging:
    """Two models compared value by value.

    Attributes:
        values: The worst accumulated difference first.
        first: First value, in the order of the first model, that deviates; None if none does.
        worst_layer: Value of the layer that adds most by itself; None without layers.
        only_first, only_second: Values without a partner in the other model.
        samples: Runs per model.
        data: Where the samples come from.
        synthetic: They were made up.
        notes: Sentences that the reader must not miss.
    """

    values: tuple[Gap, ...]
    first: str | None
    worst_layer: str | None
    only_first: int
    only_second: int
    samples: int
    data: str
    synthetic: bool
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return asdict(self)


def find_gaps(
    first: ir.Model,
    second: ir.Model,
    dataset: Dataset,
    *,
    settings: RunSettings,
    progress: Progress | None = None,
) -> Debugging:
    """Compare two models value by value over the samples.

    Raises:
        VerificationError: The models have other inputs, or share no value.
        DataError: There are no samples.
        ModelError: A model cannot be run.
    """
    import onnxruntime  # noqa: F401 - imported here, the child has it

    from converter.io import formats
    from converter.io.layout import Layout

    progress = progress or Silent()
    with tempfile.TemporaryDirectory(
        prefix="debug-", dir=settings.workspace, ignore_cleanup_errors=True
    ) as folder:
        paths = Path(folder) / "first.onnx", Path(folder) / "second.onnx"
        for model, path in zip((first, second), paths, strict=True):
            formats.save(model, path, layout=Layout(external_data="yes"))
        progress.start("comparing values", len(dataset))
        try:
            found = sandbox.call(
                compare_values,
                Comparison(*paths, settings),
                dataset,
                limits=settings.limits,
                on_progress=progress.advance,
                task="comparing the values of both models",
            )
        finally:
            progress.stop()
    return _ordered(found, dataset)


def _ordered(found: dict[str, Any], dataset: Dataset) -> Debugging:
    gaps = [Gap(**row) for row in found["values"]]
    local = [gap for gap in gaps if gap.local_sqnr_db is not None]
    worst = min(local, key=lambda gap: gap.local_sqnr_db or 0.0, default=None)
    notes = []
    if dataset.synthetic:
        notes.append("the inputs were made up: give real samples with --data")
    return Debugging(
        values=tuple(sorted(gaps, key=_badness)),
        first=next((gap.value for gap in gaps if gap.deviates), None),
        worst_layer=None if worst is None else worst.value,
        only_first=found["only_first"],
        only_second=found["only_second"],
        samples=found["samples"],
        data=dataset.description,
        synthetic=dataset.synthetic,
        notes=tuple(notes),
    )


def _badness(gap: Gap) -> tuple[float, float]:
    """Sort broken values first, then by noise; whole numbers that differ count as their noise."""
    if gap.broken:
        return -math.inf, 0.0
    if gap.equal:
        return math.inf, 0.0
    return gap.sqnr_db, -gap.max_abs
