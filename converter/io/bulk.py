"""Finding the bytes of tensors that a parsed model does not hold, as lazy tensors.

A tensor may lie in the model file (left there by :mod:`converter.io.wire`), in an external data
file, or be sparse. Each becomes an entry of :class:`Bulk`, and its proto a placeholder that onnx_ir
reads as an external tensor, until :meth:`Bulk.tensor_of` gives the real one.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir import serde

from converter.core.tensors import FileHandle, FileTensor
from converter.errors import InvalidModelError, LimitExceededError
from converter.io.limits import DataFiles, LoadLimits, quoted
from converter.io.skeleton import set_external
from converter.io.sparse import SparseTensor
from converter.io.wire import Place

DENSE_BYTES = 2 << 30
"""Largest tensor that a sparse one may become."""

_SHARED_TIMES, _SHARED_BYTES = 16, 256 << 20
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)
_TYPED = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


class Bulk:
    """The tensors of one model whose bytes are not in its proto.

    Args:
        handle: The model file, for tensors that were left in it.
        places: Where those lie, by the location of their placeholders.
        data: The external data files.
        limits: Bounds in force.

    Attributes:
        files: Paths of the external data files that the model refers to, in order.
    """

    def __init__(
        self,
        handle: FileHandle,
        places: Mapping[str, Place],
        data: DataFiles,
        limits: LoadLimits,
    ) -> None:
        self._handle = handle
        self._places = places
        self._data = data
        self._limits = limits
        self._room = limits.tensor_bytes
        self._claimed: dict[str, int] = {}
        self._tensors: dict[str, ir.TensorProtocol] = {}
        self._token = f"converter:{secrets.token_hex(16)}/"
        self.files: dict[str, None] = {}

    def open(self, proto: onnx.TensorProto) -> None:
        """Find the bytes of a tensor that has them elsewhere; others are left alone.

        Raises:
            InvalidModelError: Offset, length, type and shape do not fit, or the path is refused.
            ModelError: The data file is missing.
            LimitExceededError: The tensors together exceed the limits.
        """
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            self.place(proto, self._file_tensor(proto))

    def place(self, proto: onnx.TensorProto, tensor: ir.TensorProtocol) -> None:
        """Let ``proto`` stand for a tensor until :meth:`tensor_of` is asked for it."""
        location = f"{self._token}{len(self._tensors)}"
        proto.name = tensor.name or ""
        proto.data_type = int(tensor.dtype)
        proto.dims[:] = list(tensor.shape.numpy())
        set_external(proto, location, 0, tensor.nbytes)
        self._tensors[location] = tensor

    def _file_tensor(self, proto: onnx.TensorProto) -> FileTensor:
        if proto.HasField("raw_data") or any(getattr(proto, name) for name in _TYPED):
            raise InvalidModelError(
                "a tensor holds its data and also says that it is elsewhere",
                where=f"tensor {quoted(proto.name)}",
            )
        entries = {entry.key: entry.value for entry in proto.external_data}
        nbytes = declared_bytes(proto)
        place = self._places.get(entries.get("location", ""))
        if place is not None:
            handle, offset, length = self._handle, place.offset, place.nbytes
        else:
            location = entries.get("location", "")
            handle = self._data.open(location)
            self.files[handle.path] = None
            offset = _number(entries, "offset", 0, proto)
            length = _number(entries, "length", nbytes, proto)
        self._check_bytes(proto, nbytes, length, handle.nbytes - offset)
        self._check_overlap(handle, nbytes)
        return FileTensor(
            handle,
            offset,
            ir.DataType(proto.data_type),
            ir.Shape(proto.dims),
            name=proto.name,
            doc_string=proto.doc_string or None,
            metadata_props={e.key: e.value for e in proto.metadata_props} or None,
        )

    def _check_bytes(
        self, proto: onnx.TensorProto, nbytes: int, length: int, available: int
    ) -> None:
        where = f"tensor {quoted(proto.name)}"
        if length != nbytes:
            raise InvalidModelError(
                f"a tensor has {length} bytes of data, but its type and shape need {nbytes}",
                where=where,
            )
        if length > available:
            raise InvalidModelError(
                "the data of a tensor ends beyond the end of its file", where=where
            )
        self._room -= nbytes
        if self._room < 0:
            raise LimitExceededError(
                "the tensors of the model are too large together",
                where=where,
                allowed=f"at most {self._limits.tensor_bytes} bytes",
            )

    def _check_overlap(self, handle: FileHandle, nbytes: int) -> None:
        """Bound what tensors that share bytes of one file grow to when each is written apart."""
        claimed = self._claimed.get(handle.path, 0) + nbytes
        self._claimed[handle.path] = claimed
        allowed = _SHARED_TIMES * handle.nbytes + _SHARED_BYTES
        if claimed > allowed:
            raise LimitExceededError(
                f"the tensors in one file of {handle.nbytes} bytes declare {claimed} bytes",
                where=quoted(handle.path),
                allowed=f"at most {allowed} bytes: {_SHARED_TIMES} tensors on each byte",
            )

    def sparse(self, sparse: onnx.SparseTensorProto) -> SparseTensor:
        """Return a sparse tensor, which becomes dense when it is read.

        Raises:
            InvalidModelError: Indices, values and shape do not fit.
            LimitExceededError: It would be larger than :data:`DENSE_BYTES`.
        """
        values, indices = self._tensor(sparse.values), self._tensor(sparse.indices)
        where = f"sparse tensor {quoted(sparse.values.name)}"
        shape = tuple(sparse.dims)
        nbytes = math.prod(shape) * max(8, values.dtype.bitwidth) // 8
        if nbytes > min(DENSE_BYTES, self._limits.tensor_bytes):
            raise LimitExceededError(
                f"a sparse tensor has {nbytes} bytes when made dense",
                where=where,
                allowed=f"at most {DENSE_BYTES} bytes",
            )
        flat = _flat_indices(indices.numpy(), shape)
        texts = values.dtype == ir.DataType.STRING
        if flat is None or flat.size != values.size or texts:
            raise InvalidModelError("the indices do not fit the values and the shape", where=where)
        return SparseTensor(values, indices, _flat_indices, ir.Shape(shape))

    def _tensor(self, proto: onnx.TensorProto) -> ir.TensorProtocol:
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            return self._file_tensor(proto)
        return serde.deserialize_tensor(proto)

    def tensor_of(self, placeholder: ir.ExternalTensor) -> ir.TensorProtocol:
        """Return the tensor that a placeholder stands for."""
        return self._tensors[str(placeholder.location)]


def declared_bytes(proto: onnx.TensorProto) -> int:
    """Return the bytes that the type and shape of a tensor need.

    Raises:
        InvalidModelError: The type is unknown or has no fixed size, or a dimension is negative.
    """
    where = f"tensor {quoted(proto.name)}"
    try:
        dtype = ir.DataType(proto.data_type)
        bits = dtype.bitwidth
    except (ValueError, TypeError) as error:
        raise InvalidModelError(
            f"a tensor with data elsewhere has the type {proto.data_type}", where=where
        ) from error
    if any(size < 0 for size in proto.dims):
        raise InvalidModelError("a tensor has a negative dimension", where=where)
    return int(math.prod(proto.dims) * bits + 7) // 8


def _number(entries: Mapping[str, str], key: str, default: int, proto: onnx.TensorProto) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text):
        raise InvalidModelError(
            f"the {key} of external data is {quoted(text, 40)}",
            where=f"tensor {quoted(proto.name)}",
            allowed="a non-negative integer",
        )
    return int(text)


def _flat_indices(
    indices: np.ndarray[Any, Any], shape: tuple[int, ...]
) -> np.ndarray[Any, Any] | None:
    """Return indices into the flat tensor, or None if some are out of range."""
    if indices.dtype != np.int64 or any(size < 0 for size in shape):
        return None
    if indices.ndim == 2 and indices.shape[1] == len(shape):
        limits = np.asarray(shape, np.int64)
        if ((indices < 0) | (indices >= limits)).any():
            return None
        steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return indices @ np.asarray(steps, np.int64)
    if indices.ndim != 1 or ((indices < 0) | (indices >= math.prod(shape))).any():
        return None
    return indices
