"""The doors in and out: which importer reads a file and which exporter writes it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.core.factory import split_reference
from converter.errors import UsageError
from converter.io import compressed
from converter.io.layout import ExternalData, Layout
from converter.io.limits import LoadLimits
from converter.io.suffixes import FOREIGN, ORT, TEXT

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.io.export_onnx import Saved

PathLike = str | os.PathLike[str]

_SINGLE = {ORT, *TEXT}


def load(
    path: PathLike,
    *,
    limits: LoadLimits = LoadLimits(),  # noqa: B008 - frozen
    allow_links: bool = False,
    example: Any = None,
) -> ir.Model:
    """Load a model: ONNX in one of its forms, a ``.pt2`` file, or what a function returns.

    Args:
        path: The file, or ``module:factory`` (see :mod:`converter.io.torch_source`). A bare name in
            the current folder is held to the same rules as a full path.
        limits: Bounds on size, nodes, nesting and tensor bytes.
        allow_links: Accept external data that are links; see :func:`limits.open_beside`.
        example: Example inputs for an ``nn.Module`` that a factory returns.

    Raises:
        ModelError: The file is missing, is no model, is broken or exceeds the limits.
        UsageError: The factory is missing or fails.
    """
    reference = split_reference(os.fspath(path))
    if reference is not None:
        from converter.io.import_torch import load_factory

        return load_factory(*reference, example=example)
    from converter.io.torch_files import is_program, refuse_checkpoint
    from converter.io.torch_source import refuse_example

    refuse_example(example, os.fspath(path))
    refuse_checkpoint(Path(path))
    if is_program(Path(path)):
        from converter.io.import_torch import load_program

        return load_program(Path(path), limits=limits)
    from converter.io.import_onnx import load_onnx

    return load_onnx(Path(path), limits=limits, allow_links=allow_links)


def save(
    model: ir.Model,
    path: PathLike,
    *,
    layout: Layout = Layout(),  # noqa: B008 - frozen
    external_data: ExternalData | None = None,
    source: PathLike | None = None,
    in_place: bool = False,
) -> Saved:
    """Write a model atomically; the suffix chooses the form.

    Args:
        model: The model; it is not changed.
        path: The output file.
        layout: Files, container, with or without weights.
        external_data: Instead of the layout's.
        source: The input file, which is not overwritten; default: where the model was loaded from.
        in_place: ``path`` may be the input file.

    Raises:
        UsageError: The path cannot be written, is the input, or the model does not fit the form.
        WriteError: The disk is full or fails; nothing is left behind.
    """
    from converter.io.export_onnx import save_onnx

    if external_data is not None:
        layout = replace(layout, external_data=external_data)
    check_form(Path(path), layout)
    return save_onnx(
        model,
        Path(path),
        layout=layout,
        source=None if source is None else Path(source),
        in_place=in_place,
    )


def check_form(path: Path, layout: Layout) -> None:
    """Refuse a suffix that stands for another format, and what its form cannot hold.

    Raises:
        UsageError: What is written instead, and how.
    """
    suffix = path.suffix.lower()
    if compressed.is_wanted(path):
        compressed.check_name(path)
        layout.check_single("a compressed file")
    if suffix in FOREIGN:
        raise UsageError(
            f"{suffix} files are not written",
            where=repr(str(path)),
            allowed=".onnx, .ort, .json, .textproto, .onnxtxt or .onnx.zst",
            hint=FOREIGN[suffix],
        )
    if suffix in _SINGLE:
        layout.check_single(f"a {suffix} file")
    if layout.sparse_initializers and (suffix == ORT or TEXT.get(suffix) == "onnxtxt"):
        raise UsageError(
            f"a {suffix} file has no sparse initializers",
            allowed=".onnx, .json and .textproto files",
            hint="leave out --sparse-initializers, or write one of these",
        )
    if suffix == ORT and layout.strip_weights:
        raise UsageError(
            "a .ort file cannot do without its weights",
            hint="write a .onnx, .json or .onnxtxt file",
        )


def check_output(
    path: PathLike,
    *,
    source: PathLike | None = None,
    in_place: bool = False,
    layout: Layout = Layout(),  # noqa: B008 - frozen
) -> None:
    """Check an output path before any work is done.

    Raises:
        UsageError: Nothing can be written there, it would overwrite the input, or its suffix stands
            for a form that is not written, or not with this layout.
    """
    from converter.io import export_onnx

    check_form(Path(path), layout)
    export_onnx.check_output(
        Path(path), source=None if source is None else Path(source), in_place=in_place
    )
