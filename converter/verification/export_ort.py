"""Writing .ort files: onnxruntime's own format, made by onnxruntime in a child process.

What is published was opened and run before: its outputs are those of the model it was made of.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.core.context import RunSettings
from converter.errors import (
    ConverterError,
    InvalidModelError,
    LimitExceededError,
    UsageError,
    VerificationError,
)
from converter.execution import sandbox
from converter.execution.runner import materialize
from converter.execution.session import foreign_errors
from converter.io.atomic import shown, temporary_file
from converter.io.export_onnx import Saved, check_model_output
from converter.io.legacy import FREE_INITIALIZERS
from converter.measure.difference import OutputDifference
from converter.verification.compare import Work, check_interfaces, compare, open_pair
from converter.verification.exact import summarize

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, Dataset

MAX_BYTES = 2_000_000_000
"""Offsets in flatbuffers have 31 bits."""

BATCHES = 4
_LEVELS = ("ORT_ENABLE_EXTENDED", "ORT_ENABLE_BASIC", "ORT_DISABLE_ALL")
"""Rewrites that onnxruntime bakes in, best first; those beyond depend on the kind of CPU."""
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Proof:
    """How the written file is checked.

    Attributes:
        settings: Limits, threads, custom operators, folder for temporary files.
        samples: Inputs to compare outputs on; None: the file is only opened.
    """

    settings: RunSettings
    samples: Dataset | None = None


def save_ort(
    model: ir.Model,
    path: Path,
    *,
    proof: Proof,
    source: Path | None = None,
    in_place: bool = False,
) -> Saved:
    """Write a model in onnxruntime's own format, atomically.

    Args:
        model: The model; it is not changed.
        path: Output file.
        proof: How the file is checked before it gets its name.
        source: File that the model came from; default: what loading noted.
        in_place: ``path`` may be that file.

    Raises:
        UsageError: The path cannot be written, is the input, or the model is too large.
        ModelError: onnxruntime refuses the model.
        VerificationError: What onnxruntime wrote does not give the model's outputs.
        WriteError: The disk is full or fails; nothing is left behind.
    """
    import onnxruntime

    from converter.core.graph import footprint

    path = path.absolute()
    check_model_output(model, path, source=source, in_place=in_place)
    if footprint(model).tensor_bytes > MAX_BYTES:
        raise UsageError(
            "the model is too large for a .ort file",
            where=shown(path),
            allowed=f"at most {MAX_BYTES} bytes of weights",
            hint="write a .onnx file",
        )
    with tempfile.TemporaryDirectory(prefix="ort-", dir=proof.settings.workspace) as folder:
        plain = materialize(_with_constants(model), Path(folder))
        made, level = _make(plain, Path(folder), proof)
        nbytes = made.stat().st_size
        with temporary_file(path) as temporary, made.open("rb") as content:
            while chunk := content.read(_COPY_BYTES):
                temporary.file.write(chunk)
            temporary.publish(path)
    return Saved(path, (), nbytes, _notes(onnxruntime.__version__, level, proof))


def _with_constants(model: ir.Model) -> ir.Model:
    """Take initializers off the inputs of old models, where onnxruntime would ask for them."""
    if model.ir_version >= FREE_INITIALIZERS:
        return model
    model = model.clone()
    model.ir_version = FREE_INITIALIZERS
    return model


def _notes(version: str, level: str, proof: Proof) -> tuple[str, ...]:
    checked = "opened" if proof.samples is None else "opened and run, with the model's outputs"
    words = level.removeprefix("ORT_").replace("_", " ").lower()
    return (
        f"the .ort file is bound to onnxruntime: written by {version} ({words} optimizations), it "
        "may not open in older versions, nor in any other runtime; keep the .onnx file it was made "
        "of",
        f"the .ort file was {checked} before it was put in place",
    )


def _make(plain: Path, folder: Path, proof: Proof) -> tuple[Path, str]:
    """Write with the strongest optimizations that leave the outputs as they are."""
    problems: list[ConverterError] = []
    for level in _LEVELS:
        target = folder / f"{level}.ort"
        try:
            _call(_write, plain, target, level, proof.settings, task="writing the .ort file")
            _check(plain, target, proof)
        except LimitExceededError:
            raise  # a weaker level does not make it quicker
        except ConverterError as error:
            problems.append(error)
        else:
            return target, level
    last = problems[-1]
    if isinstance(last, VerificationError):
        raise last
    raise InvalidModelError(
        f"onnxruntime cannot hold the model in a .ort file: {last.what}", hint="write a .onnx file"
    ) from last


def _call(function: Callable[..., Any], *args: Any, task: str) -> Any:
    settings = next(a for a in args if isinstance(a, RunSettings))
    return sandbox.call(function, *args, limits=settings.limits, task=task)


def _write(source: Path, target: Path, level: str, settings: RunSettings) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(target)
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        if settings.custom_op_library is not None:
            options.register_custom_ops_library(str(settings.custom_op_library))
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except foreign_errors() as error:
        raise InvalidModelError(
            " ".join(str(error).split())[:300], hint="write a .onnx file"
        ) from error


def _check(plain: Path, made: Path, proof: Proof) -> None:
    """Open what was written, and hold its outputs against the model's."""
    if not made.is_file():
        raise InvalidModelError("onnxruntime wrote no .ort file", hint="write a .onnx file")
    if proof.samples is None:
        _call(_open, plain, made, proof.settings, task="opening the .ort file")
        return
    found = sandbox.call(
        _compare,
        Work(plain, made, proof.settings, optimize=True, most_batches=BATCHES),
        proof.samples,
        limits=proof.settings.limits,
        on_progress=lambda _: None,
        task="comparing the .ort file with the model",
    )
    difference = summarize([OutputDifference(**o) for o in found["outputs"]])
    if not difference.equal:
        raise VerificationError(
            f"the .ort file does not give the model's outputs: {difference.detail}",
            hint="write a .onnx file",
        )


def _open(plain: Path, made: Path, settings: RunSettings) -> Sequence[str]:
    """Open both, and compare names and types of inputs and outputs."""
    first, second = open_pair(Work(plain, made, settings))
    return list(check_interfaces(first, second))


def _compare(
    work: Work, samples: Iterable[Batch], *, progress: Callable[[int], None]
) -> dict[str, Any]:
    return compare(work, samples, progress=progress)
