"""Compressed model files for transport (``.onnx.zst``): written in a stream, read with bounds.

No runtime opens such a file: it is for downloads and archives. Zstandard is used because every
system has a tool for it (``zstd -d``). The package ``zstandard`` is imported when it is needed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO

from converter.core.tensors import FileHandle
from converter.errors import FormatError, LimitExceededError, ModelError, UsageError
from converter.io.limits import LoadLimits, quoted

if TYPE_CHECKING:
    from types import ModuleType

SUFFIX = ".zst"
MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = tuple(bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x60))
LEVEL = 9
"""Weights lose 1 to 2 % more from here to the slowest level, which takes 20 times as long."""

_WINDOW_BYTES = 128 << 20  # what a frame may ask of the memory of its reader; zstd's own default
# A block of 4 bytes can stand for 128 KiB, so what is fed at once bounds what comes at once.
_FED_BYTES = 512
_READ_BYTES = 1 << 20
_FREE_BYTES = 64 << 20  # up to here no ratio is too high
_MOST_FRAMES = 1 << 16


def is_compressed(head: bytes) -> bool:
    """Tell by its first bytes whether a file is compressed with Zstandard."""
    return head.startswith((MAGIC, *_SKIPPABLE))


def is_wanted(path: PurePath) -> bool:
    """Tell by its name whether a file is to be written compressed."""
    return path.suffix.lower() == SUFFIX


def bare(path: Path) -> Path:
    """Return the path without the suffix that stands for the compression."""
    return path.with_suffix("") if is_wanted(path) else path


def check_name(path: PurePath) -> None:
    """Refuse a name for which there is no compressed form, or a package that is missing.

    Raises:
        UsageError: Something else than ``.onnx`` is before ``.zst``, or the package is missing.
    """
    if PurePath(path.stem).suffix.lower() != ".onnx":
        raise UsageError(
            "only .onnx files are written compressed",
            where=repr(str(path)),
            allowed="a name that ends in .onnx.zst",
            hint="zstd compresses any other file",
        )
    try:
        _package()
    except ImportError as error:
        raise UsageError(
            "compressed files need the package zstandard, which is not installed",
            where=repr(str(path)),
            hint='pip install "onnxpress[zstd]", or write a .onnx file and compress it with zstd',
        ) from error


def _package() -> ModuleType:
    import zstandard

    return zstandard


# --- writing -------------------------------------------------------------------------------------


@contextmanager
def compressing(file: BinaryIO, nbytes: int) -> Iterator[Any]:
    """Open a writer into a file that compresses; equal content gives equal bytes.

    Args:
        file: Open for writing; it stays open.
        nbytes: How much will be written: the file says it, so that a short one is noticed.
    """
    zstd = _package()
    made = zstd.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True)
    writer = made.stream_writer(file, size=nbytes, closefd=False)
    yield writer
    writer.flush(zstd.FLUSH_FRAME)  # closing it would also end a frame that an error cut short


def note(nbytes: int, before: int) -> str:
    """Say what the compression brought and what the file is good for."""
    return (
        f"compressed for transport: {nbytes} bytes instead of {before} ({nbytes / before:.2f}x); "
        "onnxruntime cannot open it: decompress it with 'zstd -d', with convert, or load it with "
        "this program. Sizes and size budgets count the file without this compression"
    )


def content_bytes(path: Path) -> int | None:
    """Return the size of the content of a file that :func:`compressing` wrote; None of others."""
    if not is_wanted(path):
        return None
    with path.open("rb") as file:
        head = file.read(32)
    size: int = _package().frame_content_size(head) if is_compressed(head) else -1
    return size if size >= 0 else None


# --- reading -------------------------------------------------------------------------------------


def decompress(source: FileHandle, shown: str, limits: LoadLimits) -> FileHandle:
    """Return a temporary file, without a name, that holds the content of a compressed one.

    Args:
        source: The compressed file.
        shown: Its name for messages.
        limits: ``file_bytes`` bounds the content, ``ratio`` what a byte may turn into.

    Raises:
        FormatError: It is damaged, cut short, or not compressed as it says.
        LimitExceededError: The content is too large.
        ModelError: The package is missing, or there is no room for the content.
    """
    try:
        zstd = _package()
    except ImportError as error:
        raise ModelError(
            "the file is compressed, and the package zstandard is not installed",
            where=quoted(shown),
            hint="pip install \"onnxpress[zstd]\", or decompress it with 'zstd -d'",
        ) from error
    try:
        with tempfile.TemporaryFile(prefix="onnxpress-") as file:
            for part in _content(source, zstd, shown, limits):
                file.write(part)
            file.flush()
            return FileHandle(os.dup(file.fileno()), source.path)
    except zstd.ZstdError as error:
        reason = str(error).rpartition(": ")[2] or "unknown reason"
        raise FormatError(
            f"the compressed file is damaged: {reason}",
            where=quoted(shown),
            hint="download the file again",
        ) from error
    except OSError as error:
        raise ModelError(
            f"the file cannot be decompressed: {error.strerror or error}",
            where=quoted(shown),
            hint="make room in the folder for temporary files, or name another in TMPDIR",
        ) from error


def _content(source: FileHandle, zstd: Any, shown: str, limits: LoadLimits) -> Iterator[bytes]:
    """Yield the content of all frames, piece by piece."""
    made = zstd.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
    frame, frames, complete = made.decompressobj(), 1, False
    total = read = 0
    for data in _fed(source):
        read += len(data)
        waiting = data
        while waiting:
            if complete:
                frame, frames = made.decompressobj(), frames + 1
            part = frame.decompress(waiting)
            total += len(part)
            _check(total, read, frames, limits, shown)
            yield part
            complete = frame.eof
            waiting = frame.unused_data if complete else b""
    if not complete:
        raise FormatError(
            "the compressed file is cut short", where=quoted(shown), hint="download the file again"
        )


def _fed(source: FileHandle) -> Iterator[bytes]:
    for start in range(0, source.nbytes, _READ_BYTES):
        block = source.read(start, min(_READ_BYTES, source.nbytes - start))
        for offset in range(0, len(block), _FED_BYTES):
            yield block[offset : offset + _FED_BYTES]


def _check(total: int, read: int, frames: int, limits: LoadLimits, shown: str) -> None:
    """Stop at content that no model has.

    Raises:
        LimitExceededError: It is too large, for itself or for the bytes that it came from.
    """
    bounds = (
        (total > limits.file_bytes, f"at most {limits.file_bytes} bytes in one file"),
        (
            total > max(_FREE_BYTES, limits.ratio * read),
            f"content of {limits.ratio} times its size",
        ),
        (frames > _MOST_FRAMES, f"at most {_MOST_FRAMES} frames"),
    )
    for crossed, allowed in bounds:
        if crossed:
            raise LimitExceededError(
                f"{read} compressed bytes hold {total} bytes and more",
                where=quoted(shown),
                allowed=allowed,
                hint="if you trust the file, decompress it with 'zstd -d'",
            )
