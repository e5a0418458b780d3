"""Data files beside a model: what goes where is planned first, then each is streamed once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converter.core.tensors import FileTensor, MappedTensor, chunks, little_endian
from converter.errors import InvalidModelError
from converter.io import safetensors
from converter.io.layout import Layout, WeightsFormat
from converter.io.skeleton import Placed, set_external
from converter.io.sparsify import SparsePart

if TYPE_CHECKING:
    import onnx_ir as ir

SUFFIXES: dict[WeightsFormat, str] = {"raw": ".data", "safetensors": ".safetensors"}
PAGE = 4096
_SMALL_ALIGNMENT = 64
_CHUNK = 4 << 20


@dataclass(frozen=True)
class DataFile:
    """The content of one data file before it is written.

    Attributes:
        head: Its first bytes.
        places: Offset of each tensor in the file, ascending, without overlap.
        nbytes: Length of the file.
    """

    head: bytes
    places: tuple[tuple[int, ir.TensorProtocol], ...]
    nbytes: int


def plan(placed: Sequence[Placed], layout: Layout, alignment: int = PAGE) -> list[DataFile]:
    """Divide tensors among files; a tensor that several names share is stored once.

    Args:
        placed: The tensors in the order of the model.
        layout: Says how large a file may be, and which container it is.
        alignment: Offsets of tensors of a page and more are multiples of it (raw files only), those
            of smaller ones of 64 at most.
    """
    if layout.weights_format == "safetensors":
        return list(_safetensors(placed, layout.shard_size))
    tensors = {id(one.tensor): one.tensor for one in placed}
    return list(_raw(tensors.values(), layout.shard_size, alignment))


def _raw(
    tensors: Iterable[ir.TensorProtocol], limit: int | None, alignment: int
) -> Iterator[DataFile]:
    places: list[tuple[int, ir.TensorProtocol]] = []
    end = 0
    for tensor in tensors:
        step = alignment if tensor.nbytes >= PAGE else min(alignment, _SMALL_ALIGNMENT)
        start = end + -end % step
        if limit is not None and places and start + tensor.nbytes > limit:
            yield DataFile(b"", tuple(places), end)
            places, start = [], 0
        places.append((start, tensor))
        end = start + tensor.nbytes
    if places:
        yield DataFile(b"", tuple(places), end)


def _safetensors(placed: Sequence[Placed], limit: int | None) -> Iterator[DataFile]:
    batch: list[safetensors.Entry] = []
    size = PAGE
    for entry in safetensors.entries_of(placed):
        room = entry.room + entry.tensor.nbytes
        if limit is not None and batch and size + room > limit:
            yield _safetensors_file(batch)
            batch, size = [], PAGE
        batch.append(entry)
        size += room
    if batch:
        yield _safetensors_file(batch)


def _safetensors_file(batch: Iterable[safetensors.Entry]) -> DataFile:
    entries = safetensors.in_file_order(batch)
    head = safetensors.header(entries)
    places, end = [], len(head)
    for entry in entries:
        places.append((end, entry.tensor))
        end += entry.tensor.nbytes
    return DataFile(head, tuple(places), end)


def names_of(stem: str, digest: str, count: int, form: WeightsFormat) -> list[str]:
    """Return the names of the data files of one model, which tell their content apart."""
    suffix = SUFFIXES[form]
    if count == 1:
        return [f"{stem}-{digest[:16]}{suffix}"]
    return [f"{stem}-{digest[:16]}-{i:05}-of-{count:05}{suffix}" for i in range(1, count + 1)]


def refer(placed: Sequence[Placed], files: Sequence[DataFile], names: Sequence[str]) -> None:
    """Let the placeholders of a model point into its data files."""
    where = {
        id(tensor): (name, offset)
        for name, file in zip(names, files, strict=True)
        for offset, tensor in file.places
    }
    for one in placed:
        name, offset = where[id(one.tensor)]
        set_external(one.proto, name, offset, one.tensor.nbytes)


@contextmanager
def referred(
    placed: Sequence[Placed], files: Sequence[DataFile], names: Sequence[str]
) -> Iterator[None]:
    """Do so for a while, to see how long the model gets."""
    kept = [
        (one, one.proto.external_data[0].value, int(one.proto.external_data[2].value))
        for one in placed
    ]
    refer(placed, files, names)
    try:
        yield
    finally:
        for one, location, nbytes in kept:
            set_external(one.proto, location, 0, nbytes)


def write_file(file: Any, content: DataFile) -> str:
    """Write one data file; returns the SHA-256 of its bytes as hex."""
    hashing = _Hashing(file)
    hashing.write(content.head)
    for offset, tensor in content.places:
        hashing.write(bytes(offset - hashing.nbytes))
        write_tensor(hashing, tensor)
    return hashing.digest.hexdigest()


def digest_of(digests: Sequence[str]) -> str:
    """Return one digest for all data files of a model."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


class _Counting:
    """Passes bytes on to a file and counts them."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.nbytes = 0

    def write(self, content: bytes) -> None:
        self._file.write(content)
        self.nbytes += len(content)


class _Hashing(_Counting):
    """Hashes them, too."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.digest = hashlib.sha256()

    def write(self, content: bytes) -> None:
        super().write(content)
        self.digest.update(content)


def write_tensor(file: Any, tensor: ir.TensorProtocol) -> None:
    """Write exactly the bytes that the tensor claims, a chunk at a time where that is possible."""
    counting = _Counting(file)
    if isinstance(tensor, FileTensor | MappedTensor | SparsePart):
        tensor.tofile(counting)
    elif tensor.dtype.bitwidth >= 8 and tensor.nbytes > _CHUNK:
        for _, chunk in chunks(tensor):
            counting.write(little_endian(chunk))
    else:
        counting.write(tensor.tobytes())
    if counting.nbytes != tensor.nbytes:
        raise InvalidModelError(
            f"a tensor gave {counting.nbytes} bytes where its type and shape need {tensor.nbytes}",
            where=f"tensor {tensor.name!r}",
        )
