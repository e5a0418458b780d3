"""``deduplicate``: one copy of equal constants and of equal computations."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from converter.core.graph import DEFAULT_DOMAINS, is_op, subgraphs
from converter.core.tensors import FileTensor, chunks, little_endian
from passes.rewriting import sizes
from passes.rewriting.purity import is_repeatable
from passes.rewriting.rename import renamed
from passes.rewriting.rewrite import Rewrite
from passes.rewriting.work import Work

_HEAD_BYTES = 1024
_CAPTURE_FROM = 128  # smaller constants of inner graphs are not worth a captured name


@dataclass(frozen=True)
class Deduplicate(Rewrite):
    """Keep one copy of equal constants and of equal nodes with equal inputs.

    Constants are equal when type, shape and every byte are. Nodes are merged when the ONNX
    specification defines them as functions of their inputs: never random ones, never ones with
    sub-graphs, never operators of unknown domains.
    """

    name: ClassVar[str] = "deduplicate"
    summary: ClassVar[str] = "keep one copy of equal constants and of equal computations"

    def rewrite(self, work: Work) -> None:
        """Merge what is equal."""
        deduplicate(work)


def deduplicate(work: Work) -> None:
    """Merge what is equal; the body of the pass, used by ``simplify`` too."""
    _lift_constants(work)
    if not work.selection.include:
        _merge_constants(work)
    _merge_nodes(work)
    work.finish()


# Constants


def _lift_constants(work: Work) -> None:
    """Turn Constant nodes into initializers, which need no node; functions cannot have any."""
    if not work.free_initializers:
        return
    for graph, scope in work.scopes.items():
        if scope.in_function:
            continue
        for node in list(graph):
            if is_op(node, "Constant") and work.alive(node) and node in work.selection:
                _lift_node(work, graph, node)
    work.finish()


def _lift_node(work: Work, graph: ir.Graph, node: ir.Node) -> None:
    tensor = _constant_tensor(node)
    value = node.outputs[0]
    if tensor is None or value.is_graph_output() or not value.name:
        return
    if value.name in graph.initializers:
        return
    _lift(work, graph, node, tensor)
    work.counts["constants_lifted"] += 1


def _lift(work: Work, graph: ir.Graph, node: ir.Node, tensor: ir.TensorProtocol) -> None:
    old = node.outputs[0]
    name = old.name
    assert name is not None
    old.name = None
    tensor = renamed(tensor, name)
    new = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        doc_string=old.doc_string,
        const_value=tensor,
    )
    new.metadata_props.update(old.metadata_props)
    graph.register_initializer(new)
    work.saved -= sizes.new_constant_bytes(0, len(tensor.shape), name)
    ir.convenience.replace_all_uses_with(old, new)
    work.discard(node)


_MAKERS: dict[str, Any] = {
    "value": lambda a: a.as_tensor(),
    "value_int": lambda a: ir.tensor(a.as_int(), ir.DataType.INT64),
    "value_ints": lambda a: ir.tensor(list(a.as_ints()), ir.DataType.INT64),
    "value_float": lambda a: ir.tensor(a.as_float(), ir.DataType.FLOAT),
    "value_floats": lambda a: ir.tensor(list(a.as_floats()), ir.DataType.FLOAT),
}


def _constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    if len(node.attributes) != 1:
        return None
    ((name, attribute),) = node.attributes.items()
    if attribute.is_ref() or name not in _MAKERS:
        return None
    tensor: ir.TensorProtocol = _MAKERS[name](attribute)
    return tensor if tensor.dtype != ir.DataType.STRING else None


def _merge_constants(work: Work) -> None:
    """Redirect equal initializers to the first one that their users can see."""
    groups: dict[tuple[Any, ...], list[ir.Value]] = {}
    for graph, scope in work.scopes.items():
        if scope.in_function:
            continue
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or value.is_graph_input() or tensor.dtype == ir.DataType.STRING:
                continue
            key = (tensor.dtype, tuple(tensor.shape.numpy()))
            groups.setdefault(key, []).append(value)
    for group in groups.values():
        for same in _split(group, _head):
            for equal in _split(same, _digest):
                _merge(work, equal)


def _split(group: list[ir.Value], key: Any) -> list[list[ir.Value]]:
    """Split by a key that is computed only where there is something to compare with."""
    if len(group) < 2:
        return []
    if all(value.const_value is group[0].const_value for value in group):
        return [group]
    parts: dict[bytes, list[ir.Value]] = {}
    for value in group:
        parts.setdefault(key(value.const_value), []).append(value)
    return [part for part in parts.values() if len(part) > 1]


def _head(tensor: ir.TensorProtocol) -> bytes:
    """Return the first bytes, or all of a small tensor, without reading the rest of a large one."""
    if isinstance(tensor, FileTensor):
        return tensor.handle.read(tensor.offset, min(_HEAD_BYTES, tensor.nbytes))
    if tensor.nbytes <= _HEAD_BYTES:
        return tensor.tobytes()
    for _, chunk in chunks(tensor, _HEAD_BYTES):
        return little_endian(chunk)[:_HEAD_BYTES]
    return b""


def _digest(tensor: ir.TensorProtocol) -> bytes:
    if tensor.nbytes <= _HEAD_BYTES:
        return _head(tensor)
    hasher = hashlib.blake2b(digest_size=32)
    for _, chunk in chunks(tensor):
        hasher.update(little_endian(chunk))
    return hasher.digest()


def _merge(work: Work, equal: list[ir.Value]) -> None:
    kept: list[ir.Value] = []
    for value in equal:
        first = next((k for k in kept[:4] if _visible(work, k, value)), None)
        if first is None or value.is_graph_output() or not work.redirect(value, first):
            kept.append(value)
            continue
        work.drop_initializer(value)
        work.counts["constants_merged"] += 1


def _visible(work: Work, kept: ir.Value, value: ir.Value) -> bool:
    """Tell whether users of ``value`` may read ``kept``."""
    home, other = kept.graph, value.graph
    if home is other:
        return True
    assert isinstance(other, ir.Graph)
    tensor = value.const_value
    large = tensor is not None and tensor.nbytes >= _CAPTURE_FROM
    return large and any(parent is home for parent in work.scopes[other].parents)


# Nodes


def _merge_nodes(work: Work) -> None:
    """Merge equal nodes in order, so that merged inputs make more nodes equal.

    A node of an inner graph may merge with one that was computed before it in a graph around it.
    """
    roots = [graph for graph, scope in work.scopes.items() if not scope.parents]
    for root in roots:
        layers: list[Seen] = [{}]
        # Nodes to come of the graphs that are being walked, outermost first.
        stack: list[Iterator[ir.Node]] = [iter(list(root))]
        while stack:
            node = next(stack[-1], None)
            if node is None:
                stack.pop()
                layers.pop()
                continue
            if not work.alive(node):
                continue
            _merge_with_seen(work, node, layers)
            for graph in reversed(list(subgraphs(node))):
                stack.append(iter(list(graph)))
                layers.append({})


Seen = dict[tuple[Any, ...], ir.Node]


def _merge_with_seen(work: Work, node: ir.Node, layers: list[Seen]) -> None:
    if not node.outputs or not is_repeatable(node) or node.op_type in work.redefined:
        return
    if node not in work.selection:
        return
    key = _key(node, work)
    if key is None:
        return
    found = (layer.get(key) for layer in reversed(layers))
    # A node that was seen may have gone since then, with its last user.
    first = next((n for n in found if n is not None and work.alive(n)), None)
    if first is None or not _merge_node(work, node, first):
        layers[-1][key] = node if first is None else layers[-1].get(key, node)
    else:
        work.counts["nodes_merged"] += 1


def _merge_node(work: Work, node: ir.Node, first: ir.Node) -> bool:
    pairs = list(zip(node.outputs, first.outputs, strict=True))
    if any(_is_used(old) and (not new.name or _clash(old, new)) for old, new in pairs):
        return False
    for old, new in pairs:
        if _is_used(old) and not work.redirect(old, new):
            # Outputs that moved already compute the same; the node stays for the others.
            return False
    work.discard(node)
    return True


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _clash(old: ir.Value, new: ir.Value) -> bool:
    """Tell whether both are public, so that neither name can go."""
    return old.is_graph_output() and new.is_graph_output()


_COMMUTATIVE = frozenset(
    {"Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Mul", "Or", "Xor"}
)
"""Operators that give the same bits for operands in either order."""
_MERGED_BY_CONTENT = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})


def _key(node: ir.Node, work: Work) -> tuple[Any, ...] | None:
    """Return what makes two nodes compute the same; None: too expensive or unclear."""
    content = _content_key(node, work)
    if content is not None:
        return content
    parts: list[Any] = [node.domain, node.op_type, len(node.outputs)]
    parts.append(tuple(bool(output.name) for output in node.outputs))
    inputs = [id(value) if value is not None else 0 for value in node.inputs]
    if node.op_type in _COMMUTATIVE and len(inputs) == 2:
        inputs.sort()
    parts.append(tuple(inputs))
    for name, attribute in sorted(node.attributes.items()):
        content = _attribute_key(attribute)
        if content is None:
            return None
        parts.append((name, attribute.type, content))
    return tuple(parts)


def _content_key(node: ir.Node, work: Work) -> tuple[Any, ...] | None:
    """Return the elements of a shape vector: however two nodes come to them, they are equal."""
    if len(node.outputs) != 1 or node.domain not in DEFAULT_DOMAINS or node.op_type == "Constant":
        return None
    fact = work.facts.of(node.outputs[0])
    if fact.content is None or fact.dims is None or fact.dtype not in _MERGED_BY_CONTENT:
        return None
    # An unknown size is one object per expression.
    return ("content", fact.dtype, len(fact.dims), fact.content)


def _attribute_key(attribute: ir.Attr) -> Any:
    """Return the attribute's content; floats by their bits, because 0.0 == -0.0."""
    if attribute.is_ref():
        return ("ref", attribute.ref_attr_name)
    made = _ATTRIBUTE_KEYS.get(attribute.type)
    return None if made is None else made(attribute)


def _tensor_key(attribute: ir.Attr) -> Any:
    tensor = attribute.as_tensor()
    if tensor.dtype == ir.DataType.STRING:
        return None
    return (tensor.dtype, tuple(tensor.shape.numpy()), _digest(tensor))


_ATTRIBUTE_KEYS: dict[ir.AttributeType, Callable[[ir.Attr], Any]] = {
    ir.AttributeType.FLOAT: lambda a: struct.pack("<d", a.as_float()),
    ir.AttributeType.FLOATS: lambda a: struct.pack(f"<{len(a.as_floats())}d", *a.as_floats()),
    ir.AttributeType.INT: lambda a: a.value,
    ir.AttributeType.INTS: lambda a: tuple(a.value),
    ir.AttributeType.STRING: lambda a: a.value,
    ir.AttributeType.STRINGS: lambda a: tuple(a.value),
    ir.AttributeType.TENSOR: _tensor_key,
}
