"""Giving a tensor another name without renaming the object that other models share."""

from __future__ import annotations

import onnx_ir as ir

from converter.core.tensors import Array, FileTensor, MappedTensor


def renamed(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """Return a tensor with the same content under another name; nothing large is copied."""
    if tensor.name == name:
        return tensor
    shape = ir.Shape(tensor.shape.numpy())
    if isinstance(tensor, FileTensor):
        return FileTensor(tensor.handle, tensor.offset, tensor.dtype, shape, name=name)
    if isinstance(tensor, MappedTensor):
        return MappedTensor(tensor, _same, name=name)
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=shape, name=name)


def _same(chunk: Array, _start: int) -> Array:
    return chunk
