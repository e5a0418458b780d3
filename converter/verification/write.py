"""Writing a model in the form that the suffix of its path chooses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from converter.io import formats, suffixes
from converter.io.layout import Layout
from converter.verification.export_ort import Proof, save_ort

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.io.export_onnx import Saved

__all__ = ["Proof", "write_model"]


def write_model(
    model: ir.Model,
    path: Path,
    *,
    layout: Layout,
    proof: Proof,
    source: Path | None = None,
    in_place: bool = False,
) -> Saved:
    """Write a model; what was at ``path`` stays whole until the new file is complete.

    Args:
        model: The model; it is not changed.
        path: Output file.
        layout: Files, container, with or without weights.
        proof: How a file is checked that onnxruntime writes.
        source: File that the model came from; default: what loading noted.
        in_place: ``path`` may be that file.

    Raises:
        UsageError: The path cannot be written, is the input, or the model does not fit the form.
        ModelError: The model cannot be expressed in the form.
        WriteError: The disk is full or fails; nothing is left behind.
    """
    if path.suffix.lower() != suffixes.ORT:
        return formats.save(model, path, layout=layout, source=source, in_place=in_place)
    formats.check_form(path, layout)
    return save_ort(model, path, proof=proof, source=source, in_place=in_place)
