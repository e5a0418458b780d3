"""What the parsers of texts say about an error, in one form: the place, and the reason."""

from __future__ import annotations

import re

_JSON = re.compile(r": line (\d+) column (\d+) \(char \d+\)\.?$")
_PROTOBUF = re.compile(r"^(\d+):(\d+) : ")
_ONNX = re.compile(r"^\[ParseError at position \(line: (\d+) column: (\d+)\)\] ")
_PLACES = (_JSON, _PROTOBUF, _ONNX)
_NO_FIELD = re.compile(r'has no field named "([^"]{1,100})"')
_FIELDS = re.compile(r" Available Fields\(.*$")
_BYTES = re.compile(r"^b(['\"])(.*)\1$", re.DOTALL)
_LONGEST = 300
_CPP = dict.fromkeys(("stoi", "stol", "stoll", "stoull", "stof", "stod"), "a number is too long")


def locate(error: Exception, data: bytes) -> tuple[str, str]:
    """Return the place of an error in a text, as far as it is known, and the reason in one line."""
    if isinstance(error, UnicodeDecodeError):
        line = data.count(b"\n", 0, error.start) + 1
        return f"line {line}", "it is not UTF-8"
    said = _BYTES.match(str(error))  # the parser of ONNX's own syntax hands out the form of bytes
    words = said[2].replace("\\n", " ") if said else str(error)
    reason = _FIELDS.sub("", " ".join(words.split()))
    for pattern in _PLACES:
        if found := pattern.search(reason):
            place = f"line {found[1]}, column {found[2]}"
            return place, pattern.sub("", reason)[:_LONGEST]
    return _line_of_field(reason, data), _CPP.get(reason, reason)[:_LONGEST]


def _line_of_field(reason: str, data: bytes) -> str:
    """Find the line of a field that no message has: the JSON parser does not keep lines."""
    found = _NO_FIELD.search(reason)
    name = f'"{found[1]}"'.encode() if found else b""
    if not name or data.count(name) != 1:
        return ""
    line = data.count(b"\n", 0, data.index(name)) + 1
    return f"line {line}"
