"""Tensors that stay in their file or are computed when read, and walking any tensor in chunks.

All of them are immutable. Arrays handed out by :class:`FileTensor` are read-only views of the
file's pages and give the memory back when the last reference to the array goes.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from typing import Any, Self

import ml_dtypes  # noqa: F401 - registers the numpy types that onnx_ir names
import numpy as np
import onnx_ir as ir
from onnx_ir._core import TensorBase  # not public in 1.1: the base that all its tensors share

CHUNK_BYTES = 1 << 18  # larger buffers go back to the system after each use: page faults
_COPY_BYTES = 1 << 20
_MAP_FROM = 1 << 16
Array = np.ndarray[Any, Any]


class FileHandle:
    """An open, read-only file shared by the tensors in it; closed when the last one goes."""

    def __init__(self, descriptor: int, path: str) -> None:
        self.descriptor = descriptor
        self.path = path
        self.nbytes = os.fstat(descriptor).st_size

    def read(self, offset: int, nbytes: int) -> bytes:
        """Read exactly ``nbytes``.

        Raises:
            OSError: The file is shorter than it was when it was opened.
        """
        parts = []
        while nbytes:
            part = os.pread(self.descriptor, min(nbytes, 1 << 30), offset)
            if not part:
                raise OSError(f"{self.path} became shorter while it was read")
            parts.append(part)
            offset += len(part)
            nbytes -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def copy(self, offset: int, nbytes: int, file: Any) -> None:
        """Write ``nbytes`` of this file to another one, through one small buffer.

        A fresh buffer for every chunk would cost more in page faults than the copying itself.

        Raises:
            OSError: The file is shorter than it was when it was opened.
        """
        buffer = memoryview(bytearray(min(nbytes, _COPY_BYTES)))
        while nbytes:
            count = os.preadv(self.descriptor, [buffer[: min(nbytes, len(buffer))]], offset)
            if not count:
                raise OSError(f"{self.path} became shorter while it was read")
            file.write(buffer[:count])
            offset += count
            nbytes -= count

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class TensorOnDemand(TensorBase):
    """A tensor without an array of its own: :meth:`numpy` makes one whenever it is asked."""

    @property
    def raw(self) -> Self:
        """The tensor itself: there is no other representation."""
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:  # noqa: FBT001
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.numpy().__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.numpy().__dlpack_device__()


class FileTensor(TensorOnDemand):
    """A tensor whose little-endian bytes lie in an open file.

    Args:
        handle: The file.
        offset: Of the first byte in the file.
        dtype: Element type; 4-bit and 2-bit types are packed as the ONNX specification says.
        shape: Static shape.
        name: Name of the tensor.
    """

    def __init__(  # noqa: PLR0913 - mirrors onnx_ir.ExternalTensor
        self,
        handle: FileHandle,
        offset: int,
        dtype: ir.DataType,
        shape: ir.Shape,
        *,
        name: str,
        doc_string: str | None = None,
        metadata_props: dict[str, str] | None = None,
    ) -> None:
        super().__init__(name=name, doc_string=doc_string, metadata_props=metadata_props)
        self.handle = handle
        self.offset = offset
        self._dtype = dtype
        self._shape = shape
        shape.freeze()

    @property
    def dtype(self) -> ir.DataType:  # type: ignore[override]
        """Element type."""
        return self._dtype

    @property
    def shape(self) -> ir.Shape:  # type: ignore[override]
        """Static shape."""
        return self._shape

    def numpy(self) -> Array:
        """Return a read-only array; large ones are mapped, small ones read."""
        if self._dtype.bitwidth < 8:
            packed = ir.PackedTensor(
                np.frombuffer(self.tobytes(), np.uint8), self._dtype, shape=self._shape
            )
            return packed.numpy()
        kind = self._dtype.numpy().newbyteorder("<")
        return self._bytes().view(kind).reshape(self._shape.numpy())

    def _bytes(self) -> Array:
        if self.nbytes < _MAP_FROM:
            return np.frombuffer(self.tobytes(), np.uint8)
        start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
        shift = self.offset - start
        pages = mmap.mmap(
            self.handle.descriptor, shift + self.nbytes, offset=start, access=mmap.ACCESS_READ
        )
        return np.frombuffer(pages, np.uint8, count=self.nbytes, offset=shift)

    def tobytes(self) -> bytes:
        """Read the bytes into memory."""
        return self.handle.read(self.offset, self.nbytes) if self.nbytes else b""

    def tofile(self, file: Any) -> None:
        """Copy the bytes to an open binary file without holding more than one chunk."""
        self.handle.copy(self.offset, self.nbytes, file)

    def __repr__(self) -> str:
        return f"{self._repr_base()}(file={self.handle.path!r}, offset={self.offset})"


class MappedTensor(TensorOnDemand):
    """Another tensor seen through a function of its elements, computed when it is read.

    Args:
        source: Tensor of at least 8 bits per element.
        function: Called with a flat chunk and the index of its first element in the flat tensor;
            returns a new array of the chunk's length, of type ``dtype``. It must be pure: it is
            called on every read.
        dtype: Element type of the result; None: that of the source.
    """

    def __init__(
        self,
        source: ir.TensorProtocol,
        function: Callable[[Array, int], Array],
        *,
        name: str | None = None,
        dtype: ir.DataType | None = None,
    ) -> None:
        super().__init__(
            name=name or source.name,
            doc_string=source.doc_string,
            metadata_props=dict(source.metadata_props),
        )
        self.source = source
        self._function = function
        self._dtype = dtype or source.dtype

    @property
    def dtype(self) -> ir.DataType:  # type: ignore[override]
        """Element type."""
        return self._dtype

    @property
    def shape(self) -> ir.Shape:  # type: ignore[override]
        """Shape, that of the source."""
        shape: ir.Shape = self.source.shape  # type: ignore[assignment]
        return shape

    def chunks(self, nbytes: int = CHUNK_BYTES) -> Iterator[tuple[int, Array]]:
        """Yield (start, flat chunk) for chunks of about ``nbytes`` of the source."""
        for start, chunk in chunks(self.source, nbytes):
            yield start, self._function(chunk, start)

    def numpy(self) -> Array:
        """Compute the whole array."""
        out = np.empty(self.size, self.dtype.numpy())
        for start, chunk in self.chunks():
            out[start : start + chunk.size] = chunk
        return out.reshape(self.shape.numpy())

    def tobytes(self) -> bytes:
        """Compute the whole array as little-endian bytes."""
        return b"".join(little_endian(chunk) for _, chunk in self.chunks())

    def tofile(self, file: Any) -> None:
        """Compute and write chunk by chunk."""
        for _, chunk in self.chunks():
            file.write(little_endian(chunk))

    def __repr__(self) -> str:
        return f"{self._repr_base()}(of={self.source!r})"


def little_endian(array: Array) -> bytes:
    """Return the array's elements as little-endian bytes in C order."""
    kind = array.dtype.newbyteorder("<")
    return array.astype(kind, copy=False).tobytes()


def chunks(tensor: ir.TensorProtocol, nbytes: int = CHUNK_BYTES) -> Iterator[tuple[int, Array]]:
    """Yield (index of the first element, flat read-only chunk) over the tensor in C order.

    At most one chunk of a file or mapped tensor is in memory at a time. Element types below 8 bits
    come unpacked, as onnx_ir hands them out.
    """
    if isinstance(tensor, MappedTensor):
        yield from tensor.chunks(nbytes)
        return
    if isinstance(tensor, FileTensor) and tensor.dtype.bitwidth >= 8:
        kind = tensor.dtype.numpy().newbyteorder("<")
        step = max(1, nbytes // kind.itemsize)
        for start in range(0, tensor.size, step):
            count = min(step, tensor.size - start)
            raw = tensor.handle.read(tensor.offset + start * kind.itemsize, count * kind.itemsize)
            yield start, np.frombuffer(raw, kind)
        return
    flat = tensor.numpy().reshape(-1)
    step = max(1, nbytes // max(1, flat.dtype.itemsize))
    for start in range(0, flat.size, step):
        view = flat[start : start + step].view()
        view.flags.writeable = False
        yield start, view
