"""Sparse tensors of a document: dense for whoever reads them, sparse again when written."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core.tensors import TensorOnDemand

Array = np.ndarray[Any, Any]


class SparseTensor(TensorOnDemand):
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

    def numpy(self) -> Array:
        """Return the dense array, made anew on every call."""
        shape = self._shape.numpy()
        dense = np.zeros(math.prod(shape), self.dtype.numpy())
        dense[self._flat] = self.values.numpy().reshape(-1)
        return dense.reshape(shape)

    def tobytes(self) -> bytes:
        """Return the bytes of the dense tensor."""
        return ir.Tensor(self.numpy(), dtype=self.dtype).tobytes()

    def __repr__(self) -> str:
        return f"{self._repr_base()}(elements={self._flat.size})"
