"""The part of the conversion that runs in a child process: one node at a time, without weights.

Each node whose definition differs between two versions becomes a model of its own, with the types
and ranks that follow from the whole model and with small constants. That model is converted by the
onnx package. So the converter of onnx, which breaks names, inner graphs, functions and operators
that it does not know, never sees any of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from passes.opset import definitions
from passes.opset.steps import IR_VERSION, UNCHANGED, stepwise

SMALL = 1024
"""Constants of up to so many elements are shown to the converter."""
_BODIES = {"If": 1, "Loop": 1, "Scan": 9, "SequenceMap": 17}
"""Operators with inner graphs: since when a newer definition only allows more types."""


@dataclass
class _Scope:
    """Types and constants by name, inner graphs see those around them."""

    types: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)

    def inner(self, graph: Any) -> _Scope:
        scope = _Scope(dict(self.types), dict(self.constants))
        for info in (*graph.input, *graph.value_info, *graph.output):
            scope.types[info.name] = info.type
            scope.constants.pop(info.name, None)
        for tensor in graph.initializer:
            scope.add(tensor.name, tensor)
        for info in graph.input:  # callers may override it
            scope.constants.pop(info.name, None)
        for node in graph.node:
            if node.op_type == "Constant" and node.domain in {"", "ai.onnx"}:
                for attribute in node.attribute:
                    if attribute.name == "value":
                        scope.add(node.output[0], attribute.t)
        return scope

    def add(self, name: str, tensor: Any) -> None:
        import onnx

        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            self.constants[name] = tensor
        self.types[name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))


def convert_model(data: bytes, version: int, target: int) -> dict[str, dict[str, Any]]:
    """Convert every node whose definition changes.

    Args:
        data: The model without its weights.
        version: Its version of the default operator set.
        target: The version to convert to.

    Returns:
        ``nodes``: by the position of the node in the order of :func:`walk`, a converted model of
        one node, or the reason why there is none; nodes that stay as they are are left out.
        ``functions``: by position, why a function cannot stay as it is.
    """
    import onnx

    model = onnx.ModelProto.FromString(data)
    own = {(function.domain, function.name) for function in model.functions}
    functions: dict[str, str] = {}
    for index, function in enumerate(model.functions):
        reason = _blocks(function, own, target)
        if reason:
            functions[str(index)] = reason
    if functions:
        return {"nodes": {}, "functions": functions}
    typed = _with_types(model)
    done: dict[bytes, bytes | str] = {}
    nodes: dict[str, Any] = {}
    for position, (node, scope) in enumerate(walk(typed.graph, _Scope().inner(typed.graph))):
        if not _changes(node, version, target):
            continue
        result = _convert(node, scope, version, target, done)
        if result != UNCHANGED:
            nodes[str(position)] = result
    return {"nodes": nodes, "functions": functions}


def _changes(node: Any, version: int, target: int) -> bool:
    standard = node.domain in {"", "ai.onnx"}
    return standard and not definitions.is_same(node.op_type, version, target)


def _blocks(function: Any, own: set[tuple[str, str]], target: int) -> str:
    """Say why a function would mean something else at the target; "" when it would not."""
    imports = {entry.domain: entry.version for entry in function.opset_import}
    version = imports.get("", imports.get("ai.onnx"))
    if version is None or version == target:
        return ""
    done: dict[bytes, bytes | str] = {}
    for node, _ in walk(function):
        if (node.domain, node.op_type) in own or not _changes(node, version, target):
            continue
        if not _keeps_references(node, version, target):
            return f"{node.op_type} takes an attribute from it that changes"
        if _convert(_without_references(node), _Scope(), version, target, done) != UNCHANGED:
            return f"its node {node.op_type} changes with the opset"
    return ""


def _keeps_references(node: Any, version: int, target: int) -> bool:
    """Tell whether attributes that a function passes on mean the same in both versions."""
    before, after = (
        definitions.schema(node.op_type, version),
        definitions.schema(node.op_type, target),
    )
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            continue
        if before is None or after is None:
            return False
        old, new = before.attributes.get(attribute.name), after.attributes.get(attribute.name)
        if old is None or new is None or old.type != new.type:
            return False
        if old.default_value.SerializeToString() != new.default_value.SerializeToString():
            return False
    return True


def _without_references(node: Any) -> Any:
    twin = type(node).FromString(node.SerializeToString())
    kept = [attribute for attribute in twin.attribute if not attribute.ref_attr_name]
    twin.ClearField("attribute")
    twin.attribute.extend(kept)
    return twin


def walk(graph: Any, scope: Any = None) -> Iterator[tuple[Any, Any]]:
    """Yield every node with its scope; a node comes before those of its inner graphs."""
    for node in graph.node:
        yield node, scope
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from walk(inner, None if scope is None else scope.inner(inner))


def _with_types(model: Any) -> Any:
    """Infer types and ranks; declared shapes do not count, because files carry stale ones."""
    import onnx

    _forget_shapes(model.graph, inputs=False)
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # noqa: BLE001 - anything may come out of native code; types are then fewer
        return model


def _forget_shapes(graph: Any, *, inputs: bool) -> None:
    for info in (*graph.value_info, *graph.output, *(graph.input if inputs else ())):
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _forget_shapes(inner, inputs=True)


def _convert(
    node: Any, scope: _Scope, version: int, target: int, done: dict[bytes, bytes | str]
) -> bytes | str:
    """Convert one node; returns the model, or a reason, or :data:`UNCHANGED`."""
    if not definitions.known(node.op_type, version):
        return f"opset {version} has no operator {node.op_type}"
    least = _BODIES.get(node.op_type)
    if least is not None:
        fits = min(version, target) >= least and definitions.schema(node.op_type, target)
        return UNCHANGED if fits else f"{node.op_type} of opset {version} has no equal in {target}"
    if any(attribute.ref_attr_name for attribute in node.attribute):
        return "it takes an attribute from a function"
    fragment, typed = _fragment(node, scope, version)
    key = fragment.SerializeToString(deterministic=True)
    if key not in done:
        done[key] = stepwise(fragment, version, target, typed=typed)
    return done[key]


def _fragment(node: Any, scope: _Scope, version: int) -> tuple[Any, bool]:
    """Make a model of one node, with names that depend on positions alone."""
    import onnx

    copy = onnx.NodeProto.FromString(node.SerializeToString())
    copy.name, copy.doc_string = "node", ""
    copy.ClearField("metadata_props")
    names: dict[str, str] = {"": ""}
    graph = onnx.GraphProto(name="fragment")
    typed = True
    for index, name in enumerate(node.input):
        if name not in names:
            names[name] = f"i{index}"
            typed &= _declare(graph, names[name], name, scope)
        copy.input[index] = names[name]
    for index, name in enumerate(node.output):
        copy.output[index] = f"o{index}" if name else ""
        kind = scope.types.get(name)
        if name and kind is not None and kind.WhichOneof("value"):
            graph.output.add(name=f"o{index}").type.CopyFrom(_flat(kind))
    if not graph.output:
        graph.output.add(name="o0").type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        typed = False
    graph.node.append(copy)
    opsets = [onnx.helper.make_opsetid("", version)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), typed


def _declare(graph: Any, new: str, name: str, scope: _Scope) -> bool:
    """Declare an input of the fragment; returns whether its type is known."""
    import onnx

    tensor = scope.constants.get(name)
    if tensor is not None and _size(tensor) <= SMALL:
        twin = graph.initializer.add()
        twin.CopyFrom(tensor)
        twin.name = new
        return True
    info = graph.input.add(name=new)
    kind = scope.types.get(name)
    if kind is None or not kind.WhichOneof("value"):
        info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        return False
    info.type.CopyFrom(kind)
    return True


def _flat(kind: Any) -> Any:
    """Return a type without its shape, which may be too bold a guess for an output."""
    twin = type(kind).FromString(kind.SerializeToString())
    if twin.HasField("tensor_type"):
        twin.tensor_type.ClearField("shape")
    return twin


def _size(tensor: Any) -> int:
    size = 1
    for dim in tensor.dims:
        size *= dim
    return size
