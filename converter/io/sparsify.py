"""Writing weights with many zeros as sparse initializers: only on request, only where smaller.

The form is the specification's: values that are not zero and their int64 indices into the flat
tensor, in order. Both are computed from the dense tensor while they are written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core.graph import graphs
from converter.core.tensors import TensorOnDemand, chunks, little_endian
from converter.io.sparse import SparseTensor
from converter.io.wire import INLINE_BYTES

Array = np.ndarray[Any, Any]

SINCE = 6
"""First IR version with sparse initializers."""

WARNING = (
    "sparse initializers are read by onnxruntime and by this program; onnx's version converter and "
    "reference evaluator, onnxruntime's quantize_dynamic and tools built on onnx-ir lose or refuse "
    "them. onnxruntime makes them dense when it loads the file: nothing gets faster. The pass pack "
    "stores zeros in less space, in a file that every tool reads"
)
_INDEX_BYTES = 8
_OVERHEAD = 48  # two more tensors with their fields
_TYPES = frozenset(
    {
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
    }
)


def sparsified(model: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
    """Return a clone whose sparse initializers are stored as such, and notes for the report.

    Inputs that callers may override stay dense, and so does what would not become smaller.
    """
    if model.ir_version < SINCE:
        note = f"nothing was written sparse: that needs IR version {SINCE}, the model has "
        return model, (note + str(model.ir_version),)
    made = model.clone()
    count = before = after = 0
    known: dict[int, SparseTensor | None] = {}
    for graph in graphs(made):
        for value in graph.initializers.values():
            dense = value.const_value
            if id(dense) not in known:
                known[id(dense)] = _sparse(dense)
            tensor = known[id(dense)]
            if tensor is not None and not value.is_graph_input():
                count += 1
                before += tensor.nbytes
                after += tensor.values.nbytes + tensor.indices.nbytes
                value.const_value = tensor
    if not count:
        share = "two thirds (float32), four fifths (16 bits) or eight ninths (8 bits)"
        return model, (f"no tensor was written sparse: none has more zeros than {share}",)
    words = "1 tensor" if count == 1 else f"{count} tensors"
    note = f"{words} written as sparse initializers: {after} bytes instead of {before}"
    return made, (note, WARNING)


def _sparse(tensor: ir.TensorProtocol | None) -> SparseTensor | None:
    """Return a tensor as a sparse one; None when that is not smaller or not possible."""
    if tensor is None or isinstance(tensor, SparseTensor) or tensor.dtype not in _TYPES:
        return None
    if tensor.nbytes <= INLINE_BYTES or not tensor.shape.rank():
        return None
    count = sum(int(np.count_nonzero(_kept(part))) for _, part in chunks(tensor))
    size = tensor.dtype.numpy().itemsize
    if count * (size + _INDEX_BYTES) + _OVERHEAD >= tensor.nbytes:
        return None
    return Sparsified(tensor, count)


def _kept(part: Array) -> Array:
    """Tell which elements are to be kept; a negative zero is one of them."""
    bits = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[part.dtype.itemsize]
    kept: Array = part.view(np.dtype(bits).newbyteorder("<")) != 0
    return kept


class Sparsified(SparseTensor):
    """A dense tensor that is written as a sparse one.

    Args:
        dense: The tensor.
        count: Number of its elements that are not zero.
    """

    def __init__(self, dense: ir.TensorProtocol, count: int) -> None:
        name = dense.name or ""
        shape = ir.Shape([int(d) for d in dense.shape.numpy()])
        values = SparsePart(dense, dense.dtype, count, lambda part, _: part[_kept(part)])
        indices = SparsePart(dense, ir.DataType.INT64, count, _places)
        values.name, indices.name = name, f"{name}_indices" if name else ""
        super().__init__(values, indices, lambda places, _: places, shape)
        self.dense = dense

    def numpy(self) -> Array:
        """Return the dense array."""
        array: Array = self.dense.numpy()
        return array

    def tobytes(self) -> bytes:
        """Return the bytes of the dense tensor."""
        return self.dense.tobytes()

    def __repr__(self) -> str:
        return f"{self._repr_base()}(of={self.dense!r})"


def _places(part: Array, start: int) -> Array:
    return np.flatnonzero(_kept(part)).astype(np.int64) + start


class SparsePart(TensorOnDemand):
    """The values or the indices of a sparse tensor, computed chunk by chunk."""

    def __init__(
        self,
        dense: ir.TensorProtocol,
        dtype: ir.DataType,
        count: int,
        function: Callable[[Array, int], Array],
    ) -> None:
        super().__init__(name=dense.name)
        self._dense = dense
        self._dtype = dtype
        self._shape = ir.Shape([count])
        self._function = function

    @property
    def dtype(self) -> ir.DataType:  # type: ignore[override]
        """Element type."""
        return self._dtype

    @property
    def shape(self) -> ir.Shape:  # type: ignore[override]
        """One size."""
        return self._shape

    def _chunks(self) -> Iterator[Array]:
        for start, part in chunks(self._dense):
            yield self._function(part, start)

    def numpy(self) -> Array:
        """Compute the whole array."""
        parts = list(self._chunks())
        found = np.concatenate(parts) if parts else np.empty(0, self._dtype.numpy())
        assert found.size == math.prod(self._shape.numpy())
        return found

    def tobytes(self) -> bytes:
        """Compute the whole array as little-endian bytes."""
        return b"".join(little_endian(part) for part in self._chunks())

    def tofile(self, file: Any) -> None:
        """Compute and write chunk by chunk."""
        for part in self._chunks():
            file.write(little_endian(part))

    def __repr__(self) -> str:
        return f"{self._repr_base()}(of={self._dense!r})"
