"""Raising an opset that is too old for QuantizeLinear, with proof that the results stay."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.errors import ConverterError
from passes.opset.convert import convert, take_over

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from converter.core.context import Batch, Context

Array = np.ndarray[Any, Any]
logger = logging.getLogger(__name__)

PER_TENSOR_OPSET = 10
"""First opset with QuantizeLinear, one scale per tensor."""
PER_CHANNEL_OPSET = 13
"""First opset with one scale per channel."""
_TOLERANCE = 1e-3


def raise_opset(model: ir.Model, context: Context, target: int = PER_CHANNEL_OPSET) -> str:
    """Convert the model to opset ``target`` in place, or leave it as it is.

    The conversion is accepted only if names, types and shapes of inputs and outputs stay and the
    outputs for the first calibration batch are those of the model before.

    Returns:
        Why the model was left as it is; "" when it was converted.
    """
    new = model.clone()
    found = convert(new, target, context)
    if found.reason:
        return f"the opset conversion fails, at {found.reason}"
    try:
        reason = _difference(model, new, context)
    except ConverterError as error:
        logger.debug("opset conversion failed: %s", error)
        return "the converted model does not run"
    if not reason:
        take_over(model, new)
    return reason


def _difference(old: ir.Model, new: ir.Model, context: Context) -> str:
    """Say how the converted model differs; "" when it does not."""
    for kind in ("inputs", "outputs"):
        before, after = getattr(old.graph, kind), getattr(new.graph, kind)
        if [v.name for v in before] != [v.name for v in after]:
            return f"the opset conversion changes the {kind} of this model"
        for value, twin in zip(before, after, strict=True):
            twin.type, twin.shape = value.type, value.shape
    batch: Batch | None = next(iter(context.dataset), None) if context.dataset else None
    if batch is None:
        return "there is no sample to check the opset conversion with"
    expected, actual = (context.run(m, [batch.inputs])[0] for m in (old, new))
    if not _agree(expected, actual):
        return "the opset conversion changes the results of this model"
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


def with_samples(model: ir.Model, context: Context) -> Context:
    """Return a context with made-up samples where there are none, to check a conversion with."""
    if context.dataset is not None:
        return context
    from converter.data.sources import open_data

    try:
        made_up = open_data("synthetic", model, seed=context.seed)
    except ConverterError:
        return context
    return replace(context, dataset=made_up)
