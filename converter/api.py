"""The public functions: convert, load, save, verify, bench, inspect."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from converter.conversion import Artifact, execute
from converter.core.context import RunSettings
from converter.core.contract import Pass
from converter.core.observe import Observer, Progress, Silent
from converter.errors import UsageError
from converter.order import Checks, Order, Output, Samples

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.recipe import Recipe
    from converter.io.layout import Layout
    from converter.measure.latency import LatencyComparison
    from converter.report.inspection import Inspection
    from converter.verification.verdict import Verdict

__all__ = ["Artifact", "bench", "convert", "inspect", "load", "save", "verify"]
PathLike = str | Path


def convert(  # noqa: PLR0913 - the words of the command line, one argument each
    source: Any,
    target: PathLike | None = None,
    *,
    passes: str | Iterable[Pass] = (),
    recipe: PathLike | Recipe | None = None,
    data: Any = None,
    samples: int | None = None,
    batch: int | None = None,
    labels: str | None = None,
    image: str | None = None,
    budget: str | Sequence[str] = (),
    verify: bool = True,
    report: PathLike | None = None,
    explain: str | Sequence[str] = (),
    seed: int | None = None,
    threads: int = 1,
    check: Literal["end", "each"] = "end",
    on_failure: Literal["fail", "skip"] = "fail",
    keep: bool = False,
    in_place: bool = False,
    external_data: Literal["auto", "yes", "no"] | None = None,
    shard_size: str | int | None = None,
    weights_format: Literal["raw", "safetensors"] | None = None,
    strip_weights: bool | None = None,
    sparse_initializers: bool | None = None,
    compress: Literal["zstd"] | None = None,
    keep_opset: bool | None = None,
    allow_links: bool = False,
    provenance: bool | None = None,
    reproducer: PathLike | None = None,
    reproducer_weights: bool = False,
    time_limit: float | None = None,
    custom_op_library: PathLike | None = None,
    example: Any = None,
    calibration_cache: PathLike | None = None,
    progress: Progress | None = None,
    observers: Sequence[Observer] = (),
) -> Artifact:
    """Convert a model: load, run passes, verify against the original, write.

    Args:
        source: Path of a model, ``"module:factory"``, an ``onnx_ir.Model``, an ``onnx.ModelProto``,
            or a PyTorch model (see docs/formats.md); never changed.
        target: Path to write to, replaced atomically when it exists; None writes nothing.
        passes: Pipeline text such as ``"simplify,prune:sparsity=0.5"``, or passes.
        recipe: Recipe file or object, instead of ``passes``; arguments given here win over it.
        data: Samples: npz file, folder, ``module:function``, dict of arrays, or a dataset. Used for
            calibration and verification; without it verification makes up inputs.
        samples: Use at most so many samples.
        batch: Samples per run (default 1).
        labels: Name of the array that holds the labels (default ``labels``).
        image: Preprocessing of a folder of images, e.g. ``"resize=256,crop=224"``.
        budget: Terms that decide whether the result is good enough, e.g. ``"sqnr>=20"``.
        verify: Compare outputs with the original; structural checks are made in any case.
        report: File for the report, ``.json`` or ``.html``.
        explain: Nodes about which every pass gives account in ``report.explained``.
        seed: Root of every random stream (default 0).
        threads: Threads that onnxruntime may use.
        check: ``"each"`` compares outputs after every pass.
        on_failure: ``"skip"`` rolls a failing pass back and goes on.
        keep: Write the file although a budget was missed.
        in_place: Allow the target to be the source.
        external_data: Weights in files of their own: ``"auto"``, ``"yes"`` or ``"no"``.
        shard_size: Weights in files of at most this size, such as ``"2GB"``.
        weights_format: Container of the weights beside the model.
        strip_weights: Write the graph without its weights, for bug reports and diffs.
        sparse_initializers: Write tensors with many zeros as sparse initializers, where that is
            smaller; some tools do not read them (see docs/formats.md).
        compress: ``"zstd"`` writes ``target`` with ``.zst`` behind it, for transport only: no
            runtime opens it. A target that ends in ``.onnx.zst`` asks for it, too.
        keep_opset: Forbid changes of opset and IR version.
        allow_links: Accept symbolic and hard links to external data.
        provenance: Write recipe, versions and digests into the model's metadata.
        reproducer: Folder for recipe, seed and model when a pass or a budget fails.
        reproducer_weights: Keep the real weights in the reproducer.
        time_limit: Seconds after which the conversion is stopped.
        custom_op_library: Shared library with custom operators.
        example: Example inputs of a PyTorch module: a tensor or array, a tuple of arguments, a dict
            of keyword arguments, or an npz file.
        calibration_cache: File with statistics of the calibration data, written and used again
            for the same model and data.
        progress: Receives the advance of long work.
        observers: Called around every pass.

    Returns:
        The converted model, its path, the report and the verdict.

    Raises:
        ConverterError: A subclass says what kind of problem it was; see :mod:`converter.errors`.
    """
    chosen = _recipe(passes, recipe)
    order = Order(
        source=source,
        passes=chosen.passes,
        data=Samples(
            spec=_first(data, chosen.data.path),
            samples=_first(samples, chosen.data.samples),
            batch=_first(batch, chosen.data.batch, 1),
            labels=_first(labels, chosen.data.labels),
            image=_first(image, chosen.data.image),
        ),
        checks=Checks(
            budget=(budget,) if isinstance(budget, str) else (tuple(budget) or chosen.budget),
            verify=verify,
            each=check,
            on_failure=on_failure,
            keep_opset=bool(_first(keep_opset, chosen.output.keep_opset)),
            reproducer=_path(reproducer),
            reproducer_weights=reproducer_weights,
        ),
        output=Output(
            target=_compressed(_path(target), _first(compress, chosen.output.compress)),
            report=_path(_first(report, chosen.output.report)),
            keep=keep,
            in_place=in_place,
            layout=_layout(
                _first(external_data, chosen.output.external_data),
                _first(shard_size, chosen.output.shard_size),
                _first(weights_format, chosen.output.weights_format),
                strip_weights=_first(strip_weights, chosen.output.strip_weights),
                sparse=_first(sparse_initializers, chosen.output.sparse_initializers),
            ),
            provenance=_first(provenance, chosen.output.provenance) is not False,
        ),
        seed=_first(seed, chosen.seed, 0),
        threads=threads,
        allow_links=allow_links,
        custom_op_library=_path(custom_op_library),
        time_limit=time_limit,
        explain=(explain,) if isinstance(explain, str) else tuple(explain),
        example=example,
        calibration_cache=_path(calibration_cache),
    )
    return execute(order, progress=progress, observers=observers)


def load(path: PathLike, *, allow_links: bool = False) -> ir.Model:
    """Load and validate a model; its weights stay in the file until they are read.

    Raises:
        ModelError: The file is missing, unreadable, broken, hostile or too large.
    """
    from converter.io import formats

    return formats.load(Path(path), allow_links=allow_links)


def save(  # noqa: PLR0913 - the words of the command line
    model: ir.Model,
    path: PathLike,
    *,
    external_data: Literal["auto", "yes", "no"] = "auto",
    shard_size: str | int | None = None,
    weights_format: Literal["raw", "safetensors"] = "raw",
    strip_weights: bool = False,
    sparse_initializers: bool = False,
    in_place: bool = False,
) -> Path:
    """Write a model atomically; an existing file is replaced, never torn.

    Args:
        model: The model; it is not changed.
        path: The output file; its suffix chooses the form (see docs/formats.md).
        external_data: Weights in files of their own: ``"auto"``, ``"yes"`` or ``"no"``.
        shard_size: Weights in files of at most this size, such as ``"2GB"``.
        weights_format: Container of the weights beside the model.
        strip_weights: Write the graph without its weights, for bug reports and diffs.
        sparse_initializers: Write tensors with many zeros as sparse initializers, where that is
            smaller; some tools do not read them (see docs/formats.md).
        in_place: ``path`` may be the file that the model was loaded from.

    Raises:
        UsageError: The folder is missing or not writable, or the path is the model's own file.
        WriteError: Writing failed; nothing was left behind.
    """
    from converter.verification.write import Proof, write_model

    layout = _layout(
        external_data,
        shard_size,
        weights_format,
        strip_weights=strip_weights,
        sparse=sparse_initializers,
    )
    with tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:
        proof = Proof(_settings(folder, [model], 1, None))
        return write_model(model, Path(path), layout=layout, proof=proof, in_place=in_place).path


def verify(  # noqa: PLR0913 - the words of the command line, one argument each
    original: PathLike,
    converted: PathLike,
    *,
    data: Any = None,
    samples: int | None = None,
    batch: int = 1,
    labels: str | None = None,
    image: str | None = None,
    budget: str | Sequence[str] = (),
    seed: int = 0,
    threads: int = 1,
    allow_links: bool = False,
    custom_op_library: PathLike | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Compare a converted model with its original; see :func:`convert` for the arguments.

    Returns:
        The verdict; a missed budget gives ``passed == False`` and raises nothing.

    Raises:
        ModelError: A model cannot be loaded or run.
        DataError: The samples do not fit.
    """
    from converter.execution.runner import materialize
    from converter.verification.budget import Budget
    from converter.verification.verify import verify as compare

    limits = Budget.parse((budget,) if isinstance(budget, str) else budget)
    before, after = (load(path, allow_links=allow_links) for path in (original, converted))
    given = Samples(
        "synthetic" if data is None else data,
        samples=samples,
        batch=batch,
        labels=labels,
        image=image,
    ).open(before, seed)
    assert given is not None
    with tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:
        settings = _settings(folder, [before, after], threads, custom_op_library)
        return compare(
            materialize(before, Path(folder)),
            materialize(after, Path(folder)),
            given,
            budget=limits,
            settings=settings,
            progress=progress or Silent(),
        )


def bench(  # noqa: PLR0913 - the words of the command line, one argument each
    *models: PathLike,
    data: Any = None,
    batch: int = 1,
    image: str | None = None,
    seconds: float = 5.0,
    seed: int = 0,
    threads: int = 1,
    allow_links: bool = False,
    custom_op_library: PathLike | None = None,
    progress: Progress | None = None,
) -> LatencyComparison:
    """Measure the latency of models, run in turn in one process on the same inputs.

    Args:
        models: One or more paths; ratios are to the first.
        data: Samples for the inputs; made up without it.
        batch: Samples per run.
        image: Preprocessing of a folder of images.
        seconds: Time to spend in all.
        seed: Of made-up inputs.
        threads: Threads that onnxruntime may use.
        allow_links: Accept symbolic and hard links to external data.
        custom_op_library: Shared library with custom operators.
        progress: Receives the advance.

    Raises:
        UsageError: No model was given.
        ModelError: A model cannot be loaded or run.
        DataError: The samples do not fit the first model.
    """
    from converter.execution.runner import materialize
    from converter.measure.latency import bench as measure

    if not models:
        raise UsageError("no model was given", hint="name one or more .onnx files")
    loaded = [load(path, allow_links=allow_links) for path in models]
    given = Samples("synthetic" if data is None else data, batch=batch, image=image)
    dataset = given.open(loaded[0], seed)
    assert dataset is not None
    with tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:
        settings = _settings(folder, loaded, threads, custom_op_library)
        paths = [materialize(model, Path(folder)) for model in loaded]
        found = measure(
            paths, dataset, settings=settings, seconds=seconds, progress=progress or Silent()
        )
    # A model that onnxruntime cannot open as it lies there was written anew, under another name.
    pairs = zip(found.models, models, strict=True)
    return replace(found, models=tuple(replace(one, name=Path(path).name) for one, path in pairs))


def inspect(
    path: PathLike, *, allow_links: bool = False, packing: bool | None = None
) -> Inspection:
    """Describe a model without running it.

    Args:
        path: The model file.
        allow_links: Accept symbolic and hard links to external data.
        packing: Try what the pass ``pack`` would bring; None: up to 256 MB of weights.

    Raises:
        ModelError: The file is missing, unreadable, broken, hostile or too large.
    """
    from converter.report.inspection import inspect_model

    return inspect_model(load(path, allow_links=allow_links), Path(path), packing=packing)


def _recipe(passes: str | Iterable[Pass], recipe: PathLike | Recipe | None) -> Recipe:
    """Bring pipeline text, passes or a recipe to one form."""
    from converter.core.recipe import Recipe, read_recipe
    from converter.core.spec import parse

    given = parse(passes) if isinstance(passes, str) else tuple(passes)
    if recipe is None:
        return Recipe(passes=given)
    if given:
        raise UsageError(
            "both passes and a recipe were given",
            allowed="one of --passes and --recipe",
            hint="write the passes into the recipe",
        )
    if isinstance(recipe, Recipe):
        return recipe
    return read_recipe(recipe)


def _settings(
    folder: str, models: Sequence[ir.Model], threads: int, library: PathLike | None
) -> RunSettings:
    from converter.pipeline.deadline import limits_for

    return RunSettings(
        limits=limits_for(models),
        threads=threads,
        workspace=Path(folder),
        custom_op_library=_path(library),
    )


def _layout(
    external_data: Any,
    shard_size: Any,
    weights_format: Any,
    *,
    strip_weights: bool | None,
    sparse: bool | None,
) -> Layout:
    from converter.io.layout import Layout, parse_size

    return Layout(
        external_data=external_data or "auto",
        shard_size=None if shard_size is None else parse_size(shard_size),
        weights_format=weights_format or "raw",
        strip_weights=bool(strip_weights),
        sparse_initializers=bool(sparse),
    )


def _compressed(target: Path | None, how: str | None) -> Path | None:
    """Return the file that is written when ``target`` is to be compressed.

    Raises:
        UsageError: There is no such compression.
    """
    if how is None:
        return target
    if how != "zstd":
        raise UsageError(f"compress is {how!r}", allowed="'zstd'")
    if target is None or target.suffix.lower() == ".zst":
        return target
    return target.with_name(f"{target.name}.zst")


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)


def _first(*values: Any) -> Any:
    """Return the first value that was given."""
    return next((v for v in values if v is not None), None)
