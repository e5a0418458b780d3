"""Making a parsed skeleton fit the IR, and putting aside what the IR has no place for.

Between parsing and ``onnx_ir.from_proto``, :class:`Adapter` changes the proto: sparse tensors
become lazy dense ones, repeated node names unique, attribute types that old files omit are filled
in. What the IR would lose is written into the metadata of the object it belongs to, under a random
key, and moved from there to the object's ``meta`` store afterwards (see :mod:`converter.io.meta`).
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir

from converter.core.graph import graphs
from converter.errors import InvalidModelError
from converter.io import meta
from converter.io.bulk import Bulk
from converter.io.limits import quoted
from converter.io.unknown import messages, unknown_bytes

_SET_FIELDS = (
    ("f", onnx.AttributeProto.FLOAT),
    ("i", onnx.AttributeProto.INT),
    ("s", onnx.AttributeProto.STRING),
    ("t", onnx.AttributeProto.TENSOR),
    ("g", onnx.AttributeProto.GRAPH),
    ("sparse_tensor", onnx.AttributeProto.SPARSE_TENSOR),
    ("tp", onnx.AttributeProto.TYPE_PROTO),
)
_SET_LISTS = (
    ("floats", onnx.AttributeProto.FLOATS),
    ("ints", onnx.AttributeProto.INTS),
    ("strings", onnx.AttributeProto.STRINGS),
    ("tensors", onnx.AttributeProto.TENSORS),
    ("graphs", onnx.AttributeProto.GRAPHS),
    ("sparse_tensors", onnx.AttributeProto.SPARSE_TENSORS),
    ("type_protos", onnx.AttributeProto.TYPE_PROTOS),
)
_SPARSE_NAMES = ("sparse_value", "value")  # onnxruntime takes both
_HANDLERS: dict[int, str] = {
    onnx.AttributeProto.TENSOR: "_tensor_attribute",
    onnx.AttributeProto.TENSORS: "_tensor_attribute",
    onnx.AttributeProto.GRAPH: "_graph_attribute",
    onnx.AttributeProto.GRAPHS: "_graph_attribute",
    onnx.AttributeProto.STRINGS: "_strings_attribute",
    onnx.AttributeProto.SPARSE_TENSOR: "_sparse_attribute",
    onnx.AttributeProto.SPARSE_TENSORS: "_sparse_attribute",
    onnx.AttributeProto.TYPE_PROTO: "_type_attribute",
    onnx.AttributeProto.TYPE_PROTOS: "_type_attribute",
}


class Adapter:
    """Adapts one model.

    Args:
        bulk: Where the bytes of tensors come from that the proto does not hold.

    Attributes:
        notes: What had to be changed, for the report.
    """

    def __init__(self, bulk: Bulk) -> None:
        self._bulk = bulk
        self._token = f"converter:{secrets.token_hex(16)}:"
        self._stashed = False
        self.notes: list[str] = []

    def prepare(self, proto: onnx.ModelProto) -> None:
        """Change a validated proto so that ``onnx_ir.from_proto`` loses nothing of it.

        Raises:
            InvalidModelError: Something in it can neither be represented nor kept.
            ModelError: External data is missing or not where it may be.
            LimitExceededError: Its tensors are larger than the limits in force.
        """
        kept = onnx.ModelProto()
        if proto.training_info:
            kept.training_info.extend(proto.training_info)
            _check_training(proto)
            self.notes.append("training information is kept as it was; no pass adapts it")
        fields = kept.SerializeToString() + self._unknown(proto)
        self._opsets(proto)
        self._graph(proto.graph)
        self._bare_import(proto, proto.graph)
        if fields:
            self._stash(proto.graph, meta.FIELDS, fields)
        for function in proto.functions:
            self._bare_import(function, function)
            self._function(function)

    def settle(self, model: ir.Model) -> None:
        """Put the tensors and everything put aside into the IR."""
        for graph in graphs(model):
            self._settle_graph(graph)
        for function in model.functions.values():
            for attribute in list(function.attributes.values()):
                changed = self._settled(attribute)
                if changed is not None:
                    function.attributes[attribute.name] = changed
        if self._stashed:
            for graph in graphs(model):
                self._unstash_graph(graph)

    # --- putting aside -------------------------------------------------------------------------

    def _stash(self, proto: Any, key: str, content: bytes) -> None:
        self._stashed = True
        proto.metadata_props.add(key=self._token + key, value=content.decode("latin-1"))

    def _unstash_graph(self, graph: ir.Graph) -> None:
        self._unstash(graph)
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            self._unstash(value)
        for node in graph:
            self._unstash(node)
            for value in node.outputs:
                self._unstash(value)

    def _unstash(self, owner: Any) -> None:
        keys = [key for key in owner.metadata_props if key.startswith(self._token)]
        for key in keys:
            content = owner.metadata_props.pop(key).encode("latin-1")
            name = key[len(self._token) :]
            base, _, number = name.partition("#")
            if number:
                owner.meta[base] = (*owner.meta.get(base, ()), content)
            else:
                owner.meta[name] = content

    def _unknown(self, proto: onnx.ModelProto) -> bytes:
        """Take the fields of newer formats out of a model; returns those of the document."""
        before = proto.ByteSize()
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        copy.DiscardUnknownFields()
        if copy.ByteSize() == before:
            return b""
        self.notes.append("the model holds fields of a newer format; they are kept as they are")
        document = b""
        for message in messages(proto):
            content = unknown_bytes(message)
            if not content:
                continue
            kind = message.DESCRIPTOR.name
            if kind == "ModelProto":
                document = content
            elif kind == "NodeProto":
                self._stash(message, meta.FIELDS, content)
            elif kind in {"GraphProto", "FunctionProto"}:
                self._stash(message, meta.GRAPH_FIELDS, content)
            else:
                raise InvalidModelError(
                    f"a {kind} has a field or value of a newer ONNX version that would be lost",
                    hint="update onnx, or export the model for an older version",
                )
        return document

    # --- graphs, functions, nodes --------------------------------------------------------------

    def _graph(self, graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            self._bulk.open(tensor)
        self._sparse_initializers(graph)
        _check_passed_through(graph)
        self._listed(graph)  # before _value: what it keeps must be whole
        for info in (*graph.input, *graph.output, *graph.value_info):
            self._value(info)
        self._annotations(graph)
        self._unique_names(graph)
        for node in graph.node:
            self._node(node)

    def _opsets(self, proto: onnx.ModelProto) -> None:
        """Keep the last import of each operator set, as onnxruntime does."""
        imports = {_plain_domain(item.domain): item for item in proto.opset_import}
        if len(imports) == len(proto.opset_import):
            return
        versions = {domain: item.version for domain, item in imports.items()}
        del proto.opset_import[:]
        for domain, version in versions.items():
            proto.opset_import.add(domain=domain, version=version)
        self.notes.append("an operator set was imported more than once; the last import counts")

    def _bare_import(self, proto: onnx.ModelProto | onnx.FunctionProto, owner: Any) -> None:
        """Remember that the default domain was left out: naming it would make the file longer."""
        if any(not item.HasField("domain") for item in proto.opset_import):
            self._stash(owner, meta.BARE_IMPORT, b"")

    def _function(self, function: onnx.FunctionProto) -> None:
        for attribute in function.attribute_proto:
            self._attribute(attribute, None)
        known = {*function.input, *(o for node in function.node for o in node.output)}
        for index, info in enumerate(function.value_info):
            if info.name in known:
                self._value(info)
            else:
                self._stash(function, f"{meta.VALUE_INFO}#{index}", info.SerializeToString())
        for node in function.node:
            self._node(node)

    def _listed(self, graph: onnx.GraphProto) -> None:
        """Remember declarations that would be dropped, or made where there were none."""
        if not graph.value_info:
            return
        self._note_repeats(graph.value_info, "name", "declarations")
        made = {name for node in graph.node for name in node.output}
        ends = {info.name: info for info in (*graph.input, *graph.output)}
        constants = {tensor.name for tensor in graph.initializer}
        for index, info in enumerate(graph.value_info):
            if info.name in ends:
                same = info == ends[info.name]
                self._stash(ends[info.name], meta.LISTED, b"" if same else _serialized(info))
            elif info.name in constants or (info.name in made and not info.HasField("type")):
                self._stash(info, meta.LISTED, b"")
            elif info.name not in made:
                self._stash(graph, f"{meta.VALUE_INFO}#{index}", info.SerializeToString())

    def _annotations(self, graph: onnx.GraphProto) -> None:
        if not graph.quantization_annotation:
            return
        self._note_repeats(graph.quantization_annotation, "tensor_name", "annotations")
        known = {info.name for info in graph.input} | {t.name for t in graph.initializer}
        known |= {name for node in graph.node for name in node.output}
        for index, annotation in enumerate(graph.quantization_annotation):
            if annotation.tensor_name not in known or not annotation.quant_parameter_tensor_names:
                content = annotation.SerializeToString()
                self._stash(graph, f"{meta.ANNOTATIONS}#{index}", content)

    def _unique_names(self, graph: onnx.GraphProto) -> None:
        """Rename nodes that share a name: onnxruntime refuses them."""
        counts = Counter(node.name for node in graph.node if node.name)
        if len(counts) == sum(counts.values()):
            return
        used, numbers, renamed = set(counts), Counter[str](), 0
        seen: set[str] = set()
        for node in graph.node:
            base = node.name
            if base in seen:
                while node.name in used:
                    numbers[base] += 1
                    node.name = f"{base}_{numbers[base]}"
                used.add(node.name)
                renamed += 1
            elif base:
                seen.add(base)
        self.notes.append(f"{renamed} nodes shared their name with another and were renamed")

    def _note_repeats(self, items: Sequence[Any], key: str, what: str) -> None:
        """Note that only the last of several entries with one name is kept."""
        note = f"{what} with the same name were merged; the last counts"
        repeated = len(items) > 1 and len({getattr(item, key) for item in items}) < len(items)
        if repeated and note not in self.notes:
            self.notes.append(note)

    def _node(self, node: onnx.NodeProto) -> None:
        self._note_repeats(node.metadata_props, "key", "metadata entries of a node")
        for attribute in node.attribute:
            self._attribute(attribute, node)

    def _attribute(self, proto: onnx.AttributeProto, node: onnx.NodeProto | None) -> None:
        if proto.type == onnx.AttributeProto.UNDEFINED and not proto.ref_attr_name:
            proto.type = _type_of(proto)
        handler = _HANDLERS.get(proto.type)
        if handler is not None and not proto.ref_attr_name:
            getattr(self, handler)(proto, node)

    def _tensor_attribute(self, proto: onnx.AttributeProto, _: onnx.NodeProto | None) -> None:
        self._bulk.open(proto.t)
        for tensor in proto.tensors:
            self._bulk.open(tensor)

    def _graph_attribute(self, proto: onnx.AttributeProto, _: onnx.NodeProto | None) -> None:
        if proto.HasField("g"):
            self._graph(proto.g)
        for graph in proto.graphs:
            self._graph(graph)

    def _strings_attribute(self, proto: onnx.AttributeProto, node: onnx.NodeProto | None) -> None:
        for content in proto.strings:
            try:
                content.decode()
            except UnicodeDecodeError as error:
                raise InvalidModelError(
                    f"attribute {quoted(proto.name)} holds text that is not UTF-8",
                    where=_where(node),
                ) from error

    def _sparse_initializers(self, graph: onnx.GraphProto) -> None:
        if not graph.sparse_initializer:
            return
        for sparse in graph.sparse_initializer:
            self._bulk.place(graph.initializer.add(), self._bulk.sparse(sparse))
        del graph.sparse_initializer[:]

    def _sparse_attribute(self, proto: onnx.AttributeProto, node: onnx.NodeProto | None) -> None:
        """Take the value of a sparse Constant; no other operator may have one."""
        is_constant = (
            node is not None and node.op_type == "Constant" and proto.name in _SPARSE_NAMES
        )
        if not is_constant or not proto.HasField("sparse_tensor"):
            raise InvalidModelError(
                f"attribute {quoted(proto.name)} is a sparse tensor, which is not supported here",
                where=_where(node),
                allowed="sparse tensors as initializers and as values of Constant nodes",
            )
        tensor = self._bulk.sparse(proto.sparse_tensor)
        tensor.attribute = proto.name
        proto.ClearField("sparse_tensor")
        proto.name, proto.type = "value", onnx.AttributeProto.TENSOR
        self._bulk.place(proto.t, tensor)

    def _type_attribute(self, proto: onnx.AttributeProto, node: onnx.NodeProto | None) -> None:
        types = [proto.tp] if proto.HasField("tp") else list(proto.type_protos)
        if all(_representable(kind) for kind in types):
            return
        if node is None or not proto.HasField("tp"):
            raise InvalidModelError(
                f"attribute {quoted(proto.name)} holds a type that is not supported here",
                where=_where(node),
            )
        self._stash(node, meta.ATTRIBUTE_TYPE + proto.name, proto.tp.SerializeToString())
        proto.tp.Clear()

    def _value(self, info: onnx.ValueInfoProto) -> None:
        if info.HasField("type") and not _representable(info.type):
            self._stash(info, meta.TYPE, info.type.SerializeToString())
            info.ClearField("type")

    def _settle_graph(self, graph: ir.Graph) -> None:
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = self._bulk.tensor_of(value.const_value)
            if value.const_value is not None and value.type is None:
                value.type = ir.TensorType(value.const_value.dtype)
            if value.const_value is not None and value.shape is None and not value.is_graph_input():
                value.shape = ir.Shape(value.const_value.shape.numpy())
        for node in graph:
            for attribute in list(node.attributes.values()):
                changed = self._settled(attribute)
                if changed is not None:
                    node.attributes[attribute.name] = changed

    def _settled(self, attribute: ir.Attr) -> ir.Attr | None:
        """Return the attribute with its real tensors, or None if it has none elsewhere."""
        if attribute.is_ref() or attribute.value is None:
            return None
        if attribute.type == ir.AttributeType.TENSOR:
            if isinstance(attribute.value, ir.ExternalTensor):
                real: Any = self._bulk.tensor_of(attribute.value)
                return ir.Attr(
                    attribute.name, attribute.type, real, doc_string=attribute.doc_string
                )
        elif attribute.type == ir.AttributeType.TENSORS:
            real = [
                self._bulk.tensor_of(t) if isinstance(t, ir.ExternalTensor) else t
                for t in attribute.value
            ]
            return ir.Attr(attribute.name, attribute.type, real, doc_string=attribute.doc_string)
        return None


def _where(node: onnx.NodeProto | None) -> str:
    return "" if node is None else f"node {quoted(node.name or node.op_type)}"


def _type_of(proto: onnx.AttributeProto) -> Any:
    """Return the type of an attribute whose type field is missing, from what is set."""
    for name, kind in _SET_LISTS:
        if len(getattr(proto, name)):
            return kind
    for name, kind in _SET_FIELDS:
        if proto.HasField(name):
            return kind
    raise InvalidModelError(f"attribute {quoted(proto.name)} has neither a type nor a value")


def _serialized(message: Any) -> bytes:
    content: bytes = message.SerializeToString()
    return content


def _plain_domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _check_passed_through(graph: onnx.GraphProto) -> None:
    """Refuse an output that is an input of another type: the IR has one value for both."""
    inputs = {info.name: info.type.tensor_type.elem_type for info in graph.input}
    for info in graph.output:
        kind = info.type.tensor_type.elem_type
        if kind and inputs.get(info.name, 0) not in {0, kind}:
            raise InvalidModelError(
                "an output is an input, but declared with another type", where=quoted(info.name)
            )


def _check_training(proto: onnx.ModelProto) -> None:
    """Refuse training information with data elsewhere: nobody would move it along."""
    for message in messages(onnx.ModelProto(training_info=proto.training_info)):
        if isinstance(message, onnx.TensorProto) and message.external_data:
            raise InvalidModelError("training information refers to external data")


def _representable(kind: onnx.TypeProto) -> bool:
    """Tell whether onnx_ir keeps all of a type."""
    while True:
        name = kind.WhichOneof("value")
        if name in {"tensor_type", "sparse_tensor_type"}:
            return bool(getattr(kind, name).HasField("elem_type"))
        if name not in {"sequence_type", "optional_type"}:
            return False
        inner = getattr(kind, name)
        if not inner.HasField("elem_type"):
            return False
        kind = inner.elem_type
