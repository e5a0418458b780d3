"""Names: of tensors that other models share, and of values where one takes another's place."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

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


def take_name(old: ir.Value, new: ir.Value, shadowed: AbstractSet[str | None]) -> bool:
    """Let the value that stays have the shorter name, unless one of the two is public."""
    if old.is_graph_output() or new.is_graph_output() or new.producer() is None:
        return False
    if old.graph is not new.graph or not shadowed.isdisjoint((old.name, new.name)):
        return False
    old.name, new.name = new.name, old.name
    return True


def keeps_meaning(old: ir.Value, new: ir.Value, shadowed: AbstractSet[str | None]) -> bool:
    """Tell whether readers of ``old`` find ``new`` by its name, although inner graphs reuse it."""
    names = {new.name, old.name if old.is_graph_output() else None} & shadowed
    if not names:
        return True
    home = new.graph
    return all(use.node.graph is home for value in (old, new) for use in value.uses())
