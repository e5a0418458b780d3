"""The size of model files: bytes with external data, nodes, parameters; no weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from converter.errors import FormatError, ModelError


@dataclass(frozen=True)
class Size:
    """The size of a model.

    Attributes:
        nbytes: Bytes of the model file and of its external data files.
        nodes: Nodes of the main graph, all sub-graphs and functions.
        parameters: Elements of all constant tensors of numeric type.
    """

    nbytes: int
    nodes: int
    parameters: int


def measure_size(path: Path) -> Size:
    """Measure a model file.

    Raises:
        FormatError: The file is no ONNX model.
        ModelError: A file is missing.
    """
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise ModelError(f"the model cannot be read: {error.strerror}", where=str(path)) from error
    except ValueError as error:  # what protobuf raises on bytes that are no message
        raise FormatError("the file is no ONNX model", where=str(path)) from error
    return _measure(proto, path)


def _measure(proto: onnx.ModelProto, path: Path) -> Size:
    nodes = parameters = 0
    locations: set[str] = set()
    graphs = list(_graphs(proto))
    for graph in graphs:
        nodes += len(graph.node)
    for tensor in _tensors(graphs):
        if tensor.data_type != onnx.TensorProto.STRING:
            parameters += math.prod(tensor.dims)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            locations |= {e.value for e in tensor.external_data if e.key == "location"}
    files = [path, *(path.parent / location for location in sorted(locations))]
    return Size(sum(f.stat().st_size for f in files if f.is_file()), nodes, parameters)


Scope = onnx.GraphProto | onnx.FunctionProto


def _graphs(proto: onnx.ModelProto) -> Iterator[Scope]:
    waiting: list[Scope] = [proto.graph, *proto.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)


def _tensors(graphs: list[Scope]) -> Iterator[onnx.TensorProto]:
    for graph in graphs:
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
