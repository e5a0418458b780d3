"""Raising an opset that is too old for QuantizeLinear, with proof that the results stay."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from converter.errors import ConverterError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from converter.core.context import Batch, Context

Array = np.ndarray[Any, Any]
logger = logging.getLogger(__name__)

PER_TENSOR_OPSET = 10
"""First opset with QuantizeLinear, one scale per tensor."""
PER_CHANNEL_OPSET = 13
"""First opset with one scale per channel."""
_IR_VERSION = 7
"""The IR version that came with opset 13; a model may not use an opset newer than its IR."""
_MOST_BYTES = 1 << 30
_TOLERANCE = 1e-3


def raise_opset(model: ir.Model, context: Context) -> str:
    """Convert the model to :data:`PER_CHANNEL_OPSET` in place, or leave it as it is.

    The conversion is that of the onnx package, made in a child process. It is accepted only if
    names, types and shapes of inputs and outputs stay and the outputs for the first calibration
    batch are those of the model before.

    Returns:
        Why the model was left as it is; "" when it was converted.
    """
    if model.functions:
        return "the model has functions, which the opset conversion of onnx does not cover"
    if g.footprint(model).tensor_bytes > _MOST_BYTES:
        return "the model is too large for the opset conversion of onnx"
    try:
        new = _converted(model, context)
        reason = _difference(model, new, context)
    except ConverterError as error:
        logger.debug("opset conversion failed: %s", error)
        return "the opset conversion of onnx fails on this model"
    if reason:
        return reason
    new.graph.metadata_props.update(model.graph.metadata_props)
    new.graph.meta.update(model.graph.meta)
    model.graph = new.graph
    model.ir_version = max(model.ir_version, _IR_VERSION)
    return ""


def convert_bytes(data: bytes, opset: int) -> bytes:
    """Convert a serialized model; called in the child process."""
    import onnx
    from onnx import version_converter

    proto = onnx.ModelProto.FromString(data)
    converted = version_converter.convert_version(proto, opset)
    result: bytes = converted.SerializeToString(deterministic=True)
    return result


def _converted(model: ir.Model, context: Context) -> ir.Model:
    import onnx
    from onnx import version_converter  # noqa: F401 - loaded once, before the child process

    from converter.execution import sandbox

    proto = ir.to_proto(model)
    proto.ir_version = max(model.ir_version, _IR_VERSION)  # below 4 weights would be inputs
    data = sandbox.call(
        convert_bytes,
        proto.SerializeToString(),
        PER_CHANNEL_OPSET,
        limits=context.settings.limits,
        task="converting the opset",
    )
    new: ir.Model = ir.from_proto(onnx.ModelProto.FromString(data))
    return new


def _difference(old: ir.Model, new: ir.Model, context: Context) -> str:
    """Say how the converted model differs; "" when it does not."""
    for kind in ("inputs", "outputs"):
        before, after = getattr(old.graph, kind), getattr(new.graph, kind)
        if [v.name for v in before] != [v.name for v in after]:
            return f"the opset conversion of onnx changes the {kind} of this model"
        for value, twin in zip(before, after, strict=True):
            twin.type, twin.shape = value.type, value.shape
    batch: Batch | None = next(iter(context.dataset), None) if context.dataset else None
    if batch is None:
        return "there is no sample to check the opset conversion with"
    expected, actual = (context.run(m, [batch.inputs])[0] for m in (old, new))
    if not _agree(expected, actual):
        return "the opset conversion of onnx changes the results of this model"
    return ""


def _agree(expected: Mapping[str, Array], actual: Mapping[str, Array]) -> bool:
    for name, before in expected.items():
        after = actual[name]
        if before.shape != after.shape or before.dtype != after.dtype:
            return False
        if before.dtype.kind != "f":
            if not np.array_equal(before, after):
                return False
            continue
        size = float(np.abs(before[np.isfinite(before)]).max(initial=1e-6))
        if not np.allclose(before, after, rtol=_TOLERANCE, atol=_TOLERANCE * size, equal_nan=True):
            return False
    return True
