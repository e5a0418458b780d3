"""What packed weights decode to: computed in a child process, for their zeros and patterns."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core.context import RunSettings
from converter.errors import ConverterError
from converter.measure.sparsity import measure_sparsity
from converter.ops.summed import View, views_of
from converter.pipeline.deadline import limits_for
from converter.report.storage import Decoded, Packed, readers

Array = np.ndarray[Any, Any]

MOST_BYTES = 64 << 20
"""Stored bytes of packed weights up to which they are decoded to look at them."""

MOST_ELEMENTS = 64 << 20
"""Elements of packed weights up to which they are decoded; those of unknown shape never are."""

_MEMORY = 4 << 30  # of the child: shapes that a file declares may be lies
_SECONDS = 60.0


def look_into(model: ir.Model, groups: Sequence[Packed]) -> list[Packed]:
    """Return the groups with the zeros and the pattern of every weight in them.

    Groups that are too large, lie in sub-graphs, or cannot be computed are returned as they are.
    """
    values = {v.name: v for node in model.graph for v in node.outputs if v.name}
    chosen = [one for one in groups if one.elements and all(n in values for n in one.names)]
    small = sum(one.nbytes for one in chosen) <= MOST_BYTES
    if not chosen or not small or sum(one.elements or 0 for one in chosen) > MOST_ELEMENTS:
        return list(groups)
    arrays = _decode(model, [name for one in chosen for name in one.names])
    if arrays is None:
        return list(groups)
    return [_described(one, values, arrays) if one in chosen else one for one in groups]


def _described(
    group: Packed, values: Mapping[str, ir.Value], arrays: Mapping[str, Array]
) -> Packed:
    found = [_sparsity(values[name], arrays[name]) for name in group.names]
    zeros = sum(round((one.zeros or 0) * arrays[one.name].size) for one in found)
    elements = sum(arrays[one.name].size for one in found)
    return replace(group, tensors=tuple(found), zeros=zeros, elements=elements)


def _sparsity(value: ir.Value, array: Array) -> Decoded:
    views: Iterable[tuple[View, ...]] = (
        views_of(node, port, array.shape) for node, port in readers(value)
    )
    found = measure_sparsity(ir.tensor(array), next((v for v in views if v), ()))
    return Decoded(value.name or "", array.shape, found.share, found.pattern)


def _decode(model: ir.Model, names: Sequence[str]) -> dict[str, Array] | None:
    """Compute constants of the main graph by name; None when onnxruntime does not."""
    from converter.execution.runner import run_model

    part = _part(model, names)
    try:
        with tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:
            limits = replace(limits_for([part]), memory_bytes=_MEMORY, seconds=_SECONDS)
            settings = RunSettings(limits=limits, workspace=Path(folder))
            (found,) = run_model(part, [{}], names, settings=settings)
    except ConverterError:
        return None
    return {name: np.asarray(found[name]) for name in names}


def _part(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Copy what computes some values into a model without inputs."""
    made = {v.name: v for node in model.graph for v in node.outputs}
    waiting: list[ir.Node | None] = [made[name].producer() for name in names]
    wanted: set[ir.Node] = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in wanted:
            wanted.add(node)
            waiting += [v.producer() for v in node.inputs if v is not None]
    copies: dict[ir.Value, ir.Value] = {}
    nodes = []
    for node in model.graph:
        if node in wanted:
            inputs = [None if v is None else _copy(v, copies) for v in node.inputs]
            outputs = [_copy(v, copies) for v in node.outputs]
            attributes = node.attributes.values()
            nodes.append(ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs))
    graph = ir.Graph(
        [],
        [copies[made[name]] for name in names],
        nodes=nodes,
        initializers=[v for v in copies.values() if v.const_value is not None],
        opset_imports=dict(model.graph.opset_imports),
        name="decoders",
    )
    return ir.Model(graph, ir_version=model.ir_version)


def _copy(value: ir.Value, copies: dict[ir.Value, ir.Value]) -> ir.Value:
    if value not in copies:
        tensor = value.const_value if value.is_initializer() else None
        copy = ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=tensor)
        copies[value] = copy
    return copies[value]
