"""Structural validation of a model that is not trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converter.io.limits import LoadLimits

if TYPE_CHECKING:
    import onnx


def validate(proto: onnx.ModelProto, limits: LoadLimits = LoadLimits()) -> None:  # noqa: B008
    """Check a model, or its skeleton whose bulk tensors carry no bytes.

    Raises:
        InvalidModelError: The model breaks a rule of the ONNX specification.
        LimitExceededError: The model is larger than the limits.
    """
    del proto, limits
