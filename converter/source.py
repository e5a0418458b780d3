"""The model that is asked about: taken from memory, or found in its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir


def source_files(model: ir.Model) -> list[Path]:
    """Return the files that a loaded model lies in, the model file first."""
    from converter.io.meta import DATA_FILES, PATH

    if PATH not in model.meta:
        return []
    return [Path(p) for p in (model.meta[PATH], *model.graph.meta.get(DATA_FILES, ()))]


def as_model(source: Any, *, example: Any = None) -> ir.Model:
    """Take a model that is already in memory.

    Args:
        source: An ``onnx_ir.Model``, an ``onnx.ModelProto``, or a PyTorch source
            (:mod:`converter.io.torch_source`).
        example: Example inputs of a PyTorch module.

    Raises:
        UsageError: It is none of them.
        ModelError: The model is not valid, or cannot be exported from PyTorch.
    """
    import onnx
    import onnx_ir as ir

    from converter.io.legacy import hide_defaults
    from converter.io.torch_source import is_torch, refuse_example
    from converter.io.validate import validate

    if is_torch(source):
        from converter.io.import_torch import load_torch

        return load_torch(source, example=example)
    refuse_example(example, "example=")
    if isinstance(source, ir.Model):
        model = source.clone()  # it may have been edited since it was loaded from its file
    elif isinstance(source, onnx.ModelProto):
        validate(source)
        model = ir.from_proto(source)
    else:
        raise UsageError(
            f"{type(source).__name__} is no model",
            allowed="a path, MODULE:FACTORY, an onnx_ir.Model, an onnx.ModelProto, or a PyTorch "
            "model together with example inputs",
        )
    hide_defaults(model)
    return model
