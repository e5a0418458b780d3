"""Rounding constants to 16 bits in a stream, and what that would do to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core.tensors import MappedTensor, chunks

Array = np.ndarray[Any, Any]
_EAGER_BYTES = 1 << 20


@dataclass(frozen=True)
class Format:
    """A 16-bit floating-point type.

    Attributes:
        dtype: As ONNX names it.
        largest: Largest finite number.
        tiny: Smallest number with full precision.
        rounding: Root mean square error above which a tensor suffered more than rounding.
    """

    dtype: ir.DataType
    largest: float
    tiny: float
    rounding: float


FORMATS = {
    "float16": Format(ir.DataType.FLOAT16, 65504.0, 2.0**-14, 2.0**-9),
    "bfloat16": Format(ir.DataType.BFLOAT16, 3.3895313892515355e38, 2.0**-126, 2.0**-6),
}


@dataclass(frozen=True)
class RoundTo:
    """Rounds the elements of a flat chunk to a type, to nearest even; a pure function.

    Finite numbers beyond the range become the largest finite number, never infinity.
    """

    dtype: ir.DataType
    largest: float

    def __call__(self, chunk: Array, start: int) -> Array:
        """Return the rounded chunk."""
        kind = self.dtype.numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            rounded: Array = chunk.astype(kind)
        if not np.isfinite(rounded).all():
            limited = np.clip(chunk, -self.largest, self.largest).astype(kind)
            rounded = np.where(np.isfinite(chunk), limited, rounded)
        return rounded


def rounded(tensor: ir.TensorProtocol, format_: Format) -> ir.TensorProtocol:
    """Return the tensor in 16 bits; a large one is computed when it is read."""
    function = RoundTo(format_.dtype, format_.largest)
    mapped = MappedTensor(tensor, function, name=tensor.name, dtype=format_.dtype)
    if tensor.nbytes > _EAGER_BYTES:
        return mapped
    return ir.tensor(
        mapped.numpy(),
        dtype=format_.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
    )


@dataclass(frozen=True)
class Loss:
    """What rounding would do to a constant.

    Attributes:
        overflow: A finite element leaves the range.
        error: Root mean square of the error relative to that of the tensor.
        least: Smallest magnitude of an element that is not zero; 0 when all are.
        size: Number of elements.
        ends: Smallest and largest element.
    """

    overflow: bool
    error: float
    least: float
    size: int
    ends: tuple[float, float]

    def reason(self, format_: Format, *, elements: bool = False) -> str:
        """Say why the constant cannot be rounded, overflow left out; "" when it can."""
        name = format_.dtype.name.lower()
        if (self.size == 1 or elements) and 0 < self.least < format_.tiny:
            return f"a constant of {self.least:.3g} is too small for {name}"
        if self.error > format_.rounding:
            return f"a constant loses its small values in {name}"
        return ""

    def overflow_reason(self, format_: Format) -> str:
        """Say that the constant leaves the range; "" when it does not."""
        if not self.overflow:
            return ""
        far = max(self.ends, key=abs)
        return f"a constant of {far:.3g} is too large for {format_.dtype.name.lower()}"


def loss(tensor: ir.TensorProtocol, format_: Format) -> Loss:
    """Read a float32 tensor once, in chunks."""
    function = RoundTo(format_.dtype, format_.largest)
    errors = squares = 0.0
    least, low, high = np.inf, np.inf, -np.inf
    overflow = False
    for start, chunk in chunks(tensor):
        finite = chunk if np.isfinite(chunk).all() else chunk[np.isfinite(chunk)]
        if not finite.size:
            continue
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        overflow = overflow or max(-low, high) > format_.largest
        size = np.abs(finite)
        if not overflow:
            difference = function(finite, start).astype(np.float32) - finite
            with np.errstate(over="ignore"):
                errors += float(np.dot(difference, difference))
                squares += float(np.dot(size, size))
        size[size == 0] = np.inf
        least = min(least, float(size.min()))
    error = 0.0
    if errors > 0 and np.isfinite(squares):  # squares beyond float32 are not small
        error = float(np.sqrt(errors / squares)) if squares > 0 else 1.0
    ends = (low, high) if low <= high else (0.0, 0.0)
    return Loss(overflow, error, 0.0 if np.isinf(least) else least, tensor.size, ends)
