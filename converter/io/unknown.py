"""Fields of a protobuf message that its class does not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import unknown_fields
from google.protobuf.message import Message

from converter.errors import InvalidModelError
from converter.io.wire import delimited, encode


def messages(message: Any) -> Iterator[Any]:
    """Yield a message and all messages inside it."""
    stack = [message]
    while stack:
        current = stack.pop()
        yield current
        for field, content in current.ListFields():
            if field.message_type is not None:
                stack.extend([content] if isinstance(content, Message) else content)


def unknown_bytes(message: Any) -> bytes:
    """Serialize the unknown fields of a message itself."""
    out = b""
    for field in unknown_fields.UnknownFieldSet(message):
        number, wire, content = field.field_number, field.wire_type, field.data
        if wire not in {0, 1, 2, 5}:
            raise InvalidModelError("a message holds a group, which ONNX does not use")
        if wire == 2:
            out += delimited(number, content)
        elif wire in {1, 5}:
            out += encode(number << 3 | wire) + int(content).to_bytes(
                8 if wire == 1 else 4, "little"
            )
        else:
            out += encode(number << 3) + encode(int(content) & (1 << 64) - 1)
    return out
