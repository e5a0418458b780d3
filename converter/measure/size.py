"""The size of model files: bytes with external data, nodes, parameters; no weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from converter.errors import FormatError
from converter.io import wire
from converter.io.limits import open_model


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
    proto, inside = read_structure(path)
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
    files = [path, *(path.parent / location for location in sorted(locations - inside))]
    return Size(sum(f.stat().st_size for f in files if f.is_file()), nodes, parameters)


def read_structure(path: Path) -> tuple[onnx.ModelProto, frozenset[str]]:
    """Read a model without its large tensors.

    Returns:
        The model, in which tensors that stayed in the file are external at a made-up location;
        and the set of these locations.

    Raises:
        FormatError: The file is no ONNX model.
        ModelError: The file is missing or not readable.
    """
    scan = wire.scan(open_model(path))
    try:
        return onnx.ModelProto.FromString(scan.skeleton), frozenset(scan.places)
    except DecodeError as error:
        raise FormatError("the file is no ONNX model", where=str(path)) from error


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
