"""How many bytes things take in the written file, so that no rewrite makes it bigger.

Removed things are counted low and added things high; the difference is a safe bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

CONSTANT_NODE_BYTES = 40
"""What a Constant node takes beside its tensor and the name of its output."""

_SHORT = 120  # bytes that a tensor may have for its length to take one byte, and some to spare
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
    return _content_bytes(tensor) + len(name or "") + 4 * _FIELD + 2 * len(tensor.shape)


def _content_bytes(tensor: ir.TensorProtocol) -> int:
    """Return at most the bytes of the elements; a list of small integers takes one for each."""
    held = getattr(tensor, "raw", None)
    listed = getattr(held, "ByteSize", None)
    if held is None or listed is None or held.HasField("raw_data"):
        return tensor.nbytes
    name = len(held.name.encode()) + _FIELD if held.name else 0
    size: int = listed() - name - 2 * _FIELD - 2 * len(held.dims)
    return max(0, min(tensor.nbytes, size))


def new_constant_bytes(nbytes: int, rank: int, name: str) -> int:
    """Return at least the bytes that a new initializer takes; it needs no value info."""
    if 0 < nbytes + len(name) + 8 * rank < _SHORT:
        return nbytes + len(name) + 4 * _FIELD + 2 * rank  # all lengths and sizes take one byte
    return nbytes + len(name) + 16 + 6 * rank


def new_constant_node_bytes(nbytes: int, rank: int, name: str) -> int:
    """Return at least the bytes of a new Constant node, the tensor of which has no name."""
    spare = 0 if 0 < nbytes + len(name) + 8 * rank < _SHORT - 40 else 8 + 4 * rank
    return nbytes + len(name) + 32 + 2 * rank + spare


def renaming_bytes(old: ir.Value, new: ir.Value) -> int:
    """Return by how much readers grow when one value takes the place of another."""
    longer = len(new.name or "") - len(old.name or "")
    if old.is_graph_output():
        return -longer * (len(new.uses()) + 1)  # the new value takes the public name
    return longer * len(old.uses())


def text_bytes(text: str | None) -> int:
    """Return at least the bytes of a text with its tag."""
    length = len((text or "").encode())
    return length + _FIELD + 2 * (length > 127)


def attribute_bytes(name: str, value: Any) -> int:
    """Return at least the bytes of a new attribute."""
    items = value if isinstance(value, list | tuple) else [value]
    return 4 + 3 + text_bytes(name) + sum(_item_bytes(item) for item in items)


def _item_bytes(item: Any) -> int:
    if isinstance(item, str):
        return text_bytes(item)
    if isinstance(item, float):
        return 5
    if hasattr(item, "nbytes"):
        return new_constant_bytes(item.nbytes, len(item.shape), "")
    return 11 if int(item) < 0 else 2 + int(item).bit_length() // 7
