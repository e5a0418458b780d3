"""Serializing an ``ir.Model`` into protobuf classes without the bytes of its large tensors.

``onnx_ir.to_proto`` would read every tensor into memory, declare the type of every initializer
anew, repeat the metadata of tensors on each round trip and drop what it has no class for. What
loading put aside (see :mod:`converter.io.meta`) is put back here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir import serde

from converter.errors import InvalidModelError
from converter.io import meta
from converter.io.legacy import listed_inputs
from converter.io.wire import INLINE_BYTES, new_token

_QUANT_NAMES = "quant_parameter_tensor_names"  # where onnx_ir keeps them in a value's meta
_VALUE_INFO_IN_FUNCTIONS = 10  # first IR version with FunctionProto.value_info
Kind = ir.AttributeType


@dataclass(frozen=True)
class Placed:
    """A tensor of a skeleton whose bytes are not in it.

    Attributes:
        proto: Its placeholder inside the skeleton.
        tensor: The tensor.
        attribute: It is an attribute of a node, not an initializer.
    """

    proto: onnx.TensorProto
    tensor: ir.TensorProtocol
    attribute: bool


@dataclass(frozen=True)
class Skeleton:
    """A serialized model less the bytes of its large tensors.

    Attributes:
        proto: The model. A placeholder has ``data_location = EXTERNAL``, its ``location`` starts
            with ``token``, and its ``length`` is right.
        placed: The placeholders in the order of their numbers.
        token: Random prefix of their locations.
    """

    proto: onnx.ModelProto
    placed: list[Placed]
    token: str


def to_skeleton(model: ir.Model) -> tuple[onnx.ModelProto, list[Placed]]:
    """Serialize a model without the bytes of tensors above 1 KiB; the model is not changed.

    Returns:
        The proto with a placeholder for each large tensor, and those tensors.

    Raises:
        InvalidModelError: The model cannot be expressed as ONNX.
    """
    skeleton = make_skeleton(model)
    return skeleton.proto, skeleton.placed


def make_skeleton(model: ir.Model) -> Skeleton:
    """Serialize like :func:`to_skeleton` and keep the token of the placeholders."""
    writer = _Writer()
    try:
        writer.model(model)
    except (TypeError, ValueError, AttributeError, KeyError, serde.SerdeError) as error:
        raise InvalidModelError(
            f"the model cannot be serialized: {root_cause(error)}",
            hint="the pass that made it is at fault",
        ) from error
    return Skeleton(writer.proto, writer.placed, writer.token)


def root_cause(error: BaseException) -> str:
    """Return the message of the first error in a chain as one line."""
    seen = {id(error)}
    while error.__cause__ is not None and id(error.__cause__) not in seen:
        error = error.__cause__
        seen.add(id(error))
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."


class _Writer:
    def __init__(self) -> None:
        self.proto = onnx.ModelProto()
        self.placed: list[Placed] = []
        self.token = new_token()

    def model(self, model: ir.Model) -> None:
        proto = self.proto
        proto.ir_version = model.ir_version
        for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
            content = getattr(model, name)
            if content:
                setattr(proto, name, content)
        _opsets(proto, model.opset_imports, bare=meta.BARE_IMPORT in model.graph.meta)
        _metadata(proto, model.metadata_props)
        for configuration in model.device_configurations:
            proto.configuration.add().CopyFrom(serde.serialize_model_configuration(configuration))
        self.graph(proto.graph, model.graph, listed_inputs(model))
        declare = model.ir_version >= _VALUE_INFO_IN_FUNCTIONS
        for function in model.functions.values():
            self.function(proto.functions.add(), function, declare=declare)
        _merge(proto, model.graph.meta.get(meta.FIELDS))

    def graph(
        self, proto: onnx.GraphProto, graph: ir.Graph, inputs: Sequence[ir.Value] | None = None
    ) -> None:
        if graph.name:
            proto.name = graph.name
        if graph.doc_string:
            proto.doc_string = graph.doc_string
        for value in graph.inputs if inputs is None else inputs:
            _value(proto.input.add(), value)
        for value in graph.initializers.values():
            if value.const_value is None:
                raise InvalidModelError(f"the initializer {value.name!r} has no tensor")
            self.tensor(proto.initializer.add(), value.const_value, value.name)
        for node in graph:
            self.node(proto.node.add(), node)
        for value in graph.outputs:
            _value(proto.output.add(), value)
        _declare(proto, graph)
        _annotate(proto, graph)
        _metadata(proto, graph.metadata_props)
        _merge(proto, graph.meta.get(meta.GRAPH_FIELDS))

    def function(self, proto: onnx.FunctionProto, function: ir.Function, *, declare: bool) -> None:
        for name in ("domain", "name", "overload", "doc_string"):
            content = getattr(function, name)
            if content:
                setattr(proto, name, content)
        bare = meta.BARE_IMPORT in function.graph.meta
        _opsets(proto, function.opset_imports, bare=bare)
        proto.input.extend([value.name for value in function.inputs])
        proto.output.extend([value.name for value in function.outputs])
        for attribute in function.attributes.values():
            if attribute.value is None:
                proto.attribute.append(attribute.name)
            else:
                self.attribute(proto.attribute_proto.add(), attribute)
        for node in function:
            self.node(proto.node.add(), node)
        values = [*function.inputs, *(o for node in function for o in node.outputs)]
        for value in values if declare else ():
            if _has_facts(value):
                _value(proto.value_info.add(), value)
        store = function.graph.meta
        _leftovers(proto.value_info, store.get(meta.VALUE_INFO), {v.name for v in values})
        _metadata(proto, function.metadata_props)
        _merge(proto, store.get(meta.GRAPH_FIELDS))

    def node(self, proto: onnx.NodeProto, node: ir.Node) -> None:
        proto.op_type = node.op_type
        if node.domain:
            proto.domain = node.domain
        if node.name:
            proto.name = node.name
        if node.overload:
            proto.overload = node.overload
        if node.doc_string:
            proto.doc_string = node.doc_string
        proto.input.extend(["" if v is None else v.name for v in node.inputs])
        outputs = [v.name for v in node.outputs]
        while outputs and outputs[-1] is None:
            outputs.pop()
        proto.output.extend(["" if name is None else name for name in outputs])
        if node.metadata_props:
            _metadata(proto, node.metadata_props)
        for attribute in node.attributes.values():
            self.attribute(proto.attribute.add(), attribute)
        for configuration in node.device_configurations:
            made = serde.serialize_node_device_configuration(configuration)
            proto.device_configurations.add().CopyFrom(made)
        if node.meta:
            _merge(proto, node.meta.get(meta.FIELDS))
            _attribute_types(proto, node)

    def attribute(self, proto: onnx.AttributeProto, attribute: ir.Attr) -> None:
        kind = attribute.type
        proto.name = attribute.name
        proto.type = int(kind)  # type: ignore[assignment]
        if attribute.doc_string:
            proto.doc_string = attribute.doc_string
        if attribute.is_ref():
            proto.ref_attr_name = attribute.ref_attr_name or ""
        elif kind in _PLAIN:
            _PLAIN[kind](proto, attribute.value)
        elif kind in _TENSORS:
            for tensor in _many(attribute.value, many=kind == Kind.TENSORS):
                target = proto.tensors.add() if kind == Kind.TENSORS else proto.t
                self.tensor(target, tensor, tensor.name, attribute=True)
        elif kind in _GRAPHS:
            for graph in _many(attribute.value, many=kind == Kind.GRAPHS):
                self.graph(proto.graphs.add() if kind == Kind.GRAPHS else proto.g, graph)
        else:
            raise InvalidModelError(f"attribute {attribute.name!r} has the type {kind.name}")

    def tensor(
        self,
        proto: onnx.TensorProto,
        tensor: ir.TensorProtocol,
        name: str | None,
        *,
        attribute: bool = False,
    ) -> None:
        """Write a tensor; a large one becomes a placeholder."""
        bulk = tensor.dtype != ir.DataType.STRING and tensor.nbytes > INLINE_BYTES
        if bulk and isinstance(tensor, ir.TensorProtoTensor):
            bulk = tensor.raw.ByteSize() >= tensor.nbytes  # small numbers in a list take less
        if isinstance(tensor, ir.TensorProtoTensor) and not bulk:
            proto.CopyFrom(tensor.raw)
            proto.ClearField("metadata_props")
        else:
            proto.data_type = int(tensor.dtype)
            proto.dims.extend(tensor.shape.numpy())
            if tensor.doc_string:
                proto.doc_string = tensor.doc_string
            if bulk:
                self._place(proto, tensor, attribute=attribute)
            elif tensor.dtype == ir.DataType.STRING:
                proto.string_data.extend(_strings(tensor))
            else:
                proto.raw_data = tensor.tobytes()
        if name:
            proto.name = name
        elif proto.HasField("name"):
            proto.ClearField("name")
        if tensor.metadata_props:
            _metadata(proto, tensor.metadata_props)

    def _place(
        self, proto: onnx.TensorProto, tensor: ir.TensorProtocol, *, attribute: bool
    ) -> None:
        set_external(proto, f"{self.token}{len(self.placed)}", 0, tensor.nbytes)
        self.placed.append(Placed(proto, tensor, attribute))


def set_external(proto: onnx.TensorProto, location: str, offset: int, nbytes: int) -> None:
    """Let a tensor say that its bytes are elsewhere."""
    proto.ClearField("external_data")
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, content in (("location", location), ("offset", offset), ("length", nbytes)):
        proto.external_data.add(key=key, value=str(content))


def _strings(tensor: ir.TensorProtocol) -> list[bytes]:
    if isinstance(tensor, ir.StringTensor):
        items: Iterable[Any] = tensor.string_data()
    else:
        items = tensor.numpy().reshape(-1).tolist()
    return [item if isinstance(item, bytes) else str(item).encode() for item in items]


def _many(content: Any, *, many: bool) -> list[Any]:
    return list(content) if many else [content]


def _set_string(proto: onnx.AttributeProto, content: str | bytes) -> None:
    proto.s = content if isinstance(content, bytes) else content.encode()


def _set_strings(proto: onnx.AttributeProto, content: Iterable[str | bytes]) -> None:
    proto.strings.extend([s if isinstance(s, bytes) else s.encode() for s in content])


def _set_types(proto: onnx.AttributeProto, content: Iterable[ir.TypeAndShape]) -> None:
    for one in content:
        _type(proto.type_protos.add(), one.type, one.shape)


_PLAIN: dict[ir.AttributeType, Callable[[onnx.AttributeProto, Any], None]] = {
    Kind.INT: lambda proto, content: setattr(proto, "i", content),
    Kind.FLOAT: lambda proto, content: setattr(proto, "f", content),
    Kind.STRING: _set_string,
    Kind.INTS: lambda proto, content: proto.ints.extend(content),
    Kind.FLOATS: lambda proto, content: proto.floats.extend(content),
    Kind.STRINGS: _set_strings,
    Kind.TYPE_PROTO: lambda proto, content: _type(proto.tp, content.type, content.shape),
    Kind.TYPE_PROTOS: _set_types,
}
_TENSORS = {Kind.TENSOR, Kind.TENSORS}
_GRAPHS = {Kind.GRAPH, Kind.GRAPHS}


def _attribute_types(proto: onnx.NodeProto, node: ir.Node) -> None:
    """Put back the types in attributes that the IR has no class for."""
    for attribute in proto.attribute:
        kept = node.meta.get(meta.ATTRIBUTE_TYPE + attribute.name)
        if kept is not None:
            attribute.tp.ParseFromString(kept)


def _merge(proto: Any, fields: bytes | None) -> None:
    if fields:
        proto.MergeFromString(fields)


def _opsets(
    proto: onnx.ModelProto | onnx.FunctionProto, imports: Mapping[str, int], *, bare: bool
) -> None:
    for domain, version in imports.items():
        if bare and not domain:
            proto.opset_import.add(version=version)
        else:
            proto.opset_import.add(domain=domain, version=version)


def _metadata(proto: Any, entries: Mapping[str, str]) -> None:
    for key, content in entries.items():
        proto.metadata_props.add(key=key, value=content)


def _has_facts(value: ir.Value) -> bool:
    """Tell whether there is anything to declare about a value."""
    if not value.name:
        return False
    known = value.type is not None or value.shape is not None
    if known or value.metadata_props or value.doc_string:
        return True
    return meta.TYPE in value.meta or meta.LISTED in value.meta


def _declare(proto: onnx.GraphProto, graph: ir.Graph) -> None:
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
            if id(value) not in done and _has_facts(value):
                _value(proto.value_info.add(), value)
    if rest:
        names = {v.name for v in listed} | {o.name for node in graph for o in node.outputs}
        _leftovers(proto.value_info, rest, names)


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
    _value(proto, value)


def _leftovers(target: Any, kept: Iterable[bytes] | None, used: set[str | None]) -> None:
    """Write declarations about names that the graph did not define, unless it does now."""
    for content in kept or ():
        info = onnx.ValueInfoProto.FromString(content)
        if info.name not in used:
            target.add().CopyFrom(info)


def _annotate(proto: onnx.GraphProto, graph: ir.Graph) -> None:
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


def _value(proto: onnx.ValueInfoProto, value: ir.Value) -> None:
    if not value.name:
        raise InvalidModelError("an input, output or declared value has no name")
    proto.name = value.name
    kept = value.meta.get(meta.TYPE) if value.meta else None
    if kept is not None and value.type is None:
        proto.type.ParseFromString(kept)
    else:
        _type(proto.type, value.type, value.shape)
    if value.doc_string:
        proto.doc_string = value.doc_string
    if value.metadata_props:
        _metadata(proto, value.metadata_props)


def _type(
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
        _type(proto.sequence_type.elem_type, kind.elem_type, shape)
    elif isinstance(kind, ir.OptionalType):
        _type(proto.optional_type.elem_type, kind.elem_type, shape)
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
