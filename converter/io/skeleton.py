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
from converter.io.skeleton_values import (
    annotate,
    declare,
    has_facts,
    leftovers,
    metadata,
    write_type,
    write_value,
)
from converter.io.sparse import SparseTensor
from converter.io.wire import INLINE_BYTES, new_token

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
        metadata(proto, model.metadata_props)
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
            write_value(proto.input.add(), value)
        for value in graph.initializers.values():
            if value.const_value is None:
                raise InvalidModelError(f"the initializer {value.name!r} has no tensor")
            if isinstance(value.const_value, SparseTensor):
                self.sparse(proto.sparse_initializer.add(), value.const_value, value.name)
            else:
                self.tensor(proto.initializer.add(), value.const_value, value.name)
        for node in graph:
            self.node(proto.node.add(), node)
        for value in graph.outputs:
            write_value(proto.output.add(), value)
        declare(proto, graph)
        annotate(proto, graph)
        metadata(proto, graph.metadata_props)
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
            if has_facts(value):
                write_value(proto.value_info.add(), value)
        store = function.graph.meta
        leftovers(proto.value_info, store.get(meta.VALUE_INFO), {v.name for v in values})
        metadata(proto, function.metadata_props)
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
            metadata(proto, node.metadata_props)
        for attribute in node.attributes.values():
            self.attribute(proto.attribute.add(), attribute, sparse=node.op_type == "Constant")
        for configuration in node.device_configurations:
            made = serde.serialize_node_device_configuration(configuration)
            proto.device_configurations.add().CopyFrom(made)
        if node.meta:
            _merge(proto, node.meta.get(meta.FIELDS))
            _attribute_types(proto, node)

    def attribute(
        self, proto: onnx.AttributeProto, attribute: ir.Attr, *, sparse: bool = False
    ) -> None:
        kind = attribute.type
        proto.name = attribute.name
        proto.type = int(kind)  # type: ignore[assignment]
        if attribute.doc_string:
            proto.doc_string = attribute.doc_string
        if attribute.is_ref():
            proto.ref_attr_name = attribute.ref_attr_name or ""
        elif kind in _PLAIN:
            _PLAIN[kind](proto, attribute.value)
        elif sparse and attribute.name == "value" and isinstance(attribute.value, SparseTensor):
            proto.name, proto.type = attribute.value.attribute, onnx.AttributeProto.SPARSE_TENSOR
            self.sparse(proto.sparse_tensor, attribute.value, attribute.value.name)
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
            metadata(proto, tensor.metadata_props)

    def sparse(self, proto: onnx.SparseTensorProto, tensor: SparseTensor, name: str | None) -> None:
        """Write a tensor as sparse as it was read."""
        self.tensor(proto.values, tensor.values, name, attribute=True)
        self.tensor(proto.indices, tensor.indices, tensor.indices.name, attribute=True)
        proto.dims.extend(tensor.shape.numpy())

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
        write_type(proto.type_protos.add(), one.type, one.shape)


_PLAIN: dict[ir.AttributeType, Callable[[onnx.AttributeProto, Any], None]] = {
    Kind.INT: lambda proto, content: setattr(proto, "i", content),
    Kind.FLOAT: lambda proto, content: setattr(proto, "f", content),
    Kind.STRING: _set_string,
    Kind.INTS: lambda proto, content: proto.ints.extend(content),
    Kind.FLOATS: lambda proto, content: proto.floats.extend(content),
    Kind.STRINGS: _set_strings,
    Kind.TYPE_PROTO: lambda proto, content: write_type(proto.tp, content.type, content.shape),
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
