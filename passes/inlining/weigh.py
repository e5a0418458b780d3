"""How many bytes nodes take in the file, to tell whether inlining makes it smaller.

Everything but tensors is counted to the byte; tensors count alike on both sides of the comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import onnx_ir as ir

_TENSOR_FRAME = 16
_DIM = 12
_NUMBER = 10


def nodes_bytes(nodes: Iterable[ir.Node]) -> int:
    """Return the bytes of the nodes as fields of a graph or function."""
    return sum(_framed(_node(node)) for node in nodes)


def definition_bytes(function: ir.Function) -> int:
    """Return at most the bytes that go away with the definition of a function."""
    graph = function.graph
    size = nodes_bytes(graph)
    for name in (function.name, function.domain, function.overload):
        size += _framed(len(name.encode()))
    for value in (*graph.inputs, *graph.outputs):
        size += _text(value.name)
    for domain in function.opset_imports:
        size += 4 + len(domain.encode())
    return size + sum(_text(name) for name in function.attributes)


def declared_bytes(nodes: Iterable[ir.Node]) -> int:
    """Return at least what the declared types of the nodes' outputs take in a graph."""
    size = 0
    for node in nodes:
        for value in node.outputs:
            if value.type is not None:
                dims = len(value.shape) if value.shape is not None else 0
                size += _text(value.name) + 16 + _DIM * dims
    return size


def _framed(size: int) -> int:
    """A field of this length with its tag and length."""
    return 1 + _varint(size) + size


def _varint(number: int) -> int:
    return max(1, (number.bit_length() + 6) // 7)


def _text(text: str | None) -> int:
    return _framed(len((text or "").encode()))


def _node(node: ir.Node) -> int:
    size = sum(_text(value.name if value is not None else "") for value in node.inputs)
    size += sum(_text(value.name) for value in node.outputs)
    size += sum(_text(t) for t in (node.name, node.op_type, node.domain, node.overload) if t)
    size += _text(node.doc_string) if node.doc_string else 0
    size += _properties(node.metadata_props)
    return size + sum(_framed(_attribute(a)) for a in node.attributes.values())


def _properties(entries: Mapping[str, str]) -> int:
    return sum(_framed(_text(k) + _text(v)) for k, v in entries.items())


def _attribute(attribute: ir.Attr) -> int:
    size = _text(attribute.name) + 3
    size += _text(attribute.doc_string) if attribute.doc_string else 0
    if attribute.is_ref():
        return size + _text(attribute.ref_attr_name)
    weigh = _VALUES.get(attribute.type)
    return size + (weigh(attribute.value) if weigh is not None else 0)


def _tensor(tensor: ir.TensorProtocol) -> int:
    size = tensor.nbytes + _text(tensor.name) + _TENSOR_FRAME
    return _framed(size + sum(1 + _varint(d) for d in tensor.shape.numpy()))


def _graph(graph: ir.Graph) -> int:
    size = nodes_bytes(graph) + _text(graph.name) + declared_bytes(graph)
    for value in (*graph.inputs, *graph.outputs):
        size += _text(value.name) + 16 + _DIM * (len(value.shape) if value.shape is not None else 0)
    for value in graph.initializers.values():
        if value.const_value is not None:
            size += _tensor(value.const_value) + len((value.name or "").encode())
    return _framed(size)


_Kind = ir.AttributeType
_VALUES: dict[ir.AttributeType, Callable[[Any], int]] = {
    _Kind.INT: lambda v: _NUMBER if v < 0 else 1 + _varint(v),
    _Kind.FLOAT: lambda _: 5,
    _Kind.STRING: lambda v: _framed(len(v.encode() if isinstance(v, str) else v)),
    _Kind.INTS: lambda v: sum(1 + _NUMBER if i < 0 else 1 + _varint(i) for i in v),
    _Kind.FLOATS: lambda v: 5 * len(v),
    _Kind.STRINGS: lambda v: sum(_framed(len(s.encode() if isinstance(s, str) else s)) for s in v),
    _Kind.TENSOR: _tensor,
    _Kind.TENSORS: lambda v: sum(_tensor(t) for t in v),
    _Kind.GRAPH: _graph,
    _Kind.GRAPHS: lambda v: sum(_graph(g) for g in v),
}
