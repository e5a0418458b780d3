"""``deduplicate``: one copy of equal constants and of equal computations."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from converter.core.graph import is_op
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
    """Turn Constant nodes of the main graph into initializers, which need no node."""
    graph = work.model.graph
    if not work.free_initializers:
        return
    for node in list(graph):
        if not is_op(node, "Constant") or not work.alive(node) or node not in work.selection:
            continue
        tensor = _constant_tensor(node)
        value = node.outputs[0]
        if tensor is None or value.is_graph_output() or not value.name:
            continue
        if value.name in graph.initializers:
            continue
        _lift(work, node, tensor)
        work.counts["constants_lifted"] += 1
    work.finish()


def _lift(work: Work, node: ir.Node, tensor: ir.TensorProtocol) -> None:
    old, graph = node.outputs[0], work.model.graph
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
    """Merge equal nodes of one graph in order, so that merged inputs make more nodes equal."""
    for graph in work.scopes:
        seen: dict[tuple[Any, ...], ir.Node] = {}
        for node in graph:
            if not work.alive(node) or not node.outputs or not is_repeatable(node):
                continue
            if node.op_type in work.redefined:
                continue
            key = _key(node)
            first = seen.get(key) if key is not None else None
            if key is None or node not in work.selection:
                continue
            if first is None:
                seen[key] = node
            elif _merge_node(work, node, first):
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


def _key(node: ir.Node) -> tuple[Any, ...] | None:
    """Return what makes two nodes compute the same; None: too expensive or unclear."""
    parts: list[Any] = [node.domain, node.op_type, len(node.outputs)]
    parts.append(tuple(bool(output.name) for output in node.outputs))
    parts.append(tuple(id(value) if value is not None else 0 for value in node.inputs))
    for name, attribute in sorted(node.attributes.items()):
        content = _attribute_key(attribute)
        if content is None:
            return None
        parts.append((name, attribute.type, content))
    return tuple(parts)


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
