"""Telling what a file is from its first bytes, so that the error for a wrong file helps."""

from __future__ import annotations

from collections.abc import Callable

from converter.errors import FormatError
from converter.io.limits import quoted

HEAD_BYTES = 512
_EXPORT = "export the model to ONNX first"
_AGAIN = "download the model again"


def _starts(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(marks)


def _fourth(mark: bytes) -> Callable[[bytes], bool]:
    return lambda head: head[4:8] == mark


def _text(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(marks)


def _safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32


_KNOWN: tuple[tuple[Callable[[bytes], bool], str, str], ...] = (
    (
        _starts(b"version https://git-lfs"),
        "a git-lfs pointer, not the model itself",
        "run 'git lfs pull' in the repository it came from",
    ),
    (_text(b"<!doctype", b"<html"), "an HTML page, perhaps an error page", _AGAIN),
    (_text(b"<?xml"), "an XML file, perhaps an OpenVINO model", _EXPORT),
    (
        _starts(b"PK\x03\x04", b"PK\x05\x06"),
        "a zip archive, perhaps a PyTorch checkpoint",
        "unpack it, or export the network with torch.onnx.export",
    ),
    (
        _starts(b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "a Python pickle, perhaps a PyTorch checkpoint; it is never opened",
        "export the network with torch.onnx.export",
    ),
    (_fourth(b"TFL3"), "a TensorFlow Lite model", "convert it with tf2onnx"),
    (
        _fourth(b"ORTM"),
        "a model in onnxruntime's own format",
        "start from the .onnx file that it was made of",
    ),
    (
        _safetensors,
        "a safetensors file: weights without a graph",
        "export the network that uses them to ONNX",
    ),
    (_starts(b"GGUF"), "a GGUF file", _EXPORT),
    (_starts(b"\x89HDF"), "an HDF5 file, perhaps a Keras model", "convert it with tf2onnx"),
    (_starts(b"\x93NUMPY"), "a numpy array", "give calibration data with --data"),
    (
        _starts(b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf"),
        "a compressed file",
        "unpack it first",
    ),
    (_starts(b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe"), "a program or library", _EXPORT),
    (_starts(b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF"), "an image", _EXPORT),
    (_starts(b"%PDF"), "a PDF document", _EXPORT),
)


def refuse_known(head: bytes, path: str) -> None:
    """Refuse a file that is recognized as something else than an ONNX model.

    Args:
        head: Its first bytes, :data:`HEAD_BYTES` or all there are.
        path: Its name for the message.

    Raises:
        FormatError: Says what the file looks like and what to do.
    """
    for test, what, hint in _KNOWN:
        if test(head):
            raise FormatError(f"the file is {what}", where=quoted(path), hint=hint)


def text_form(head: bytes) -> str | None:
    """Return the text form that a file without a telling suffix is in, if it looks like one."""
    stripped = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if stripped.startswith(b"{") and (b"Version" in head or b"graph" in head or b'"' in head):
        return "json"
    if stripped.startswith(b"<") and b"ir_version" in stripped[:80]:
        return "onnxtxt"
    if stripped.startswith((b"ir_version:", b"graph {")):
        return "textproto"
    return None
