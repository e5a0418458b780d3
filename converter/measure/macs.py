"""Multiply-accumulates of a model file on one feed: sizes are inferred, and observed where needed.

What a file claims of its own values is not believed: sizes follow from the feed and the operators'
definitions. Where those do not say enough (sizes that are computed, operators that onnx does not
know), the model is run once and the sizes are read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from converter.core import graph as g
from converter.core.packed import is_packed
from converter.errors import ConverterError
from converter.io import formats
from converter.io.skeleton import to_skeleton
from converter.ops import work

if TYPE_CHECKING:
    from converter.core.context import Arrays, RunSettings

Shape = tuple[int, ...]
_LOST = None


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of two models for one sample.

    Attributes:
        original, converted: Whole numbers as long as the samples of a batch cost the same.
    """

    original: float
    converted: float

    @property
    def ratio(self) -> float | None:
        """What is left; None where there was nothing."""
        return self.converted / self.original if self.original else None


def count_macs(path: Path, feed: Arrays, settings: RunSettings) -> int | None:
    """Count the multiply-accumulates of one run; call it in a child process.

    Nodes of sub-graphs count once: how often a loop runs is not known, and of the branches of an
    If all are counted.

    Args:
        path: A model that onnxruntime can open.
        feed: Arrays by input name.
        settings: Threads and custom operators, where the model must be run.

    Returns:
        The number; None when the sizes around a node that counts cannot be found.
    """
    try:
        model = formats.load(path)
        if model.functions:
            InlinePass()(model)
    except (ConverterError, ir.passes.PassError, ValueError):
        return None
    sizes = inferred_sizes(model, feed)
    total, unknown = sum_macs(model, sizes)
    if unknown:
        try:
            sizes.update(_observed(model, unknown, feed, settings))
        except ConverterError:
            return None
        total, unknown = sum_macs(model, sizes)
    return None if unknown else total


def sum_macs(model: ir.Model, sizes: Mapping[str, Shape | None]) -> tuple[int, list[ir.Value]]:
    """Add up the nodes of all scopes.

    Args:
        model: Without functions.
        sizes: By value name; constants need not be there.

    Returns:
        The sum, and the values around nodes that count whose sizes are not known.
    """
    total = 0
    unknown: dict[ir.Value, None] = {}

    def size(value: ir.Value) -> Shape | None:
        if value.const_value is not None and not value.is_graph_input():
            return tuple(int(n) for n in value.const_value.shape.numpy())
        return sizes.get(value.name or "")

    for node in g.walk(model):
        found = work.macs(node, model.opset_imports.get(node.domain, 1), size)
        if found is None:
            around = [v for v in (*node.inputs, *node.outputs) if v is not None and v.name]
            unknown.update((v, None) for v in around if size(v) is None)
        total += found or 0
    return total, list(unknown)


def inferred_sizes(model: ir.Model, feed: Arrays) -> dict[str, Shape | None]:
    """Return the sizes that follow from a feed, by value name; None for names that have two."""
    proto = to_skeleton(model)[0]
    _forget_claims(proto.graph)
    for value in proto.graph.input:
        if value.name in feed and value.type.HasField("tensor_type"):
            del value.type.tensor_type.shape.dim[:]
            for size in np.shape(feed[value.name]):
                value.type.tensor_type.shape.dim.add(dim_value=size)
    try:
        # following integers through a decoder would take hundreds of bytes for each
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=not is_packed(model))
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return {name: tuple(np.shape(array)) for name, array in feed.items()}
    found: dict[str, Shape | None] = {}
    for name, shape in _described(proto.graph):
        found[name] = _LOST if found.get(name, shape) != shape else shape
    return found


def _forget_claims(graph: onnx.GraphProto) -> None:
    for each in _scopes(graph):
        del each.value_info[:]
        for output in each.output:
            if output.type.HasField("tensor_type"):
                output.type.tensor_type.ClearField("shape")


def _scopes(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    waiting = [graph]
    while waiting:
        each = waiting.pop()
        yield each
        for node in each.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs


def _described(graph: onnx.GraphProto) -> Iterator[tuple[str, Shape]]:
    for each in _scopes(graph):
        for value in (*each.input, *each.value_info, *each.output):
            kind = value.type.tensor_type
            if not kind.HasField("shape"):
                continue
            if all(axis.HasField("dim_value") for axis in kind.shape.dim):
                yield value.name, tuple(axis.dim_value for axis in kind.shape.dim)


def _observed(
    model: ir.Model, wanted: Iterable[ir.Value], feed: Arrays, settings: RunSettings
) -> dict[str, Shape]:
    """Run the model with Shape nodes behind the values of its main graph.

    Raises:
        ConverterError: It cannot be run.
    """
    from converter.execution.session import Session

    own = {v for node in model.graph for v in node.outputs} | set(model.graph.inputs)
    wanted = [value for value in wanted if value in own]
    if not wanted:
        return {}
    model = model.clone()
    by_name = {v.name: v for node in model.graph for v in node.outputs}
    by_name.update((v.name, v) for v in model.graph.inputs)
    names = g.Names(model)
    made: dict[str, str] = {}
    model.graph.outputs.clear()
    for value in wanted:
        output = ir.Value(
            name=names.fresh(f"{value.name}_sizes"), type=ir.TensorType(ir.DataType.INT64)
        )
        model.graph.append(ir.Node("", "Shape", [by_name[value.name]], outputs=[output]))
        model.graph.outputs.append(output)
        made[output.name or ""] = value.name or ""
    with tempfile.TemporaryDirectory(prefix="sizes-", dir=settings.workspace) as folder:
        path = Path(folder) / "model.onnx"
        formats.save(model, path)
        session = Session(
            path,
            threads=settings.threads,
            optimize="basic" if is_packed(model) else False,  # decoders take far more memory
            custom_op_library=settings.custom_op_library,
        )
        found = session.run(feed)
    return {made[name]: tuple(int(n) for n in array) for name, array in found.items()}
