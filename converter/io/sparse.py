"""Sparse tensors of a document: dense for whoever reads them, sparse again when written."""

from __future__ import annotations

import math
from collections.abc import Callable
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
        flatten: Turns indices, given the shape, into indices of the flat tensor; called anew on
            every read, so that they take no memory in between.
        shape: Static shape.

    Attributes:
        attribute: Name of the attribute of a Constant that holds it; onnxruntime takes two.
    """

    def __init__(
        self,
        values: ir.TensorProtocol,
        indices: ir.TensorProtocol,
        flatten: Callable[[Array, tuple[int, ...]], Array | None],
        shape: ir.Shape,
    ) -> None:
        super().__init__(name=values.name, doc_string=values.doc_string)
        self.attribute = "sparse_value"
        self.values = values
        self.indices = indices
        self._flatten = flatten
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
        flat = self._flatten(self.indices.numpy(), shape)
        if flat is None:
            raise OSError(f"the indices of {self.name!r} changed while the file was read")
        dense[flat] = self.values.numpy().reshape(-1)
        return dense.reshape(shape)

    def tobytes(self) -> bytes:
        """Return the bytes of the dense tensor."""
        return ir.Tensor(self.numpy(), dtype=self.dtype).tobytes()

    def __repr__(self) -> str:
        return f"{self._repr_base()}(elements={self.values.size})"
