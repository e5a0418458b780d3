"""What the commands ``sensitivity`` and ``debug`` do: prepare models and samples, examine, rank."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from converter.core import graph as g
from converter.core.context import Context, RunSettings
from converter.core.contract import Pass
from converter.core.observe import Progress, Silent
from converter.errors import MissingDataError, PreconditionError, UsageError
from converter.order import Samples
from converter.pipeline.deadline import limits_for
from converter.pipeline.pipeline import Pipeline
from converter.pipeline.services import LocalServices
from converter.search.probe import Work
from converter.search.sensitivity import Sensitivity, examine, rank

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Dataset

USUAL_PASSES = "simplify,quantize:method=minmax"
USUAL_SAMPLES = 32
TOP = 10


@dataclass(frozen=True)
class Task:
    """How models are examined.

    Attributes:
        data: The samples.
        top: Layers or values that are looked at closely.
        time_limit: Seconds after which no measurement starts; None: none.
        seed: Root of every random stream.
        threads: Threads of onnxruntime.
        custom_op_library: Shared library with custom operators.
    """

    data: Samples
    top: int = TOP
    time_limit: float | None = None
    seed: int = 0
    threads: int = 1
    custom_op_library: Path | None = None

    def settings(self, folder: str, models: Sequence[ir.Model]) -> RunSettings:
        """Return how models are run."""
        return RunSettings(
            limits=limits_for(models),
            threads=self.threads,
            workspace=Path(folder),
            custom_op_library=self.custom_op_library,
        )

    def open(self, model: ir.Model) -> Dataset:
        """Open the samples for a model.

        Raises:
            MissingDataError: None were given.
            DataError: They do not fit the model.
        """
        dataset = self.data.open(model, self.seed)
        if dataset is None:
            raise MissingDataError(
                "samples are needed to measure the outputs, and none were given",
                allowed="an npz file with arrays named after the model's inputs, or a folder",
                hint="add --data FILE.npz (Python: data=...); 16 to 64 unlabelled samples do, and "
                "--data synthetic makes some up",
            )
        return dataset


def find_sensitivity(
    source: ir.Model, passes: Sequence[Pass], task: Task, progress: Progress | None = None
) -> Sensitivity:
    """Compress a model and measure what each layer's share in it costs.

    The last pass is examined; those before it prepare the model that it is held against.

    Raises:
        UsageError: No pass was given.
        MissingDataError: No samples were given.
        ConverterError: A pass fails, or a model cannot be run.
    """
    if not passes:
        raise UsageError(
            "no pass was given to examine", hint=f"for example --passes {USUAL_PASSES}"
        )
    dataset = task.open(source)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:
        settings = task.settings(folder, [source])
        context = Context(
            dataset=dataset,
            services=LocalServices(settings, progress or Silent()),
            settings=settings,
            seed=task.seed,
            progress=progress or Silent(),
        )
        base = Pipeline(passes[:-1]).run(source, context).model
        run = Pipeline(passes[-1:]).run(base, context)
        base = at_opset(base, g.opset(run.model), context)
        # what is alive is kept per sample, and loading both models takes its time twice
        settings = replace(settings, limits=replace(settings.limits, seconds=3600.0))

        def work(first: Path, second: Path) -> Work:
            limit = task.time_limit
            return Work(
                first,
                second,
                settings,
                samples=_most(task),
                refine=task.top,
                deadline=None if limit is None else started + limit,
            )

        found = examine(base, run.model, dataset, settings=settings, work=work, progress=progress)
    return rank(
        found,
        passes=str(Pipeline(passes)),
        data=dataset.description,
        synthetic=dataset.synthetic,
        seconds=time.monotonic() - started,
        notes=_notes(run.steps[-1].outcome, found, dataset),
    )


def _most(task: Task) -> int:
    samples = task.data.samples
    return USUAL_SAMPLES if samples is None else max(1, samples // max(1, task.data.batch))


def _notes(outcome: object, found: dict[str, object], dataset: Dataset) -> tuple[str, ...]:
    notes = list(getattr(outcome, "notes", ()))
    if not found["layers"]:
        notes.append("the pass changed nothing that is computed: there is no layer to rank")
    if not found["complete"]:
        notes.append("the time was up before all layers were measured; raise --time-limit")
    if dataset.synthetic:
        notes.append("the inputs were made up: the order of the layers may differ on real ones")
    return tuple(notes)


def at_opset(model: ir.Model, wanted: int, context: Context) -> ir.Model:
    """Return a model at another version of the operator set.

    Raises:
        PreconditionError: It cannot be converted.
    """
    from converter.core import registry

    if g.opset(model) == wanted:
        return model
    made = model.clone()
    registry.get("convert_opset")(to=wanted).apply(made, context)  # type: ignore[call-arg]
    if g.opset(made) != wanted:
        raise PreconditionError(
            f"the models have different operator sets: {g.opset(model)} and {wanted}",
            hint=f"convert the first one before: --passes convert_opset:to={wanted}",
        )
    return made


__all__ = ["Task", "at_opset", "find_sensitivity"]
