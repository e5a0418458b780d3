"""The options of the command line, each declared once and shared by the commands that have it."""

from __future__ import annotations

import enum
import math
from pathlib import Path
from typing import Annotated

import typer

import converter


class Check(enum.StrEnum):
    """When outputs are compared."""

    END = "end"
    EACH = "each"


class OnFailure(enum.StrEnum):
    """What happens when a pass fails."""

    FAIL = "fail"
    SKIP = "skip"


class Weights(enum.StrEnum):
    """What holds the weights beside the model."""

    RAW = "raw"
    SAFETENSORS = "safetensors"


class Compression(enum.StrEnum):
    """How a file is compressed for transport."""

    ZSTD = "zstd"


class ExternalData(enum.StrEnum):
    """Whether weights go into files of their own."""

    AUTO = "auto"
    YES = "yes"
    NO = "no"


def _finite(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{value} is not a number above 0")
    return value


def _version(value: bool) -> bool:  # noqa: FBT001 - the shape of a callback
    if value:
        typer.echo(f"onnxpress {converter.__version__}")
        raise typer.Exit
    return value


def _help(context: typer.Context, value: bool) -> bool:  # noqa: FBT001 - the shape of a callback
    if value:
        typer.echo(context.get_help())
        raise typer.Exit
    return value


_DATA = "Samples"
_CHECKS = "Checks"
_OUTPUT = "Output"
_MACHINE = "Machine"

Source = Annotated[
    Path,
    typer.Argument(metavar="IN", help="The model to convert: a file, or MODULE:FACTORY (PyTorch)."),
]
Target = Annotated[
    Path,
    typer.Argument(
        metavar="OUT",
        help="The file to write: .onnx, .ort, .json, .textproto, .onnxtxt or .onnx.zst; replaced "
        "when it exists.",
    ),
]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file.")]
Original = Annotated[Path, typer.Argument(metavar="A", help="The original model.")]
Converted = Annotated[Path, typer.Argument(metavar="B", help="The model to compare with it.")]
Models = Annotated[list[Path], typer.Argument(metavar="MODEL...", help="One or more models.")]

ExampleInputs = Annotated[
    Path | None,
    typer.Option(
        "--example-inputs",
        metavar="FILE",
        help="Arguments for a PyTorch module that MODULE:FACTORY returns alone (npz).",
    ),
]
Passes = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Passes to run, e.g. simplify,prune:sparsity=0.5,quantize."),
]
RecipeFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Recipe with passes, data and budgets (TOML).")
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help="Samples: FILE.npz, a folder of npz files or images, or MODULE:FUNCTION.",
        rich_help_panel=_DATA,
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Use at most so many samples.", rich_help_panel=_DATA),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch", metavar="N", min=1, help="Samples per run (default 1).", rich_help_panel=_DATA
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Array that holds the labels (default: labels).", rich_help_panel=_DATA
    ),
]
Image = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help='How images become inputs, e.g. "resize=256,crop=224,layout=nchw".',
        rich_help_panel=_DATA,
    ),
]
CalibrationCache = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Keep statistics of the samples here, for the next run on the same model and data.",
        rich_help_panel=_DATA,
    ),
]
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="TERM",
        help='A bound the result must keep, e.g. "size<=0.3x", "accuracy>=0.99x"; repeatable.',
        rich_help_panel=_CHECKS,
    ),
]
ReportFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write a report: FILE.json or FILE.html.", rich_help_panel=_OUTPUT
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=0, help="Root of all random numbers (default 0).", rich_help_panel=_MACHINE
    ),
]
Threads = Annotated[
    int,
    typer.Option(metavar="N", min=1, help="Threads inside an operator.", rich_help_panel=_MACHINE),
]
CheckWhen = Annotated[
    Check,
    typer.Option(
        help="Compare outputs after exact passes and at the end, or after each pass.",
        rich_help_panel=_CHECKS,
    ),
]
WhenPassFails = Annotated[
    OnFailure,
    typer.Option(
        help="Stop at a failing pass, or roll it back and go on.", rich_help_panel=_CHECKS
    ),
]
NoVerify = Annotated[
    bool,
    typer.Option(
        "--no-verify",
        help="Do not compare the result with the original; structure is checked all the same.",
        rich_help_panel=_CHECKS,
    ),
]
Explain = Annotated[
    list[str] | None,
    typer.Option(
        "--explain",
        metavar="NODE",
        help="Say what each pass did to this node, or why not (name, glob, op:TYPE); repeatable.",
        rich_help_panel=_OUTPUT,
    ),
]
Coupling = Annotated[
    bool,
    typer.Option("--coupling", help="Show which channels, heads and units can be removed."),
]
Packing = Annotated[
    bool | None,
    typer.Option(
        "--packing/--no-packing",
        help="Say what packing would bring (default: up to 256 MB of weights).",
    ),
]
ExplainCoupling = Annotated[
    list[str] | None,
    typer.Option(
        "--explain",
        metavar="NODE",
        help="Say what of this node can be removed, or why not (name, glob, op:TYPE); repeatable.",
    ),
]
Keep = Annotated[
    bool,
    typer.Option("--keep", help="Write OUT even when a budget is missed.", rich_help_panel=_OUTPUT),
]
InPlace = Annotated[
    bool, typer.Option("--in-place", help="Allow OUT to be IN.", rich_help_panel=_OUTPUT)
]
External = Annotated[
    ExternalData | None,
    typer.Option(
        "--external-data",
        help="Weights in files of their own (auto: above 2 GB).",
        rich_help_panel=_OUTPUT,
    ),
]
ShardSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Weights in files of at most this size, e.g. 2GB.",
        rich_help_panel=_OUTPUT,
    ),
]
WeightsFormat = Annotated[
    Weights | None,
    typer.Option(help="What holds the weights beside the model.", rich_help_panel=_OUTPUT),
]
StripWeights = Annotated[
    bool,
    typer.Option(
        "--strip-weights",
        help="Write the graph without its weights and origin, for bug reports and diffs.",
        rich_help_panel=_OUTPUT,
    ),
]
SparseInitializers = Annotated[
    bool,
    typer.Option(
        "--sparse-initializers",
        help="Write tensors with many zeros as sparse ones; some tools do not read them.",
        rich_help_panel=_OUTPUT,
    ),
]
Compress = Annotated[
    Compression | None,
    typer.Option(
        help="Write OUT.zst, for transport only: no runtime opens it. OUT.onnx.zst does it, too.",
        rich_help_panel=_OUTPUT,
    ),
]
KeepOpset = Annotated[
    bool,
    typer.Option(
        "--keep-opset", help="Refuse changes of opset and IR version.", rich_help_panel=_CHECKS
    ),
]
AllowLinks = Annotated[
    bool,
    typer.Option("--allow-links", help="Follow links to external data.", rich_help_panel=_MACHINE),
]
NoProvenance = Annotated[
    bool,
    typer.Option(
        "--no-provenance",
        help="Do not write recipe, versions and digests into the model.",
        rich_help_panel=_OUTPUT,
    ),
]
Reproducer = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="When a pass or a budget fails, write what is needed to repeat it (no weights).",
        rich_help_panel=_CHECKS,
    ),
]
ReproducerWeights = Annotated[
    bool,
    typer.Option(
        "--reproducer-weights",
        help="Keep the real weights in what --reproducer writes.",
        rich_help_panel=_CHECKS,
    ),
]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        callback=_finite,
        help="Give up after so many seconds.",
        rich_help_panel=_MACHINE,
    ),
]
Seconds = Annotated[
    float,
    typer.Option(metavar="S", callback=_finite, help="Time to spend on measuring."),
]
CustomOps = Annotated[
    Path | None,
    typer.Option(
        "--custom-op-library",
        metavar="FILE",
        help="Shared library with custom operators that you trust.",
        rich_help_panel=_MACHINE,
    ),
]
Top = Annotated[
    int,
    typer.Option(metavar="N", min=1, help="Look closely at so many of the worst (default 10)."),
]
MeasureLimit = Annotated[
    float | None,
    typer.Option(
        "--time-limit",
        metavar="S",
        callback=_finite,
        help="Start no measurement after so many seconds; show what is known by then.",
        rich_help_panel=_MACHINE,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and log messages.")]
Version = Annotated[
    bool,
    typer.Option("--version", is_eager=True, callback=_version, help="Print the version and stop."),
]
Help = Annotated[
    bool,
    typer.Option("--help", "-h", is_eager=True, callback=_help, help="Show this message and exit."),
]
