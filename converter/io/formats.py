"""The doors in and out: which importer reads a file and which exporter writes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from converter.io.limits import LoadLimits

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.io.export_onnx import Saved

PathLike = str | os.PathLike[str]


def load(
    path: PathLike,
    *,
    limits: LoadLimits = LoadLimits(),  # noqa: B008 - frozen
    allow_links: bool = False,
) -> ir.Model:
    """Load an ONNX model: binary, protobuf JSON or text, or ONNX's text syntax.

    Args:
        path: The file. A bare name in the current folder is held to the same rules as a full path.
        limits: Bounds on size, nodes, nesting and tensor bytes.
        allow_links: Accept external data that are links; see :func:`limits.open_beside`.

    Raises:
        ModelError: The file is missing, is no ONNX model, is broken or exceeds the limits.
    """
    from converter.io.import_onnx import load_onnx

    return load_onnx(Path(path), limits=limits, allow_links=allow_links)


def save(
    model: ir.Model,
    path: PathLike,
    *,
    external_data: str = "auto",
    source: PathLike | None = None,
    in_place: bool = False,
    allow_links: bool = False,
) -> Saved:
    """Write a model atomically; the suffix chooses the form.

    Args:
        model: The model; it is not changed.
        path: The output file.
        external_data: ``"auto"``, ``"yes"`` or ``"no"``; see :func:`export_onnx.save_onnx`.
        source: The input file, which is not overwritten; default: where the model was loaded from.
        in_place: ``path`` may be the input file.
        allow_links: Has no effect on writing: it never goes through a link.

    Raises:
        UsageError: The path cannot be written, is the input, or the model does not fit the form.
        WriteError: The disk is full or fails; nothing is left behind.
    """
    from converter.io.export_onnx import save_onnx

    del allow_links
    return save_onnx(
        model,
        Path(path),
        external_data=external_data,
        source=None if source is None else Path(source),
        in_place=in_place,
    )


def check_output(path: PathLike, *, source: PathLike | None = None, in_place: bool = False) -> None:
    """Check an output path before any work is done.

    Raises:
        UsageError: Nothing can be written there, or it would overwrite the input.
    """
    from converter.io import export_onnx

    export_onnx.check_output(
        Path(path), source=None if source is None else Path(source), in_place=in_place
    )
