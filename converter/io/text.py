"""The text forms of ONNX: protobuf JSON, protobuf text and ONNX's own syntax, for small graphs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import numpy as np
import onnx
from google.protobuf import json_format, text_format
from google.protobuf.message import Message
from onnx import numpy_helper

from converter.errors import FormatError, LimitExceededError, UsageError
from converter.io import sniff, strip, suffixes
from converter.io.limits import quoted
from converter.io.text_errors import locate

MAX_BYTES = {"json": 64 << 20, "textproto": 16 << 20, "onnxtxt": 64 << 20}
"""Largest file of each form; protobuf's text form takes a second for three megabytes."""

_MAX_NESTING = 600
_STRINGS = re.compile(
    rb"""#[^\n]*+|"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|'(?:[^'\\]++|\\.)*+(?:'|\\?\Z)""", re.DOTALL
)
"""Strings and comments of the forms whose parsers, written in Python, bound their own recursion.

The one of ONNX's own syntax does not, and must not be hidden any bracket from.
"""

_LARGEST_FLOAT = re.compile(r"(?<=[\s:,\[-])3\.4028235[eE]\+38(?=[\s,\]}])")
_EXACT = "3.4028234663852886e+38"  # protobuf writes the shorter form and refuses to read it
_BINARY = b"\x08"  # the version of the format, which every writer puts first; no text has it
_REFUSALS = (
    json_format.ParseError,
    text_format.ParseError,
    onnx.parser.ParseError,
    ValueError,  # also of decoding
    TypeError,
    RecursionError,
    ArithmeticError,  # the parser of ONNX's own syntax lets those of C++ through
    LookupError,
    RuntimeError,
)
_LOSS = "ONNX's own text syntax does not say everything about this model; .json and .textproto do"


def form_of(path: PurePath) -> str | None:
    """Return the text form that a file name asks for, or None for the binary one."""
    return suffixes.TEXT.get(path.suffix.lower())


def form_in(path: PurePath, head: bytes) -> str | None:
    """Return the text form of a file to be read; what is in it counts more than its name."""
    if head.startswith(_BINARY):
        return None
    return sniff.text_form(head) or form_of(path)


def parse(data: bytes, form: str, path: str) -> onnx.ModelProto:
    """Read a model in a text form.

    Raises:
        FormatError: The text is not that form.
        LimitExceededError: It is too large or nested too deeply.
    """
    if len(data) > MAX_BYTES[form]:
        raise LimitExceededError(
            f"the model has {len(data)} bytes as text",
            where=quoted(path),
            allowed=f"at most {MAX_BYTES[form]} bytes in a text form",
            hint="use the binary form (.onnx)",
        )
    _check_nesting(data if form == "onnxtxt" else _STRINGS.sub(b"", data), path)
    try:
        proto = _PARSERS[form](data.decode("utf-8-sig"))
    except _REFUSALS as error:
        line, reason = locate(error, data)
        raise FormatError(
            f"the text is no ONNX model: {reason}",
            where=quoted(path) + (f", {line}" if line else ""),
            allowed=_NAMES[form],
        ) from error
    if strip.is_stripped(proto):
        strip.fill(proto)
    return proto


def render(
    proto: onnx.ModelProto, form: str, *, stripped: bool = False
) -> tuple[str, tuple[str, ...]]:
    """Write a model as text; reading it back gives the same model.

    Args:
        proto: The model; not kept as it is when it is stripped.
        form: Which text.
        stripped: The model has no weights: ONNX's own syntax may lose more of it, with a note.

    Returns:
        The text, and notes about what it does not say.

    Raises:
        UsageError: The form cannot express the model without loss, or the model is too large.
    """
    if proto.ByteSize() > MAX_BYTES[form] // 2:
        raise UsageError(
            "the model is too large for a text form",
            allowed=f"at most {MAX_BYTES[form] // 2} bytes",
            hint="write a .onnx file",
        )
    if form == "onnxtxt" and stripped:
        strip.hollow(proto)
    rendered = _RENDERERS[form](proto)
    if form != "onnxtxt" or _is_lossless(proto, rendered):
        return rendered, ()
    if stripped:
        return rendered, (_LOSS,)
    raise UsageError(
        "ONNX's own text syntax cannot hold this model without loss",
        allowed="graphs whose weights and metadata survive printing",
        hint="write .json or .textproto instead, or leave the weights out with --strip-weights",
    )


def _is_lossless(proto: onnx.ModelProto, rendered: str) -> bool:
    """ONNX's own printer rounds numbers and leaves fields out."""
    try:
        read = onnx.parser.parse_model(rendered)
    except (onnx.parser.ParseError, ValueError):
        return False
    return _normal(read) == _normal(proto)


def _normal(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with tensors as raw data and without empty text."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    stack: list[Any] = [copy]
    while stack:
        message = stack.pop()
        if isinstance(message, onnx.TensorProto) and _has_numbers(message):
            message.raw_data = numpy_helper.from_array(numpy_helper.to_array(message)).raw_data
            for name in strip.LISTS:
                message.ClearField(name)
        for field, content in message.ListFields():
            if field.message_type is not None:
                stack.extend([content] if isinstance(content, Message) else content)
            elif not content and field.type == field.TYPE_STRING:
                message.ClearField(field.name)
    return copy


def _has_numbers(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type == onnx.TensorProto.STRING:
        return False
    return tensor.HasField("raw_data") or any(getattr(tensor, name) for name in strip.LISTS)


def _check_nesting(data: bytes, path: str) -> None:
    """Refuse brackets so deep that a recursive parser would overflow the stack."""
    marks = np.frombuffer(data, np.uint8)
    opened = np.zeros(256, np.int32)
    opened[list(b"{[(<")] = 1
    opened[list(b"}])>")] = -1
    deepest = level = 0
    for start in range(0, marks.size, 1 << 20):
        levels = np.cumsum(opened[marks[start : start + (1 << 20)]]) + level
        deepest, level = max(deepest, int(levels.max())), int(levels[-1])
    if deepest > _MAX_NESTING:
        raise LimitExceededError(
            f"brackets are nested {deepest} deep",
            where=quoted(path),
            allowed=f"at most {_MAX_NESTING}",
        )


def _parse_json(content: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    json_format.Parse(_LARGEST_FLOAT.sub(_EXACT, content), proto)
    return proto


def _render_json(proto: onnx.ModelProto) -> str:
    rendered = json_format.MessageToJson(proto, preserving_proto_field_name=True)
    return _LARGEST_FLOAT.sub(_EXACT, rendered)


def _parse_textproto(content: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    text_format.Parse(content, proto)
    return proto


def _parse_onnxtxt(content: str) -> onnx.ModelProto:
    if not re.match(r"\s*<", content):
        raise ValueError("it does not begin with <ir_version: ..., opset_import: [...]>")
    return onnx.parser.parse_model(content)


_NAMES = {
    "json": "a ModelProto as protobuf JSON",
    "textproto": "a ModelProto in protobuf's text form",
    "onnxtxt": "a model in ONNX's own text syntax",
}
_PARSERS: dict[str, Callable[[str], onnx.ModelProto]] = {
    "json": _parse_json,
    "textproto": _parse_textproto,
    "onnxtxt": _parse_onnxtxt,
}
_RENDERERS: dict[str, Callable[[onnx.ModelProto], str]] = {
    "json": _render_json,
    "textproto": text_format.MessageToString,
    "onnxtxt": onnx.printer.to_text,
}
