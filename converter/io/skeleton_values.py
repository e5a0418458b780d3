"""Declarations of values in a document: types, shapes, annotations, metadata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx
import onnx_ir as ir

from converter.errors import InvalidModelError
from converter.io import meta

_QUANT_NAMES = "quant_parameter_tensor_names"  # where onnx_ir keeps them in a value's meta


def metadata(proto: Any, entries: Mapping[str, str]) -> None:
    """Write metadata entries."""
    for key, content in entries.items():
        proto.metadata_props.add(key=key, value=content)


def has_facts(value: ir.Value) -> bool:
    """Tell whether there is anything to declare about a value."""
    if not value.name:
        return False
    known = value.type is not None or value.shape is not None
    if known or value.metadata_props or value.doc_string:
        return True
    return meta.TYPE in value.meta or meta.LISTED in value.meta


def declare(proto: onnx.GraphProto, graph: ir.Graph) -> None:
    """Write ``value_info``: node outputs, and what was listed there before though it need not."""
    rest = graph.meta.get(meta.VALUE_INFO)
    listed = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    done: set[int] = set()
    for value in listed:
        if meta.LISTED in value.meta and id(value) not in done:
            _listed(proto.value_info.add(), value)
        done.add(id(value))
    for node in graph:
        for value in node.outputs:
            if id(value) not in done and has_facts(value):
                write_value(proto.value_info.add(), value)
    if rest:
        names = {v.name for v in listed} | {o.name for node in graph for o in node.outputs}
        leftovers(proto.value_info, rest, names)


def _listed(proto: onnx.ValueInfoProto, value: ir.Value) -> None:
    """Declare an input, output or initializer a second time, as the source did."""
    kept = value.meta[meta.LISTED]
    if kept:
        proto.ParseFromString(kept)
        kind = proto.type.tensor_type.elem_type
        if value.type is None or kind in {0, int(value.type.dtype)}:
            proto.name = value.name or ""
            return
        proto.Clear()
    write_value(proto, value)


def leftovers(target: Any, kept: Iterable[bytes] | None, used: set[str | None]) -> None:
    """Write declarations about names that the graph did not define, unless it does now."""
    for content in kept or ():
        info = onnx.ValueInfoProto.FromString(content)
        if info.name not in used:
            target.add().CopyFrom(info)


def annotate(proto: onnx.GraphProto, graph: ir.Graph) -> None:
    """Write the quantization annotations, one per value."""
    values = {id(v): v for v in (*graph.inputs, *graph.initializers.values())}
    values |= {id(o): o for node in graph for o in node.outputs if o.meta}
    for value in values.values():
        names = value.meta.get(_QUANT_NAMES) if value.meta else None
        if names:
            target = proto.quantization_annotation.add(tensor_name=value.name)
            for key, content in names.items():
                target.quant_parameter_tensor_names.add(key=key, value=content)
    for kept in graph.meta.get(meta.ANNOTATIONS) or ():
        proto.quantization_annotation.add().MergeFromString(kept)


def write_value(proto: onnx.ValueInfoProto, value: ir.Value) -> None:
    """Declare a value with its type, documentation and metadata."""
    if not value.name:
        raise InvalidModelError("an input, output or declared value has no name")
    proto.name = value.name
    kept = value.meta.get(meta.TYPE) if value.meta else None
    if kept is not None and value.type is None:
        proto.type.ParseFromString(kept)
    else:
        write_type(proto.type, value.type, value.shape)
    if value.doc_string:
        proto.doc_string = value.doc_string
    if value.metadata_props:
        metadata(proto, value.metadata_props)


def write_type(
    proto: onnx.TypeProto, kind: ir.TypeProtocol | None, shape: ir.ShapeProtocol | None
) -> None:
    """Write a type; the shape belongs to the innermost tensor."""
    if kind is None:
        return
    if kind.denotation:
        proto.denotation = kind.denotation
    if isinstance(kind, ir.TensorType):
        _leaf(proto.tensor_type, kind, shape)
    elif isinstance(kind, ir.SparseTensorType):
        _leaf(proto.sparse_tensor_type, kind, shape)
    elif isinstance(kind, ir.SequenceType):
        write_type(proto.sequence_type.elem_type, kind.elem_type, shape)
    elif isinstance(kind, ir.OptionalType):
        write_type(proto.optional_type.elem_type, kind.elem_type, shape)
    else:
        raise InvalidModelError(f"a value has the unknown type {kind}")


def _leaf(proto: Any, kind: ir.TypeProtocol, shape: ir.ShapeProtocol | None) -> None:
    proto.elem_type = int(kind.dtype)
    if shape is None:
        return
    dims = proto.shape.dim
    proto.shape.SetInParent()
    for index, size in enumerate(shape):
        dim = dims.add()
        if isinstance(size, int):
            dim.dim_value = size
        elif size.value is not None:
            dim.dim_param = str(size.value)
        denotation = shape.get_denotation(index)
        if denotation:
            dim.denotation = denotation
