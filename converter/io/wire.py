"""The protobuf wire format of ONNX files, read and written without holding tensor bytes.

:func:`scan` reads an open file and returns a *skeleton*: the same serialized model in which the
bytes of every large tensor are replaced by a placeholder that says where in the file they lie.
:func:`splice` is the way back: from a serialized skeleton to the pieces of a complete file. A
skeleton of a model of gigabytes has kilobytes, so everything else can use the ordinary protobuf
classes.

A placeholder is a tensor with ``data_location = EXTERNAL`` whose ``location`` starts with a random
token of that very call; no file can hold one by chance or on purpose.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from converter.errors import FormatError, LimitExceededError

INLINE_BYTES = 1024
"""Tensors up to this size stay inside skeletons."""

MAX_DEPTH = 100
"""Nesting of messages; protobuf's own limit."""

MAX_FIELDS = 4_000_000
MAX_SKELETON_BYTES = (1 << 31) - 1
_WINDOW = 1 << 16

CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
}
"""Message, field number -> message inside it that can hold tensors."""

_ONCE = {"attribute": (5, 22), "sparse": (1, 2)}
"""Fields that hold one tensor: repeated, protobuf would merge two placeholders into one."""

_DIMS, _DATA_TYPE, _SEGMENT, _RAW, _ENTRIES, _LOCATION = 1, 2, 3, 9, 13, 14
_AS_RAW = {(4, 1), (4, 14), (10, 11), (10, 15)}
"""(typed list, data type) whose packed form is the same bytes as raw_data."""
_TYPED = {4, 5, 6, 7, 10, 11}

Field = tuple[int, int, int, int, int]
"""Field number, wire type, start of the field, start and end of its payload."""


class Source(Protocol):
    """Bytes that can be read at any place."""

    @property
    def nbytes(self) -> int:
        """Total length."""
        ...

    @property
    def path(self) -> str:
        """Name for messages."""
        ...

    def read(self, offset: int, nbytes: int) -> bytes:
        """Read exactly ``nbytes``."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a tensor's little-endian bytes lie in the scanned file."""

    offset: int
    nbytes: int


@dataclass(frozen=True)
class Scan:
    """A skeleton and the tensors that were left in the file.

    Attributes:
        skeleton: A serialized ``ModelProto``.
        places: By the ``location`` of each placeholder.
    """

    skeleton: bytes
    places: dict[str, Place]


@dataclass
class Memory:
    """Bytes in memory as a :class:`Source`."""

    data: bytes
    path: str = "model"

    @property
    def nbytes(self) -> int:
        """Total length."""
        return len(self.data)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return a slice."""
        return self.data[offset : offset + nbytes]


def new_token() -> str:
    """Return a prefix of placeholder locations that no file can guess."""
    return f"converter:{secrets.token_hex(16)}/"


def scan(source: Source, *, max_bytes: int = MAX_SKELETON_BYTES) -> Scan:
    """Read everything but the large tensors of a serialized ``ModelProto``.

    Args:
        source: The open file.
        max_bytes: Largest skeleton.

    Raises:
        FormatError: The bytes are no protobuf message.
        LimitExceededError: More than ``max_bytes`` remain beside the tensors, or millions of
            fields.
    """
    scanner = _Scanner(source, min(max_bytes, MAX_SKELETON_BYTES))
    skeleton = scanner.message(0, source.nbytes, "model", 0)
    return Scan(skeleton, scanner.places)


class _Fields:
    """Reads the fields of messages through a window."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._window = b""
        self._base = 0
        self._left = MAX_FIELDS

    def error(self, what: str, position: int) -> FormatError:
        return FormatError(
            f"the file is damaged or not an ONNX model: {what}",
            where=f"{self._source.path!r}, byte {position}",
            hint="download or export the model again",
        )

    def _fill(self, position: int) -> None:
        size = min(_WINDOW, self._source.nbytes - position)
        self._window = self._source.read(position, size)
        self._base = position

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """Read a variable-length integer; returns it and the position after it."""
        index = position - self._base
        if not 0 <= index <= len(self._window) - 10:
            self._fill(position)
            index = 0
        window = self._window
        result = shift = 0
        for byte in window[index : index + min(10, end - position)]:
            result |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                if result >> 64:
                    raise self.error("an integer has more than 64 bits", position)
                return result, position + shift // 7
        raise self.error("an integer is cut off or too long", position)

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Yield the fields of the message in ``start:end``."""
        position = start
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise LimitExceededError(
                    f"the model has more than {MAX_FIELDS} fields", where=repr(self._source.path)
                )
            key, payload = self.varint(position, end)
            number, wire = key >> 3, key & 7
            if number == 0 or key >> 32:
                raise self.error("a field has no valid number", position)
            if wire == 2:
                size, payload = self.varint(payload, end)
                after = payload + size
            elif wire == 0:
                _, after = self.varint(payload, end)
            elif wire in {1, 5}:
                after = payload + (8 if wire == 1 else 4)
            else:
                raise self.error(f"a field has the wire type {wire}", position)
            if after > end:
                raise self.error("a field is longer than the message around it", position)
            yield number, wire, position, payload, after
            position = after


class _Scanner(_Fields):
    def __init__(self, source: Source, max_bytes: int) -> None:
        super().__init__(source)
        self._token = new_token()
        self._room = max_bytes
        self.places: dict[str, Place] = {}

    def copy(self, start: int, end: int) -> bytes:
        """Read bytes into the skeleton, unless it grows too large."""
        self._room -= end - start
        if self._room < 0:
            raise LimitExceededError(
                "the model is too large beside its raw tensor data",
                where=repr(self._source.path),
                hint="store the weights as raw data or in an external data file",
            )
        first = start - self._base
        if first >= 0 and end - self._base <= len(self._window):
            return self._window[first : end - self._base]
        return self._source.read(start, end - start)

    def message(self, start: int, end: int, kind: str, depth: int) -> bytes:
        """Return the message with every large tensor inside it replaced."""
        if depth > MAX_DEPTH:
            raise LimitExceededError(
                f"messages are nested deeper than {MAX_DEPTH}", where=repr(self._source.path)
            )
        children, once = CHILDREN[kind], dict.fromkeys(_ONCE.get(kind, ()), 0)
        out, run = bytearray(), start
        for number, wire, at, payload, after in self.fields(start, end):
            child = children.get(number) if wire == 2 else None
            if child is None:
                continue
            if number in once:
                once[number] += 1
                if once[number] > 1:
                    raise self.error("a field that holds one tensor appears twice", at)
            if after - payload <= INLINE_BYTES:
                continue
            if child == "tensor":
                inner = self.tensor(payload, after)
                if inner is None:
                    continue
            else:
                inner = self.message(payload, after, child, depth + 1)
            out += self.copy(run, at)
            out += delimited(number, inner)
            run = after
        out += self.copy(run, end)
        return bytes(out)

    def tensor(self, start: int, end: int) -> bytes | None:
        """Return a placeholder for a tensor message, or None to keep the tensor as it is."""
        data: dict[int, Field] = {}
        data_type = 0
        for field in self.fields(start, end):
            number, wire, at, payload, _ = field
            if number in _TYPED and (wire != 2 or number in data):
                return None  # one field per element, or strings: leave it to protobuf
            if number == _RAW and number in data:
                raise self.error("a tensor has its raw data twice", at)
            if number == _DATA_TYPE and wire == 0:
                data_type, _ = self.varint(payload, end)
            data[number] = field
        bulk = self._bulk(data, data_type)
        if bulk is None:
            return None
        number, wire, at, payload, after = data[bulk]
        self._check_location(data, at)
        location = f"{self._token}{len(self.places)}"
        self.places[location] = Place(payload, after - payload)
        kept = self.copy(start, at) + self.copy(after, end)
        return kept + _placeholder(location, payload, after - payload)

    def _bulk(self, data: Mapping[int, Field], data_type: int) -> int | None:
        """Return the field whose payload is the tensor's bytes, if it is large."""
        stored = [number for number in data if number == _RAW or number in _TYPED]
        if len(stored) != 1:
            return None
        number, wire, _, payload, after = data[stored[0]]
        as_raw = number == _RAW or (number, data_type) in _AS_RAW
        return number if wire == 2 and as_raw and after - payload > INLINE_BYTES else None

    def _check_location(self, data: Mapping[int, Field], at: int) -> None:
        """Refuse a tensor with raw data that also has them elsewhere."""
        elsewhere = _ENTRIES in data or _SEGMENT in data
        if _LOCATION in data:
            _, wire, _, payload, after = data[_LOCATION]
            elsewhere = elsewhere or wire != 0 or self.varint(payload, after)[0] != 0
        if elsewhere:
            raise self.error("a tensor holds its data and also says that it is elsewhere", at)


def encode(value: int) -> bytes:
    """Encode a non-negative integer with variable length."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def delimited(number: int, payload: bytes) -> bytes:
    """Encode a field with a length."""
    return encode(number << 3 | 2) + encode(len(payload)) + payload


def _placeholder(location: str, offset: int, nbytes: int) -> bytes:
    entries = {"location": location, "offset": str(offset), "length": str(nbytes)}
    parts = [
        delimited(_ENTRIES, delimited(1, key.encode()) + delimited(2, value.encode()))
        for key, value in entries.items()
    ]
    return b"".join(parts) + encode(_LOCATION << 3) + encode(1)


@dataclass(frozen=True)
class Hole:
    """A place in a file where ``nbytes`` of the tensor with this location go."""

    location: str
    nbytes: int

    def __len__(self) -> int:
        return self.nbytes


def splice(skeleton: bytes, token: str, sizes: Mapping[str, int]) -> list[bytes | Hole]:
    """Turn a serialized skeleton into the pieces of a file with the tensors inside.

    Args:
        skeleton: Serialized ``ModelProto``.
        token: Prefix of the locations of its placeholders.
        sizes: Bytes of each tensor, by location.
    """
    pieces, _ = _Splicer(skeleton, token.encode(), sizes).message(0, len(skeleton), "model")
    return pieces


class _Splicer(_Fields):
    def __init__(self, data: bytes, token: bytes, sizes: Mapping[str, int]) -> None:
        super().__init__(Memory(data))
        self._window = data
        self._data = data
        self._left = 1 << 62
        self._sizes = sizes
        self._marks: list[int] = []
        found = data.find(token)
        while found >= 0:
            self._marks.append(found)
            found = data.find(token, found + 1)

    def _has_mark(self, start: int, end: int) -> bool:
        index = bisect_left(self._marks, start)
        return index < len(self._marks) and self._marks[index] < end

    def message(self, start: int, end: int, kind: str) -> tuple[list[bytes | Hole], int]:
        """Return the pieces of the message and their total length."""
        children = CHILDREN[kind]
        pieces: list[bytes | Hole] = []
        total, run = 0, start
        for number, wire, at, payload, after in self.fields(start, end):
            child = children.get(number) if wire == 2 else None
            if child is None or not self._has_mark(payload, after):
                continue
            if child == "tensor":
                inner, size = self._tensor(payload, after)
            else:
                inner, size = self.message(payload, after, child)
            head = self._data[run:at] + encode(number << 3 | 2) + encode(size)
            pieces += [head, *inner]
            total += len(head) + size
            run = after
        pieces.append(self._data[run:end])
        return pieces, total + end - run

    def _tensor(self, start: int, end: int) -> tuple[list[bytes | Hole], int]:
        head, tail, location = b"", b"", ""
        for number, _, at, payload, after in self.fields(start, end):
            if number == _ENTRIES:
                text = self._data[payload:after]
                location = location or _location_in(text)
            elif number < _RAW:
                head += self._data[at:after]
            elif number != _LOCATION:
                tail += self._data[at:after]
        nbytes = self._sizes[location]
        head += encode(_RAW << 3 | 2) + encode(nbytes)
        return [head, Hole(location, nbytes), tail], len(head) + nbytes + len(tail)


def _location_in(entry: bytes) -> str:
    """Return the value of the external data entry if its key is ``location``."""
    fields = {
        number: entry[payload:after]
        for number, _, _, payload, after in _Fields(Memory(entry)).fields(0, len(entry))
    }
    return fields.get(2, b"").decode() if fields.get(1) == b"location" else ""
