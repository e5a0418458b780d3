"""Sizes of all values, as they are in a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from converter.data.ports import ports_of
from converter.data.synthetic import make_synthetic
from converter.errors import ConverterError
from converter.execution import sandbox
from converter.execution.runner import run_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from converter.core.context import Arrays, Context

_PREFIX = "converter.size."
_WEIGHTS = 1 << 10
"""Elements from which a constant is left out when shapes are inferred."""


def observe_shapes(model: ir.Model, context: Context) -> Mapping[str, tuple[int, ...]]:
    """Return the sizes of every value of the main graph, by name.

    The model runs once, in the child process, on the first sample of the data, else on a made up
    one. Where it cannot run, what onnx infers is returned; sizes that are not known are left out.

    Args:
        model: Left as it is.
        context: Data and settings.
    """
    found = {
        value.name: tuple(value.const_value.shape.numpy())
        for value in model.graph.initializers.values()
        if value.name and value.const_value is not None
    }
    inferred, tensors = _inferred_in_child(model, context)
    try:
        found |= _observed(model, context, set(tensors))
    except (ConverterError, ValueError):
        found |= inferred
    return found


def _observed(model: ir.Model, context: Context, tensors: set[str]) -> dict[str, tuple[int, ...]]:
    dataset = context.dataset
    feed: Arrays | None = None
    if dataset is not None:
        feed = next((batch.inputs for batch in dataset), None)
    if feed is None:
        feed = next(iter(make_synthetic(model, ports_of(model), seed=context.seed))).inputs
    probe = model.clone()
    names: list[str] = []
    for node in list(probe.graph):
        for value in node.outputs:
            if value.name and value.name in tensors:
                names.append(value.name)
                size = ir.node("Shape", [value])
                size.outputs[0].name = _PREFIX + value.name
                size.outputs[0].type = ir.TensorType(ir.DataType.INT64)
                probe.graph.append(size)
                probe.graph.outputs.append(size.outputs[0])
    wanted = [_PREFIX + name for name in names]
    (sizes,) = run_model(probe, [feed], wanted, settings=context.settings) if wanted else ({},)
    found = {name: tuple(int(size) for size in sizes[_PREFIX + name]) for name in names}
    found |= {name: tuple(array.shape) for name, array in feed.items()}
    return found


_Inferred = tuple[dict[str, tuple[int, ...]], list[str]]


def _inferred_in_child(model: ir.Model, context: Context) -> _Inferred:
    """Infer in a child process: there are models on which onnx crashes."""
    limits = context.settings.limits
    try:
        return sandbox.call(_inferred, model, limits=limits, task="inferring shapes")
    except ConverterError:
        return {}, sorted(_names(model))


def _names(model: ir.Model) -> set[str]:
    names = {v.name for node in model.graph for v in node.outputs if v.name}
    return names | {v.name for v in model.graph.inputs if v.name}


def _inferred(model: ir.Model) -> _Inferred:
    """Return sizes that onnx infers, and the names of values that may be tensors."""
    names = _names(model)
    try:
        proto = onnx.shape_inference.infer_shapes(ir.to_proto(_light(model)), data_prop=True)
    except Exception:  # noqa: BLE001 - whatever onnx dislikes, the run may still succeed
        return {}, sorted(names)
    found = {}
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        kind = value.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            names.discard(value.name)
        elif value.type.tensor_type.HasField("shape"):
            sizes = [d.dim_value for d in value.type.tensor_type.shape.dim]
            if all(size > 0 for size in sizes):
                found[value.name] = tuple(sizes)
    return found, sorted(names)


def _light(model: ir.Model) -> ir.Model:
    """Return a copy whose large constants are inputs, so that nothing large is written."""
    light = model.clone()
    for value in list(light.graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None and tensor.size > _WEIGHTS and not value.is_graph_input():
            value.const_value = None
            light.graph.initializers.pop(value.name or "")
            light.graph.inputs.append(value)
    return light
