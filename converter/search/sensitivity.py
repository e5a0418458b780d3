"""Which layer hurts: what compressing each layer costs, alone and as one of all.

The passes run once. Layers are the pieces between values that both models share and that the
compressed one computes differently, so any pass can be examined: integers, pruning, 16-bit floats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.core.observe import Progress, Silent
from converter.execution import sandbox
from converter.measure.damage import Damage
from converter.search.probe import Work, measure, rounds_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Dataset, RunSettings


@dataclass(frozen=True)
class LayerDamage:
    """What compressing one layer costs.

    Attributes:
        name: Name of the node (for ``exclude=``), or of its first output.
        op_type: Its operator.
        parameters: Elements of its constants.
        alone: Damage when only this layer is compressed; None: not measured.
        all_but: Damage when all layers but this one are compressed; None: not measured.
        saved: Loss that leaving this layer alone takes away from the loss of all.
    """

    name: str
    op_type: str
    parameters: int
    alone: Damage | None
    all_but: Damage | None
    saved: float | None


@dataclass(frozen=True)
class Sensitivity:
    """All layers that the passes changed, the most harmful first.

    Attributes:
        passes: Text of the passes that were examined.
        layers: Sorted by the loss of each alone.
        whole: Damage of the fully compressed model.
        accuracy: Share of rows that the original gets right; None without labels.
        samples: Runs per model at most.
        data: Where the samples come from.
        synthetic: They were made up.
        complete: False when the time was up before all layers were measured.
        seconds: Wall time of the measurement.
        notes: Sentences that the reader must not miss.
    """

    passes: str
    layers: tuple[LayerDamage, ...]
    whole: Damage
    accuracy: float | None
    samples: int
    data: str
    synthetic: bool
    complete: bool
    seconds: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return asdict(self)


def examine(
    original: ir.Model,
    compressed: ir.Model,
    dataset: Dataset,
    *,
    settings: RunSettings,
    work: Callable[[Path, Path], Work] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every layer that differs between two models; see :func:`probe.measure`.

    Args:
        original: Model before.
        compressed: Model after, with the same inputs, outputs and operator set.
        dataset: Read once.
        settings: Limits, threads; its workspace takes both models and what is alive between blocks.
        work: Makes the order for the child from the two files; None: the usual one.
        progress: Told of every layer measured.

    Raises:
        ModelError: A model cannot be run.
    """
    import tempfile

    import onnxruntime  # noqa: F401 - imported here, the child has it

    from converter.io import formats
    from converter.io.layout import Layout

    progress = progress or Silent()
    with tempfile.TemporaryDirectory(
        prefix="layers-", dir=settings.workspace, ignore_cleanup_errors=True
    ) as folder:
        paths = Path(folder) / "first.onnx", Path(folder) / "second.onnx"
        for model, path in zip((original, compressed), paths, strict=True):
            formats.save(model, path, layout=Layout(external_data="yes"))
        order = (work or (lambda a, b: Work(a, b, settings)))(*paths)
        progress.start("measuring layers", None)
        try:
            found: dict[str, Any] = sandbox.call(
                measure,
                order,
                dataset,
                limits=settings.limits,
                on_progress=progress.advance,
                task="measuring the damage of each layer",
            )
        finally:
            progress.stop()
    return found


def rank(found: dict[str, Any], **facts: Any) -> Sensitivity:
    """Bring what the child measured into order.

    Args:
        found: Result of :func:`examine`.
        **facts: ``passes``, ``data``, ``synthetic``, ``seconds``, ``notes``.
    """
    whole = Damage(**found["whole"])
    layers = [_layer(row) for row in found["layers"]]
    # What was not measured goes last; equal losses keep the order of the graph.
    layers.sort(key=lambda layer: -layer.alone.loss if layer.alone else 1.0)
    return Sensitivity(
        layers=tuple(layers),
        whole=whole,
        accuracy=found["accuracy"],
        samples=found["samples"],
        complete=found["complete"],
        **facts,
    )


def _layer(row: dict[str, Any]) -> LayerDamage:
    alone, but = (Damage(**row[key]) if row[key] else None for key in ("alone", "but"))
    return LayerDamage(row["name"], row["op_type"], row["parameters"], alone, but, row["saved"])


__all__ = ["LayerDamage", "Sensitivity", "Work", "examine", "rank", "rounds_of"]
