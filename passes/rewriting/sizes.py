"""How many bytes things take in the written file, so that no rewrite makes it bigger.

Removed things are counted low and added things high; the difference is a safe bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

CONSTANT_NODE_BYTES = 40
"""What a Constant node takes beside its tensor and the name of its output."""

_FIELD = 2  # tag and length of a short protobuf field


def node_bytes(node: ir.Node) -> int:
    """Return at most the bytes that go away with the node, tensor attributes left out."""
    size = _FIELD + _FIELD + len(node.op_type)
    if node.name:
        size += _FIELD + len(node.name)
    for value in node.inputs:
        size += _FIELD + (len(value.name or "") if value is not None else 0)
    for output in node.outputs:
        size += _FIELD + len(output.name or "")
    if node.doc_string:
        size += _FIELD + len(node.doc_string)
    for key, text in node.metadata_props.items():
        size += 3 * _FIELD + len(key) + len(text)
    for attribute in node.attributes.values():
        size += 3 * _FIELD + len(attribute.name) + 2
    return size


def constant_bytes(tensor: ir.TensorProtocol, name: str | None) -> int:
    """Return at most the bytes that go away with an initializer."""
    return tensor.nbytes + len(name or "") + 4 * _FIELD + 2 * len(tensor.shape)


def new_constant_bytes(nbytes: int, rank: int, name: str) -> int:
    """Return at least the bytes that a new initializer takes; it needs no value info."""
    return nbytes + len(name) + 16 + 6 * rank
