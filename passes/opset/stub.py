"""The graph of a model as protobuf, without the weights."""

from __future__ import annotations

import onnx_ir as ir

from converter.core.graph import graphs
from passes.opset.fragments import SMALL

_TENSOR = ir.AttributeType.TENSOR


def stub(model: ir.Model) -> bytes:
    """Serialize a model with names of files that do not exist in place of large constants."""
    twin = model.clone()
    for graph in graphs(twin):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _stub(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type is _TENSOR and not attribute.is_ref():
                    node.attributes[name] = ir.AttrTensor(name, _stub(attribute.value))
    twin.ir_version = max(twin.ir_version, 4)  # before it, constants would have to be inputs
    result: bytes = ir.to_proto(twin).SerializeToString()
    return result


def _stub(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.size <= SMALL or tensor.dtype == ir.DataType.STRING:
        return tensor
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor(
        "weights", 0, tensor.nbytes, tensor.dtype, shape=shape, name=tensor.name or "tensor"
    )
