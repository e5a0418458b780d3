"""Sparse tensors of a document: dense for whoever reads them, sparse again when written."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir._core import TensorBase  # not public in 1.1: the base that all its tensors share

Array = np.ndarray[Any, Any]


class SparseTensor(TensorBase):
    """A tensor of which the document stores the elements that are not zero.

    Args:
        values: The elements; its name is the tensor's.
        indices: Where they lie, as the document has them.
        flat: The same as indices into the flat tensor.
        shape: Static shape.

    Attributes:
        attribute: Name of the attribute of a Constant that holds it; onnxruntime takes two.
    """

    def __init__(
        self,
        values: ir.TensorProtocol,
        indices: ir.TensorProtocol,
        flat: Array,
        shape: ir.Shape,
    ) -> None:
        super().__init__(name=values.name, doc_string=values.doc_string)
        self.attribute = "sparse_value"
        self.values = values
        self.indices = indices
        self._flat = flat
        self._shape = shape
        shape.freeze()

    @property
    def dtype(self) -> ir.DataType:  # type: ignore[override]
        """Element type."""
        return self.values.dtype

    @property
    def shape(self) -> ir.Shape:  # type: ignore[override]
        """Static shape."""
        return self._shape

    @property
    def raw(self) -> SparseTensor:
        """The tensor itself: there is no other representation."""
        return self

    def numpy(self) -> Array:
        """Return the dense array, made anew on every call."""
        shape = self._shape.numpy()
        dense = np.zeros(math.prod(shape), self.dtype.numpy())
        dense[self._flat] = self.values.numpy().reshape(-1)
        return dense.reshape(shape)

    def tobytes(self) -> bytes:
        """Return the bytes of the dense tensor."""
        return ir.Tensor(self.numpy(), dtype=self.dtype).tobytes()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:  # noqa: FBT001
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.numpy().__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.numpy().__dlpack_device__()

    def __repr__(self) -> str:
        return f"{self._repr_base()}(elements={self._flat.size})"
