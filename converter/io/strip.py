"""Models without their weights, for bug reports and diffs: the graph, names, types and shapes stay.

A stripped weight is a sparse tensor without elements: a valid model of a few kilobytes that every
reader opens, onnxruntime included, and that computes with zeros. ONNX's own syntax cannot express
sparse tensors; there it is a tensor without data. The document says that it was stripped, and stays
stripped when it is written again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import onnx
import onnx_ir as ir

from converter.core.graph import META_PREFIX
from converter.io.unknown import messages

KEY = META_PREFIX + "stripped"
"""Entry of a document's metadata that says that its weights were taken out."""

SMALL = 64
"""Integers of at most so many elements are shapes, axes and indices, which the graph needs."""

_INDEX_TYPES = {onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL}
LISTS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
"""Fields that hold the numbers of a tensor one by one."""

_DATA = (*LISTS, "string_data", "raw_data", "external_data", "data_location", "segment")
_SHAPING = {"Resize": (1, 2, 3), "Upsample": (1,)}
"""Operator -> inputs whose numbers decide about shapes although they may be floats."""

_VOCABULARIES = {
    "cats_strings",
    "classlabels_strings",
    "keys_strings",
    "pool_strings",
    "string_vocabulary",
    "stopwords",
    "values_strings",
}
"""Attributes of ai.onnx.ml and text operators with words of the training data."""

_LONGEST_TEXT = 256
_LARGEST_PACKED = 1 << 16
_SPARSE_CONSTANT = 11  # first operator set with Constant.sparse_value
_ATTRIBUTE = onnx.AttributeProto


def strip(proto: onnx.ModelProto) -> None:
    """Take weights, vocabularies and texts about the origin out of a document."""
    kept = [entry for entry in proto.metadata_props if entry.key.startswith(META_PREFIX)]
    entries = {entry.key: entry.value for entry in kept if entry.key != KEY}
    proto.DiscardUnknownFields()
    proto.ClearField("training_info")
    for message in messages(proto):
        for name in ("doc_string", "metadata_props"):
            if name in message.DESCRIPTOR.fields_by_name:
                message.ClearField(name)
    for key, value in entries.items():
        proto.metadata_props.add(key=key, value=value)
    proto.metadata_props.add(key=KEY, value="the weights were removed")
    _Stripper(proto).strip()


def is_stripped(proto: onnx.ModelProto) -> bool:
    """Tell whether a document says that it was stripped."""
    return any(entry.key == KEY for entry in proto.metadata_props)


def shaping_inputs(proto: onnx.ModelProto) -> set[str]:
    """Return the names of values that decide about shapes although they may be floats."""
    return {
        name
        for node in _nodes(proto)
        for index in _SHAPING.get(node.op_type, ())
        for name in node.input[index : index + 1]
    }


class _Stripper:
    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self._needed = shaping_inputs(proto)

    def strip(self) -> None:
        for message in messages(self._proto):
            if isinstance(message, onnx.GraphProto):
                self._graph(message)
        self._scope(self._proto.graph.node, _opset(self._proto))
        for function in self._proto.functions:
            self._scope(function.node, _opset(function))
            for attribute in function.attribute_proto:
                _plain_attribute(attribute)

    def _scope(self, nodes: Any, opset: int) -> None:
        """Strip the attributes of nodes and of the graphs inside them."""
        for node in nodes:
            sparse = node.op_type == "Constant" and not node.domain and opset >= _SPARSE_CONSTANT
            needed = bool(self._needed.intersection(node.output))
            for attribute in node.attribute:
                if attribute.HasField("g") or attribute.graphs:
                    for graph in (attribute.g, *attribute.graphs):
                        self._scope(graph.node, opset)
                elif not needed:
                    _attribute(attribute, sparse=sparse)

    def _graph(self, graph: onnx.GraphProto) -> None:
        tensors = list(graph.initializer)
        for sparse in graph.sparse_initializer:
            _empty(sparse)
        kept = []
        for tensor in tensors:
            if tensor.name in self._needed or not _is_weight(tensor):
                kept.append(tensor)
            elif not _is_sparsifiable(tensor):
                _blank(tensor)
                kept.append(tensor)
            else:
                _hollow_sparse(graph.sparse_initializer.add(), tensor)
        if len(kept) < len(tensors):
            copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
            del graph.initializer[:]
            graph.initializer.extend(copies)


def _attribute(attribute: onnx.AttributeProto, *, sparse: bool) -> None:
    kind = attribute.type
    if kind == _ATTRIBUTE.SPARSE_TENSOR:
        _empty(attribute.sparse_tensor)
    elif sparse and kind == _ATTRIBUTE.TENSOR and _is_sparsifiable(attribute.t):
        made = onnx.SparseTensorProto()
        _hollow_sparse(made, attribute.t)
        attribute.ClearField("t")
        attribute.name, attribute.type = "sparse_value", _ATTRIBUTE.SPARSE_TENSOR
        attribute.sparse_tensor.CopyFrom(made)
    else:
        _plain_attribute(attribute)


def _plain_attribute(attribute: onnx.AttributeProto) -> None:
    """Blank what an attribute holds of the training, length and type as they were."""
    for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
        if _is_weight(tensor):
            _blank(tensor)
    if len(attribute.floats) > SMALL:
        attribute.floats[:] = [0.0] * len(attribute.floats)
    if attribute.name in _VOCABULARIES:
        attribute.strings[:] = [str(i).encode() for i in range(len(attribute.strings))]
    if len(attribute.s) > _LONGEST_TEXT:
        attribute.s = b""


def _is_weight(tensor: onnx.TensorProto) -> bool:
    size = int(math.prod(tensor.dims))
    if tensor.data_type == onnx.TensorProto.STRING:
        return size > 0
    return size > (SMALL if tensor.data_type in _INDEX_TYPES else 1)


def _is_sparsifiable(tensor: onnx.TensorProto) -> bool:
    """Tell whether a sparse tensor can stand for a weight, in onnxruntime too."""
    if not _is_weight(tensor) or tensor.data_type == onnx.TensorProto.STRING or not tensor.dims:
        return False
    packed = ir.DataType(tensor.data_type).bitwidth < 8  # onnxruntime takes those dense only
    return not packed or math.prod(tensor.dims) > _LARGEST_PACKED


def _clear(tensor: onnx.TensorProto) -> None:
    for name in _DATA:
        tensor.ClearField(name)


def _blank(tensor: onnx.TensorProto) -> None:
    """Replace the elements by zeros, or texts by their numbers."""
    size = math.prod(tensor.dims)
    _clear(tensor)
    if tensor.data_type == onnx.TensorProto.STRING:
        tensor.string_data.extend([str(i).encode() for i in range(size)])
    else:
        tensor.raw_data = bytes(math.ceil(size * ir.DataType(tensor.data_type).bitwidth / 8))


def _hollow_sparse(sparse: onnx.SparseTensorProto, tensor: onnx.TensorProto) -> None:
    """Make a sparse tensor without elements that stands for a dense one."""
    sparse.dims.extend(tensor.dims)
    sparse.values.name = tensor.name
    sparse.values.data_type = tensor.data_type
    _empty(sparse)


def _empty(sparse: onnx.SparseTensorProto) -> None:
    for part in (sparse.values, sparse.indices):
        _clear(part)
        part.dims[:] = [0]
        part.raw_data = b""
    sparse.indices.data_type = onnx.TensorProto.INT64


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    return (m for m in messages(proto) if isinstance(m, onnx.NodeProto))


def _opset(owner: onnx.ModelProto | onnx.FunctionProto) -> int:
    return max((e.version for e in owner.opset_import if e.domain in {"", "ai.onnx"}), default=1)


# --- ONNX's own syntax has no sparse tensors ---------------------------------------------------


def hollow(proto: onnx.ModelProto) -> None:
    """Write stripped weights as tensors without data."""
    for message in messages(proto):
        if isinstance(message, onnx.GraphProto):
            for sparse in message.sparse_initializer:
                _dense_shell(message.initializer.add(), sparse)
            message.ClearField("sparse_initializer")
        elif isinstance(message, _ATTRIBUTE) and message.type == _ATTRIBUTE.SPARSE_TENSOR:
            _dense_shell(message.t, message.sparse_tensor)
            message.ClearField("sparse_tensor")
            message.name, message.type = "value", _ATTRIBUTE.TENSOR


def _dense_shell(tensor: onnx.TensorProto, sparse: onnx.SparseTensorProto) -> None:
    tensor.name = sparse.values.name
    tensor.data_type = sparse.values.data_type
    tensor.dims.extend(sparse.dims)


def fill(proto: onnx.ModelProto) -> None:
    """Make sparse tensors again of the tensors without data in a stripped document."""
    for message in messages(proto):
        if isinstance(message, onnx.GraphProto):
            shells = [t for t in message.initializer if _is_shell(t)]
            for tensor in shells:
                _hollow_sparse(message.sparse_initializer.add(), tensor)
            for tensor in shells:
                message.initializer.remove(tensor)
        elif isinstance(message, onnx.NodeProto) and message.op_type == "Constant":
            for attribute in message.attribute:
                if attribute.type == _ATTRIBUTE.TENSOR and _is_shell(attribute.t):
                    _attribute(attribute, sparse=True)


def _is_shell(tensor: onnx.TensorProto) -> bool:
    return _is_sparsifiable(tensor) and not any(
        tensor.HasField(n) if n in {"raw_data", "segment"} else getattr(tensor, n) for n in _DATA
    )
