"""Values as bytes for the way out of a child process: no pickle, so that reading runs no code.

A message is a JSON text that describes the value, and the buffers that it refers to by index.
None, bool, int, float, str, bytes, pathlib.Path, list, tuple, dict, numpy scalars and arrays of any
element type (strings and bytes as objects, too) come back as what they were.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

Buffer = memoryview | bytes | bytearray
_EXTRA = frozenset(name for name in dir(ml_dtypes) if isinstance(getattr(ml_dtypes, name), type))


def encode(value: Any) -> tuple[bytes, list[memoryview]]:
    """Return the description of a value and its buffers.

    Raises:
        TypeError: The value, or something in it, is of a type that cannot be sent.
    """
    buffers: list[memoryview] = []
    return json.dumps(_describe(value, buffers)).encode(), buffers


def decode(description: bytes | bytearray, buffers: Sequence[Buffer]) -> Any:
    """Return the value again; arrays are views of the buffers.

    Raises:
        ValueError: The message is not one that :func:`encode` makes.
    """
    try:
        return _read(json.loads(description), buffers)
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a message of this codec: {error}") from error


def _describe(value: Any, buffers: list[memoryview]) -> Any:
    if value is None or isinstance(value, (bool, str)) or type(value) in {int, float}:
        return value
    for kind, write in _WRITERS:
        if isinstance(value, kind):
            return write(value, buffers)
    raise TypeError(f"a {type(value).__name__} cannot be sent between processes")


def _describe_array(array: np.ndarray[Any, Any], buffers: list[memoryview]) -> list[Any]:
    shape = list(array.shape)
    if array.dtype == object:
        return ["objects", shape, _describe_all(array.reshape(-1), buffers)]
    if array.dtype.fields is not None:
        raise TypeError("structured arrays cannot be sent between processes")
    name = array.dtype.name if array.dtype.name in _EXTRA else array.dtype.str
    flat = np.ascontiguousarray(array).reshape(-1)
    content = flat.view(np.uint8).data if array.nbytes else memoryview(b"")
    return ["array", name, shape, _store(content, buffers)]


def _store(view: memoryview, buffers: list[memoryview]) -> int:
    buffers.append(view)
    return len(buffers) - 1


def _describe_all(values: Iterable[Any], buffers: list[memoryview]) -> list[Any]:
    return [_describe(each, buffers) for each in values]


_WRITERS: tuple[tuple[Any, Callable[[Any, list[memoryview]], Any]], ...] = (
    (np.ndarray, _describe_array),
    (np.generic, lambda value, to: ["scalar", _describe_array(np.asarray(value), to)]),
    ((bytes, bytearray), lambda value, to: ["bytes", _store(memoryview(value), to)]),
    (Path, lambda value, _: ["path", str(value)]),
    (list, lambda value, to: ["list", _describe_all(value, to)]),
    (tuple, lambda value, to: ["tuple", _describe_all(value, to)]),
    (dict, lambda value, to: ["dict", [_describe_all(pair, to) for pair in value.items()]]),
)


def _read(node: Any, buffers: Sequence[Buffer]) -> Any:
    if not isinstance(node, list):
        return node
    return _READERS[node[0]](node, buffers)


def _read_array(node: list[Any], buffers: Sequence[Buffer]) -> np.ndarray[Any, Any]:
    _, name, shape, index = node
    kind = np.dtype(getattr(ml_dtypes, name)) if name in _EXTRA else np.dtype(name)
    if kind.hasobject or any(size < 0 for size in shape):
        raise ValueError("an array of objects or of negative size")
    if math.prod(shape) * kind.itemsize != len(buffers[index]):
        raise ValueError("the bytes of an array do not fit its shape")
    if not len(buffers[index]):
        return np.zeros(shape, kind)
    return np.frombuffer(buffers[index], kind).reshape(shape)


def _read_objects(node: list[Any], buffers: Sequence[Buffer]) -> np.ndarray[Any, Any]:
    _, shape, items = node
    array = np.empty(len(items), object)
    array[:] = [_read(each, buffers) for each in items]
    return array.reshape(shape)


_READERS: dict[str, Callable[[list[Any], Sequence[Buffer]], Any]] = {
    "array": _read_array,
    "objects": _read_objects,
    "scalar": lambda node, buffers: _read(node[1], buffers)[()],
    "bytes": lambda node, buffers: bytes(buffers[node[1]]),
    "path": lambda node, _: Path(node[1]),
    "list": lambda node, buffers: [_read(each, buffers) for each in node[1]],
    "tuple": lambda node, buffers: tuple(_read(each, buffers) for each in node[1]),
    "dict": lambda node, buffers: {_read(k, buffers): _read(v, buffers) for k, v in node[1]},
}
