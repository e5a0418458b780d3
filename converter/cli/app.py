"""The commands. Their bodies import what they need, so help is quick and needs no model tools.

Each command is an application of its own; :mod:`converter.cli.entry` picks the one asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from converter.cli import options as opt
from converter.cli.progress import PassBars, watching
from converter.cli.streams import silence_stdout

_MISSED = 6  # exit code of a missed budget, as in converter.errors.VerificationError


def command(name: str) -> Any:
    """Build one command; ``.main(arguments, prog_name=..., standalone_mode=False)`` runs it."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    context = {"help_option_names": ["--help", "-h"], "allow_extra_args": name == "passes"}
    app.command(**_EXTRAS.get(name, {}), context_settings=context)(_COMMANDS[name])
    return typer.main.get_command(app)


def convert(  # noqa: PLR0913 - one parameter per option
    *,
    source: opt.Source,
    target: opt.Target,
    passes: opt.Passes = None,
    recipe: opt.RecipeFile = None,
    data: opt.Data = None,
    samples: opt.Samples = None,
    batch: opt.BatchSize = None,
    labels: opt.Labels = None,
    image: opt.Image = None,
    calibration_cache: opt.CalibrationCache = None,
    budget: opt.Budgets = None,
    report: opt.ReportFile = None,
    explain: opt.Explain = None,
    seed: opt.Seed = None,
    threads: opt.Threads = 1,
    check: opt.CheckWhen = opt.Check.END,
    on_failure: opt.WhenPassFails = opt.OnFailure.FAIL,
    no_verify: opt.NoVerify = False,
    keep: opt.Keep = False,
    in_place: opt.InPlace = False,
    external_data: opt.External = None,
    shard_size: opt.ShardSize = None,
    weights_format: opt.WeightsFormat = None,
    strip_weights: opt.StripWeights = False,
    sparse_initializers: opt.SparseInitializers = False,
    compress: opt.Compress = None,
    keep_opset: opt.KeepOpset = False,
    allow_links: opt.AllowLinks = False,
    no_provenance: opt.NoProvenance = False,
    reproducer: opt.Reproducer = None,
    reproducer_weights: opt.ReproducerWeights = False,
    time_limit: opt.TimeLimit = None,
    custom_op_library: opt.CustomOps = None,
    example_inputs: opt.ExampleInputs = None,
    quiet: opt.Quiet = False,
    json: opt.Json = False,
    debug: opt.Debug = False,
    version: opt.Version = False,
) -> int:
    """Make an ONNX model smaller and faster, check it against the original, and write it.

    Without --passes the model is loaded, checked and written: a safe copy.
    """
    del debug, version
    settings: dict[str, Any] = {
        "passes": passes or (),
        "recipe": recipe,
        "data": data,
        "samples": samples,
        "batch": batch,
        "labels": labels,
        "image": image,
        "calibration_cache": calibration_cache,
        "budget": budget or (),
        "verify": not no_verify,
        "report": report,
        "explain": explain or (),
        "seed": seed,
        "threads": threads,
        "check": check.value,
        "on_failure": on_failure.value,
        "keep": keep,
        "in_place": in_place,
        "external_data": external_data and external_data.value,
        "shard_size": shard_size,
        "weights_format": weights_format and weights_format.value,
        "strip_weights": strip_weights or None,
        "sparse_initializers": sparse_initializers or None,
        "compress": compress and compress.value,
        "keep_opset": keep_opset or None,
        "allow_links": allow_links,
        "provenance": False if no_provenance else None,
        "reproducer": reproducer,
        "reproducer_weights": reproducer_weights,
        "time_limit": time_limit,
        "custom_op_library": custom_op_library,
        "example": example_inputs,
    }
    return _convert(source, target, settings, quiet=quiet, json=json)


def _convert(
    source: Path, target: Path, settings: dict[str, Any], *, quiet: bool, json: bool
) -> int:
    from converter import api
    from converter.errors import ConverterError, VerificationError

    try:
        with watching(quiet=quiet or json) as progress:
            bars = (PassBars(progress),)
            artifact = api.convert(source, target, progress=progress, observers=bars, **settings)
    except ConverterError as error:
        found = getattr(error, "report", None)
        if found is not None and (json or isinstance(error, VerificationError)):
            _show("conversion", found.to_dict(), quiet=quiet, json=json)
        raise
    _show("conversion", artifact.report.to_dict(), quiet=quiet, json=json)
    return 0


def inspect(  # noqa: PLR0913 - one parameter per option
    *,
    model: opt.Model,
    coupling: opt.Coupling = False,
    explain: opt.ExplainCoupling = None,
    data: opt.Data = None,
    packing: opt.Packing = None,
    allow_links: opt.AllowLinks = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> int:
    """Show what is in a model: inputs, outputs, operators, weights, zeros, storage."""
    del debug
    from converter import api, examination

    found = api.inspect(model, allow_links=allow_links, packing=packing).to_dict()
    if coupling or explain:
        asked = tuple(explain or ())
        parts = examination.coupling(model, explain=asked, data=data, allow_links=allow_links)
        found["coupling"] = parts.to_dict()
    _show("inspection", found, quiet=quiet, json=json)
    return 0


def verify(  # noqa: PLR0913 - one parameter per option
    *,
    a: opt.Original,
    b: opt.Converted,
    data: opt.Data = None,
    samples: opt.Samples = None,
    batch: opt.BatchSize = None,
    labels: opt.Labels = None,
    image: opt.Image = None,
    budget: opt.Budgets = None,
    seed: opt.Seed = None,
    threads: opt.Threads = 1,
    allow_links: opt.AllowLinks = False,
    custom_op_library: opt.CustomOps = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> int:
    """Compare two models on the same samples: outputs, accuracy, size, speed."""
    del debug
    from converter import api

    with watching(quiet=quiet or json) as progress:
        verdict = api.verify(
            a,
            b,
            data=data,
            samples=samples,
            batch=batch or 1,
            labels=labels,
            image=image,
            budget=budget or (),
            seed=seed or 0,
            threads=threads,
            allow_links=allow_links,
            custom_op_library=custom_op_library,
            progress=progress,
        )
    _show("verdict", verdict.to_dict(), quiet=quiet, json=json)
    return 0 if verdict.passed else _MISSED


def bench(  # noqa: PLR0913 - one parameter per option
    *,
    models: opt.Models,
    data: opt.Data = None,
    batch: opt.BatchSize = None,
    image: opt.Image = None,
    seconds: opt.Seconds = 5.0,
    seed: opt.Seed = None,
    threads: opt.Threads = 1,
    allow_links: opt.AllowLinks = False,
    custom_op_library: opt.CustomOps = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> int:
    """Measure how long models take, run in turns on the same inputs; ratios are to the first."""
    del debug
    from converter import api

    with watching(quiet=quiet or json) as progress:
        found = api.bench(
            *models,
            data=data,
            batch=batch or 1,
            image=image,
            seconds=seconds,
            seed=seed or 0,
            threads=threads,
            allow_links=allow_links,
            custom_op_library=custom_op_library,
            progress=progress,
        )
    _show("latency", found.to_dict(), quiet=quiet, json=json)
    return 0


def sensitivity(  # noqa: PLR0913 - one parameter per option
    *,
    model: opt.Model,
    passes: opt.Passes = None,
    data: opt.Data = None,
    samples: opt.Samples = None,
    batch: opt.BatchSize = None,
    labels: opt.Labels = None,
    image: opt.Image = None,
    top: opt.Top = 10,
    time_limit: opt.MeasureLimit = None,
    seed: opt.Seed = None,
    threads: opt.Threads = 1,
    allow_links: opt.AllowLinks = False,
    custom_op_library: opt.CustomOps = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> int:
    """Rank layers by what compressing each costs, alone and as one of all; needs no labels.

    Without --passes int8 quantization is examined: simplify,quantize:method=minmax. Of several
    passes the last is examined, e.g. --passes prune:sparsity=0.7.
    """
    del debug
    from converter import examination

    with watching(quiet=quiet or json) as progress:
        found = examination.sensitivity(
            model,
            passes=passes,
            data=data,
            samples=samples,
            batch=batch or 1,
            labels=labels,
            image=image,
            top=top,
            time_limit=time_limit,
            seed=seed or 0,
            threads=threads,
            allow_links=allow_links,
            custom_op_library=custom_op_library,
            progress=progress,
        )
    _show("sensitivity", {**found.to_dict(), "top": top}, quiet=quiet, json=json)
    return 0


def debug_models(  # noqa: PLR0913 - one parameter per option
    *,
    a: opt.Original,
    b: opt.Converted,
    data: opt.Data = None,
    samples: opt.Samples = None,
    batch: opt.BatchSize = None,
    image: opt.Image = None,
    top: opt.Top = 10,
    seed: opt.Seed = None,
    threads: opt.Threads = 1,
    allow_links: opt.AllowLinks = False,
    custom_op_library: opt.CustomOps = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> int:
    """Compare two models value by value: where they part, which layer adds most, what saturates."""
    del debug
    from converter import examination

    with watching(quiet=quiet or json) as progress:
        found = examination.debug(
            a,
            b,
            data=data,
            samples=samples,
            batch=batch or 1,
            image=image,
            seed=seed or 0,
            threads=threads,
            allow_links=allow_links,
            custom_op_library=custom_op_library,
            progress=progress,
        )
    _show("debugging", {**found.to_dict(), "top": top}, quiet=quiet, json=json)
    return 0


def passes(
    *,
    context: typer.Context,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
    show_help: opt.Help = False,
) -> int:
    """List the passes, or describe the one called NAME with all its parameters."""
    del debug, show_help
    from converter.cli import catalogue
    from converter.errors import UsageError

    if len(context.args) > 1:
        raise UsageError(
            "more than one pass was named", allowed="convert passes, or convert passes NAME"
        )
    if context.args:
        _show("pass_details", catalogue.describe(context.args[0]), quiet=quiet, json=json)
    else:
        _show("pass_list", catalogue.list_passes(), quiet=quiet, json=json)
    return 0


def _show(what: str, data: Any, *, quiet: bool, json: bool) -> None:
    """Print a result as JSON or as tables; a reader who left is no error."""
    if quiet and not json:
        return
    if json:
        from converter.report.json_report import render as to_json

        text = to_json(data)
    else:
        from converter.cli.render import render

        text = render(what, data)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()


_COMMANDS: dict[str, Callable[..., int]] = {
    "convert": convert,
    "inspect": inspect,
    "verify": verify,
    "bench": bench,
    "sensitivity": sensitivity,
    "debug": debug_models,
    "passes": passes,
}
_EPILOG = """\
Other commands, each with --help:

convert inspect MODEL: what is in a model.

convert verify A B: compare two models.

convert bench MODEL...: measure speed.

convert sensitivity MODEL --data FILE: which layers hurt when they are quantized.

convert debug A B: where two models part, value by value.

convert passes [NAME]: list or describe passes.

A word is a command only if no file has that name; "--" ends the options.
Exit codes: 0 done, 2 usage, 3 model, 4 pass, 5 data, 6 verification or budget, 7 security,
8 writing, 130 interrupted."""
# The name of a pass is no declared argument and help is a switch of our own: typer's conversion of
# anything but a given switch costs 0.1 s of CPU, half of what listing the passes may take.
_EXTRAS: dict[str, dict[str, Any]] = {
    "convert": {"epilog": _EPILOG},
    "passes": {"options_metavar": "[OPTIONS] [NAME]", "add_help_option": False},
}
