"""What makes two models, or two data sets, the same to calibration."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converter.core.tensors import chunks, little_endian

if TYPE_CHECKING:
    from converter.core.context import Dataset

Tag = Callable[[ir.TensorProtocol], str]
"""Says which tensor it is."""


def by_content(tensor: ir.TensorProtocol) -> str:
    """Return a digest of type, shape and elements, read piece by piece."""
    digest = hashlib.sha256(f"{tensor.dtype}{tensor.shape}".encode())
    if tensor.dtype == ir.DataType.STRING:
        digest.update(repr(tensor.numpy().tolist()).encode())
        return digest.hexdigest()
    for _, chunk in chunks(tensor):
        digest.update(little_endian(np.asarray(chunk)))
    return digest.hexdigest()


def of_model(model: ir.Model, tag: Tag = by_content) -> str:
    """Return a digest of what the model computes; names of nodes and documentation do not count.

    Args:
        model: Left as it is.
        tag: Names tensors; with :func:`by_content` equal models in different files agree.
    """
    digest = hashlib.sha256()
    for text in _model(model, tag):
        digest.update(text.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def of_data(dataset: Dataset) -> str:
    """Return a digest of all batches in their order; it reads them once."""
    digest = hashlib.sha256()
    for batch in dataset:
        digest.update(f"batch {batch.samples}".encode())
        for name, value in sorted(batch.inputs.items()):
            array = np.asarray(value)
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            if array.dtype == object:
                digest.update(repr(array.tolist()).encode())
            else:
                digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return digest.hexdigest()


def _model(model: ir.Model, tag: Tag) -> Iterator[str]:
    yield repr(sorted(model.opset_imports.items()))
    yield from _graph(model.graph, tag)
    for identifier, function in sorted(model.functions.items(), key=lambda item: repr(item[0])):
        yield repr(identifier)
        yield repr(sorted(function.opset_imports.items()))
        yield from _attributes(function.attributes.values(), tag)
        yield from _graph(function, tag)


def _graph(graph: Any, tag: Tag) -> Iterator[str]:
    yield "inputs"
    for value in graph.inputs:
        yield f"{value.name} {value.type} {value.shape}"
    for name, value in sorted(getattr(graph, "initializers", {}).items()):
        yield f"initializer {name}"
        yield tag(value.const_value) if value.const_value is not None else ""
    for node in graph:
        yield f"node {node.domain} {node.op_type} {node.overload}"
        yield repr([None if value is None else value.name for value in node.inputs])
        for value in node.outputs:
            yield f"{value.name} {value.type} {value.shape}"
        yield from _attributes(node.attributes.values(), tag)
    yield repr([value.name for value in graph.outputs])


def _attributes(attributes: Any, tag: Tag) -> Iterator[str]:
    for attribute in attributes:
        yield f"attribute {attribute.name} {attribute.type}"
        if attribute.type == ir.AttributeType.TENSOR and attribute.value is not None:
            yield tag(attribute.value)
        elif attribute.type == ir.AttributeType.GRAPH and attribute.value is not None:
            yield from _graph(attribute.value, tag)
        elif attribute.type == ir.AttributeType.GRAPHS and attribute.value is not None:
            for inner in attribute.value:
                yield from _graph(inner, tag)
        elif attribute.type == ir.AttributeType.TENSORS and attribute.value is not None:
            yield from map(tag, attribute.value)
        else:
            yield repr(attribute.value)
            yield repr(getattr(attribute, "ref_attr_name", None))
