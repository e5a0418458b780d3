"""The public functions sensitivity and debug: prepare models and samples, examine, rank."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.core import graph as g
from converter.core.context import Context, RunSettings
from converter.core.contract import Pass, Skip
from converter.core.observe import Progress, Silent
from converter.core.select import Selection
from converter.coupling.couple import Units, couple
from converter.coupling.describe import Description, describe
from converter.coupling.shapes import observe_shapes
from converter.errors import MissingDataError, PreconditionError, UsageError
from converter.order import Samples
from converter.pipeline.deadline import limits_for
from converter.pipeline.pipeline import Pipeline
from converter.pipeline.services import LocalServices
from converter.search.gaps import Debugging, find_gaps
from converter.search.probe import Work
from converter.search.sensitivity import Sensitivity, examine, rank
from converter.source import as_model

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Dataset

__all__ = ["Debugging", "Description", "Sensitivity", "coupling", "debug", "sensitivity"]
PathLike = str | Path
USUAL_PASSES = "simplify,quantize:method=minmax"
USUAL_SAMPLES = 32
TOP = 10
_MOST_REASONS = 3


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


def find_differences(
    first: ir.Model, second: ir.Model, task: Task, progress: Progress | None = None
) -> Debugging:
    """Compare two models value by value; without samples on made-up inputs.

    Raises:
        VerificationError: The models have other inputs, or share no value.
        ConverterError: The samples do not fit, or a model cannot be run.
    """
    given = task.data if task.data.spec is not None else replace(task.data, spec="synthetic")
    dataset = given.open(first, task.seed)
    assert dataset is not None
    with tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:
        settings = task.settings(folder, [first, second])
        return find_gaps(first, second, dataset, settings=settings, progress=progress)


def _most(task: Task) -> int:
    samples = task.data.samples
    return USUAL_SAMPLES if samples is None else max(1, samples // max(1, task.data.batch))


def _notes(outcome: object, found: dict[str, object], dataset: Dataset) -> tuple[str, ...]:
    notes = list(getattr(outcome, "notes", ()))
    if not found["layers"]:
        notes.append("the pass changed nothing that is computed: there is no layer to rank")
        notes += _left_alone(getattr(outcome, "skipped", ()))
    if not found["complete"]:
        notes.append("the time was up before all layers were measured; raise --time-limit")
    if dataset.synthetic:
        notes.append("the inputs were made up: the order of the layers may differ on real ones")
    return tuple(notes)


def _left_alone(skipped: Sequence[Skip]) -> list[str]:
    """Say why a pass did nothing, by its most frequent reasons."""
    counted = Counter(skip.reason for skip in skipped).most_common(_MOST_REASONS)
    return ["left alone: " + "; ".join(f"{n} {why}" for why, n in counted)] if counted else []


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


def sensitivity(  # noqa: PLR0913 - the words of the command line, one argument each
    source: Any,
    *,
    passes: str | Iterable[Pass] | None = None,
    data: Any = None,
    samples: int | None = None,
    batch: int = 1,
    labels: str | None = None,
    image: str | None = None,
    top: int = 10,
    time_limit: float | None = None,
    seed: int = 0,
    threads: int = 1,
    allow_links: bool = False,
    custom_op_library: PathLike | None = None,
    example: Any = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Find out which layers hurt: what compressing each alone costs, and all but it.

    Args:
        source: As of :func:`convert`.
        passes: The last one is examined, those before it prepare the model; default
            ``simplify,quantize:method=minmax``.
        data: Samples, without labels or with; needed.
        samples: Measure on at most so many (default 32); calibration takes the same ones.
        batch: Samples per run.
        labels: Name of the array that holds the labels.
        image: Preprocessing of a folder of images.
        top: So many of the worst layers are measured on all samples, the others on a few.
        time_limit: Seconds after which no further layer is measured.
        seed: Root of every random stream.
        threads: Threads that onnxruntime may use.
        allow_links: Accept symbolic and hard links to external data.
        custom_op_library: Shared library with custom operators.
        example: Example inputs of a PyTorch module.
        progress: Receives the advance.

    Returns:
        Every layer that the pass changed, the most harmful first.

    Raises:
        ConverterError: A pass fails, samples are missing, or a model cannot be run.
    """
    from converter.core.spec import parse

    wanted = USUAL_PASSES if passes is None else passes
    chosen = parse(wanted) if isinstance(wanted, str) else tuple(wanted)
    given = Samples(data, samples=samples, batch=batch, labels=labels, image=image)
    task = Task(given, top, time_limit, seed, threads, _path(custom_op_library))
    model = _model(source, allow_links=allow_links, example=example)
    return find_sensitivity(model, chosen, task, progress)


def debug(  # noqa: PLR0913 - the words of the command line, one argument each
    first: PathLike | ir.Model,
    second: PathLike | ir.Model,
    *,
    data: Any = None,
    samples: int | None = None,
    batch: int = 1,
    image: str | None = None,
    seed: int = 0,
    threads: int = 1,
    allow_links: bool = False,
    custom_op_library: PathLike | None = None,
    progress: Progress | None = None,
) -> Debugging:
    """Compare two models value by value: where they part, and which layer adds most.

    Args:
        first: The original: a path or a model.
        second: What was made of it; values are matched by name.
        data: Samples; made up without them.
        samples: Use at most so many.
        batch: Samples per run.
        image: Preprocessing of a folder of images.
        seed: Of made-up inputs.
        threads: Threads that onnxruntime may use.
        allow_links: Accept symbolic and hard links to external data.
        custom_op_library: Shared library with custom operators.
        progress: Receives the advance.

    Raises:
        VerificationError: The models have different inputs, or share no value.
        ModelError: A model cannot be loaded or run.
        DataError: The samples do not fit.
    """
    given = Samples(data, samples=samples, batch=batch, image=image)
    task = Task(given, seed=seed, threads=threads, custom_op_library=_path(custom_op_library))
    a, b = (_model(model, allow_links=allow_links) for model in (first, second))
    return find_differences(a, b, task, progress)


def coupling(  # noqa: PLR0913 - the words of the command line, one argument each
    source: Any,
    *,
    explain: Sequence[str] = (),
    data: Any = None,
    units: Units = "all",
    seed: int = 0,
    allow_links: bool = False,
    custom_op_library: PathLike | None = None,
    example: Any = None,
) -> Description:
    """Find out which channels, heads and hidden units can be removed, and what must stay and why.

    Args:
        source: A path, a model, or a PyTorch module.
        explain: Nodes (name, glob, op:TYPE) about which account is given.
        data: Samples, of which the first is run to see the sizes; made up without them.
        units: "heads": attention heads only; "channels": never heads, but what lies within them.
        seed: Of a made-up sample.
        allow_links: Accept symbolic and hard links to external data.
        custom_op_library: Shared library with custom operators.
        example: Example inputs of a PyTorch module.

    Raises:
        ModelError: The model cannot be loaded.
        DataError: The samples do not fit.
    """
    from converter.core import registry

    task = Task(Samples(data), seed=seed, custom_op_library=_path(custom_op_library))
    model = _model(source, allow_links=allow_links, example=example)
    with tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:
        settings = task.settings(folder, [model])
        context = Context(
            dataset=task.data.open(model, seed),
            services=LocalServices(settings, Silent()),
            settings=settings,
            seed=seed,
        )
        if model.functions:
            model = Pipeline([registry.get("inline")()]).run(model, context).model
        found = couple(model, observe_shapes(model, context), units=units)
        return describe(model, found, Selection(tuple(explain)) if explain else None)


def _model(source: Any, *, allow_links: bool, example: Any = None) -> ir.Model:
    if not isinstance(source, str | Path):
        return as_model(source, example=example)
    from converter.io.formats import load

    return load(Path(source), allow_links=allow_links, example=example)


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)
