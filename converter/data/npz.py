"""Reading npz files that are not trusted: headers first, rows in blocks, never a pickle.

An npz file is a zip archive of npy members. Each member's header is checked against the size that
the archive states before anything is allocated, and rows are streamed, so the memory needed is that
of one block whatever the size of the file and whether or not it is compressed.
"""

from __future__ import annotations

import math
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from converter.errors import BatchError, DataError

Array = np.ndarray[Any, Any]
MOST_MEMBERS = 10_000
MOST_HEADER_BYTES = 10_000
BOMB_BYTES, BOMB_RATIO = 256 << 20, 200
"""A member that grows beyond both of these is refused as a decompression bomb."""
WHOLE_BYTES = 4 << 30
"""Largest array that is read in one piece, which Fortran order needs."""
_READERS = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
    (3, 0): npy.read_array_header_2_0,  # differs in the encoding of field names only
}
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,  # encrypted
    ValueError,
    UnicodeError,
    SyntaxError,
    RecursionError,
    MemoryError,
)


@dataclass(frozen=True)
class NpzColumn:
    """One array of an npz file, read in blocks of rows.

    Attributes:
        path: The file.
        member: Name inside the archive.
        shape: Shape of the whole array.
        dtype: Element type, in the byte order of the machine.
    """

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def name(self) -> str:
        """Name of the array."""
        return self.member.removesuffix(".npy")

    def blocks(self, rows: int, limit: int) -> Iterator[Array]:
        """Yield blocks of ``rows`` rows of the first ``limit`` rows, the last one may be shorter.

        Raises:
            DataError: The file is truncated, damaged or was changed since it was opened.
        """
        with _archive(self.path) as archive, archive.open(self.member) as file:
            shape, fortran, dtype = _header(file)
            if shape != self.shape or dtype.newbyteorder("=") != self.dtype:
                raise ValueError("it changed while it was read")
            if fortran and len(shape) > 1:
                whole = np.frombuffer(_exactly(file, _nbytes(shape, dtype)), dtype)
                array = whole.reshape(shape, order="F")
                for start in range(0, min(limit, shape[0]), rows):
                    yield self._native(array[start : min(start + rows, limit)])
                return
            row_bytes = _nbytes(shape[1:], dtype)
            for start in range(0, min(limit, shape[0]), rows):
                count = min(rows, limit - start, shape[0] - start)
                raw = _exactly(file, count * row_bytes)
                yield self._native(np.frombuffer(raw, dtype).reshape(count, *shape[1:]))

    def whole(self) -> Array:
        """Read the complete array.

        Raises:
            DataError: The file is truncated, damaged or was changed since it was opened.
        """
        with _archive(self.path) as archive, archive.open(self.member) as file:
            shape, fortran, dtype = _header(file)
            raw = _exactly(file, _nbytes(shape, dtype))
            return self._native(
                np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
            )

    def _native(self, array: Array) -> Array:
        return np.ascontiguousarray(array.astype(self.dtype, copy=False)).reshape(array.shape)


def read_columns(path: Path) -> dict[str, NpzColumn]:
    """Read the headers of all arrays of an npz file.

    Raises:
        DataError: The file is missing, unreadable, no npz, damaged or hostile.
    """
    columns: dict[str, NpzColumn] = {}
    with _archive(path) as archive:
        members = archive.infolist()
        if len(members) > MOST_MEMBERS:
            raise DataError(
                f"the archive has {len(members)} members",
                where=str(path),
                allowed=f"{MOST_MEMBERS}",
            )
        for member in members:
            column = _column(path, archive, member)
            if column.name in columns:
                raise DataError(f"array {column.name!r} is there twice", where=str(path))
            columns[column.name] = column
    if not columns:
        raise DataError(
            "the file holds no arrays",
            where=str(path),
            hint="write it with numpy.savez(path, input_name=array)",
        )
    return columns


def _column(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NpzColumn:
    where = f"{path}, array {member.filename!r}"
    if not member.filename.endswith(".npy"):
        raise DataError("the archive holds something that is no array", where=where)
    with archive.open(member) as file:
        shape, fortran, dtype = _header(file)
        start = file.tell()
    if dtype.hasobject:
        raise BatchError(
            "the array holds Python objects, which only pickle can read; pickle is never used",
            where=where,
            allowed="numbers, booleans and fixed-length text",
            hint="save it with a plain element type, text as dtype 'U'",
        )
    nbytes = _nbytes(shape, dtype)
    if min(shape, default=0) < 0 or nbytes != member.file_size - start:
        raise DataError(
            f"the array declares {nbytes} bytes and has {member.file_size - start}", where=where
        )
    _check_size(member, nbytes if fortran and len(shape) > 1 else 0, where)
    return NpzColumn(path, member.filename, shape, dtype.newbyteorder("="))


def _check_size(member: zipfile.ZipInfo, at_once: int, where: str) -> None:
    if at_once > WHOLE_BYTES:
        raise DataError(
            f"an array of {at_once} bytes in Fortran order is too large",
            where=where,
            hint="save it with numpy.ascontiguousarray",
        )
    big = member.file_size > BOMB_BYTES
    if big and member.file_size > BOMB_RATIO * max(1, member.compress_size):
        raise DataError(
            f"{member.compress_size} bytes would grow to {member.file_size} (decompression bomb)",
            where=where,
            hint="save it with numpy.savez instead of savez_compressed if it is what it should be",
        )


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a regular file as zip archive; everything that is wrong with it is a DataError."""
    try:
        with os.fdopen(open_regular(path), "rb") as file, zipfile.ZipFile(file) as archive:
            yield archive
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(path)) from error
    except _BROKEN as error:
        raise DataError(
            f"the file is no readable npz file: {error or type(error).__name__}",
            where=str(path),
            allowed="a file written by numpy.savez or numpy.savez_compressed",
        ) from error


def open_regular(path: Path) -> int:
    """Open a file for reading and return its descriptor; never waits for a pipe or a device.

    Raises:
        DataError: It is missing, not readable or no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"the data cannot be opened: {reason}",
            where=str(path),
            hint="check the path given with --data",
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError("the data is not a regular file", where=str(path))
    return descriptor


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"npy format {version}")
    shape, fortran, dtype = _READERS[version](file, max_header_size=MOST_HEADER_BYTES)
    return shape, fortran, dtype


def _nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return math.prod(shape) * dtype.itemsize


def _exactly(file: IO[bytes], nbytes: int) -> bytes:
    raw = file.read(nbytes)
    if len(raw) != nbytes:
        raise EOFError("it is truncated")
    return raw
