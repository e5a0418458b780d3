"""Rules for tensors, sparse tensors and types: element types, shapes and bytes that fit together.

Nothing here reads the bytes of a large tensor; of those only the declared length is known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from converter.errors import ConverterError, InvalidModelError, LimitExceededError
from converter.io.limits import LoadLimits, check_location, quoted

Tensor = onnx.TensorProto
_INT64_MAX = (1 << 63) - 1
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)
_KEYS = frozenset({"location", "offset", "length", "checksum", "basepath"})
_PREPACKED = "prepacked"  # onnxruntime keeps prepared weights under keys that start so


@dataclass(frozen=True)
class ElementType:
    """How the elements of one data type are stored.

    Attributes:
        bits: Of one element in ``raw_data``; 0 for strings.
        field: Typed field of ``TensorProto`` that may hold them.
        per_entry: Elements in one entry of that field; 0.5 for complex numbers.
        low: Smallest entry, where the field is wider than the elements.
        high: Largest entry.
    """

    bits: int
    field: str
    per_entry: float = 1
    low: int | None = None
    high: int | None = None


_WORD = ElementType(16, "int32_data", 1, -(1 << 15), (1 << 16) - 1)
_BYTE = ElementType(8, "int32_data", 1, -(1 << 7), (1 << 8) - 1)
_NIBBLE = ElementType(4, "int32_data", 2, -(1 << 7), (1 << 8) - 1)
_CRUMB = ElementType(2, "int32_data", 4, -(1 << 7), (1 << 8) - 1)
_BY_NAME = {
    "FLOAT": ElementType(32, "float_data"),
    "UINT8": _BYTE,
    "INT8": _BYTE,
    "UINT16": _WORD,
    "INT16": _WORD,
    "INT32": ElementType(32, "int32_data"),
    "INT64": ElementType(64, "int64_data"),
    "STRING": ElementType(0, "string_data"),
    "BOOL": _BYTE,
    "FLOAT16": _WORD,
    "DOUBLE": ElementType(64, "double_data"),
    "UINT32": ElementType(32, "uint64_data"),
    "UINT64": ElementType(64, "uint64_data"),
    "COMPLEX64": ElementType(64, "float_data", 0.5),
    "COMPLEX128": ElementType(128, "double_data", 0.5),
    "BFLOAT16": _WORD,
    "FLOAT8E4M3FN": _BYTE,
    "FLOAT8E4M3FNUZ": _BYTE,
    "FLOAT8E5M2": _BYTE,
    "FLOAT8E5M2FNUZ": _BYTE,
    "UINT4": _NIBBLE,
    "INT4": _NIBBLE,
    "FLOAT4E2M1": _NIBBLE,
    "FLOAT8E8M0": _BYTE,
    "UINT2": _CRUMB,
    "INT2": _CRUMB,
}
ELEMENT_TYPES = {
    Tensor.DataType.Value(name): row
    for name, row in _BY_NAME.items()
    if name in Tensor.DataType.keys()  # noqa: SIM118 - no dict
}
_TYPED = tuple(sorted({row.field for row in _BY_NAME.values()}))


class TensorRules:
    """Checks tensors and adds up what they declare.

    Args:
        limits: Bounds in force.
    """

    def __init__(self, limits: LoadLimits) -> None:
        self._limits = limits
        self._total = 0

    def check(self, tensor: onnx.TensorProto, where: str) -> None:
        """Check one dense tensor.

        Raises:
            InvalidModelError: Type, shape and bytes do not fit together.
            LimitExceededError: All tensors together declare too many bytes.
        """
        row = ELEMENT_TYPES.get(tensor.data_type)
        if row is None:
            raise _bad(f"the element type {tensor.data_type} of a tensor is unknown", where)
        elements = self._elements(tensor.dims, where)
        nbytes = (elements * row.bits + 7) // 8
        self._declare(nbytes)
        if tensor.HasField("segment"):
            raise _bad("a tensor is stored in segments, which nothing supports", where)
        if tensor.data_location == Tensor.EXTERNAL:
            self._external(tensor, nbytes, where)
        else:
            self._inline(tensor, row, elements, where)

    def check_sparse(self, sparse: onnx.SparseTensorProto, where: str) -> None:
        """Check a sparse tensor; its indices where their bytes are at hand.

        Raises:
            InvalidModelError: Values, indices and shape do not fit together.
            LimitExceededError: As a dense tensor it would be too large.
        """
        values, indices = sparse.values, sparse.indices
        self.check(values, where)
        self.check(indices, where)
        elements = self._elements(sparse.dims, where)
        row = ELEMENT_TYPES[values.data_type]
        dense = (elements * row.bits + 7) // 8
        if dense > self._limits.dense_bytes:
            raise _too_large(f"a sparse tensor has {dense} bytes as a dense one", where)
        self._declare(dense)
        if len(values.dims) != 1 or indices.data_type != Tensor.INT64:
            raise _bad("a sparse tensor needs a list of values and int64 indices", where)
        count, rank = values.dims[0], len(sparse.dims)
        linear = list(indices.dims) == [count]
        if not linear and list(indices.dims) != [count, rank]:
            raise _bad("the indices of a sparse tensor do not fit its values", where)
        if indices.data_location != Tensor.EXTERNAL:
            array = onnx.numpy_helper.to_array(indices)
            check_indices(array, tuple(sparse.dims), where)

    def _elements(self, dims: Iterable[int], where: str) -> int:
        """Return the number of elements of a shape."""
        sizes = list(dims)
        if len(sizes) > self._limits.rank:
            raise _too_large(f"a tensor has {len(sizes)} dimensions", where)
        if any(size < 0 for size in sizes):
            raise _bad("a tensor has a negative dimension", where)
        # zeros apart: a library that multiplies in order would overflow all the same
        if math.prod(size for size in sizes if size) > _INT64_MAX:
            raise _bad("the dimensions of a tensor overflow 64 bits", where)
        return math.prod(sizes)

    def _declare(self, nbytes: int) -> None:
        self._total += nbytes
        if self._total > self._limits.tensor_bytes:
            raise LimitExceededError(
                f"the tensors of the model declare more than {self._limits.tensor_bytes} bytes",
                allowed=f"at most {self._limits.tensor_bytes} bytes",
            )

    def _inline(
        self, tensor: onnx.TensorProto, row: ElementType, elements: int, where: str
    ) -> None:
        used = [name for name in _TYPED if len(getattr(tensor, name))]
        if tensor.HasField("raw_data") and (used or row.bits == 0):
            raise _bad("a tensor has both raw bytes and typed elements", where)
        if used not in ([], [row.field]):
            raise _bad(f"a tensor keeps its elements in {', '.join(used)}", where, row.field)
        if tensor.HasField("raw_data"):
            found, wanted, unit = len(tensor.raw_data), (elements * row.bits + 7) // 8, "bytes"
        else:
            entries = getattr(tensor, row.field)
            found, wanted, unit = len(entries), math.ceil(elements / row.per_entry), "elements"
            if row.low is not None and found and not _within(entries, row):
                raise _bad("an element of a tensor is out of the range of its type", where)
        if found != wanted:
            raise _bad(f"a tensor has {found} {unit} but its shape needs {wanted}", where)

    def _external(self, tensor: onnx.TensorProto, nbytes: int, where: str) -> None:
        if tensor.data_type == Tensor.STRING:
            raise _bad("a tensor of strings cannot be external", where)
        if tensor.HasField("raw_data") or any(len(getattr(tensor, name)) for name in _TYPED):
            raise _bad("an external tensor also holds data itself", where)
        entries = external_entries(tensor, where)
        length = entries.get("length")
        if length is not None and int(length) != nbytes:
            raise _bad(
                f"a tensor has {length} bytes in its file but its shape needs {nbytes}", where
            )


def external_entries(tensor: onnx.TensorProto, where: str = "") -> dict[str, str]:
    """Return the checked entries of an external tensor: location, and offset and length if given.

    Raises:
        InvalidModelError: A key is unknown, missing or given twice, the location is no relative
            path below the model's folder, or a number is no number.
    """
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries:
            raise _bad(f"external data gives {quoted(entry.key)} twice", where)
        if entry.key not in _KEYS and not entry.key.startswith(_PREPACKED):
            raise _bad(f"external data has the unknown entry {quoted(entry.key)}", where)
        entries[entry.key] = entry.value
    if "location" not in entries:
        raise _bad("external data has no location", where)
    try:
        check_location(entries["location"])
    except ConverterError as error:
        error.where = f"{where}, {error.where}" if where else error.where
        raise
    for key in ("offset", "length"):
        text = entries.get(key)
        if text is not None and (not _NUMBER.fullmatch(text) or int(text) > _INT64_MAX):
            raise _bad(f"the {key} of external data is {quoted(text)}, no byte count", where)
    return entries


def check_indices(indices: np.ndarray[Any, Any], dims: tuple[int, ...], where: str) -> None:
    """Check the indices of a sparse tensor, int64 (count,) or (count, rank).

    Raises:
        InvalidModelError: An index is outside of the shape, twice there, or out of order.
    """
    if not indices.size:
        return
    if indices.ndim == 2:
        if (indices < 0).any() or (indices >= np.array(dims, np.int64)).any():
            raise _bad("an index of a sparse tensor is outside of its shape", where)
        flat = np.ravel_multi_index(tuple(indices.T), dims)
    else:
        flat = indices
        if flat.min() < 0 or flat.max() >= math.prod(dims):
            raise _bad("an index of a sparse tensor is outside of its shape", where)
    if (np.diff(flat) <= 0).any():
        raise _bad("the indices of a sparse tensor are not sorted and unique", where)


def check_type(proto: onnx.TypeProto, where: str, *, limits: LoadLimits) -> None:
    """Check the type of a value: known element types inside, whatever it is made of.

    Raises:
        InvalidModelError: It names no type, or an unknown element type.
        LimitExceededError: A shape has too many dimensions.
    """
    rest = [proto]
    while rest:
        one = rest.pop()
        kind = one.WhichOneof("value")
        if kind is None:
            raise _bad("a value has no type", where)
        inner = getattr(one, kind)
        if kind in {"tensor_type", "sparse_tensor_type"}:
            if inner.elem_type not in ELEMENT_TYPES:
                raise _bad(f"a value has the unknown element type {inner.elem_type}", where)
            if len(inner.shape.dim) > limits.rank:
                raise _too_large(f"a value has {len(inner.shape.dim)} dimensions", where)
        elif kind == "map_type":
            if inner.key_type not in ELEMENT_TYPES:
                raise _bad(f"a map has the unknown key type {inner.key_type}", where)
            rest.append(inner.value_type)
        elif kind in {"sequence_type", "optional_type"}:
            rest.append(inner.elem_type)


def tensors_of(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    """Yield the dense tensors in an attribute."""
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def sparse_tensors_of(attribute: onnx.AttributeProto) -> Iterator[onnx.SparseTensorProto]:
    """Yield the sparse tensors in an attribute."""
    if attribute.HasField("sparse_tensor"):
        yield attribute.sparse_tensor
    yield from attribute.sparse_tensors


def _within(entries: Any, row: ElementType) -> bool:
    array = np.fromiter(entries, np.int64, len(entries))
    return bool(row.low is not None and array.min() >= row.low and array.max() <= (row.high or 0))


def _bad(what: str, where: str, allowed: str = "") -> InvalidModelError:
    return InvalidModelError(what, where=where, allowed=allowed)


def _too_large(what: str, where: str) -> LimitExceededError:
    return LimitExceededError(what, where=where, hint="the model is broken or hostile")
