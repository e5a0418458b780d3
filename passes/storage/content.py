"""What the elements of one constant are stored as, apart from where they are.

======== ================================= ======== ===========================================
kind     stored per element                bits     onnxruntime makes of it
======== ================================= ======== ===========================================
raw      itself                            8 to 32  itself
half     float16                           16       Cast to float32
scaled   integer, a scale per row          8, 4     Cast, Mul
palette  index into a table                8, 4, 2  GatherElements
======== ================================= ======== ===========================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np

from converter.core import graph as g
from passes.storage import grid

if TYPE_CHECKING:
    from passes.encoding.weights import View
    from passes.storage.form import Constant

Array = np.ndarray[Any, Any]
Values = Literal["exact", "float16", "int8", "int4"]
Kind = Literal["raw", "half", "scaled", "palette"]

_NIBBLES = {np.dtype(ml_dtypes.int4): np.int8, np.dtype(ml_dtypes.uint4): np.uint8}
"""Types of 4 bits, and those that hold them until the last Cast."""
_SAMPLE = 1 << 14
_LOSSY_LEAST = 2
"""Axes of a tensor that is rounded on request to what was requested."""
_SHIFTING = (
    *("Conv", "ConvTranspose", "Gemm", "Add", "LSTM", "GRU", "RNN"),
    *("BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization"),
)
_HALF_LEAST, _HALF_MOST = 2.0**-10, 65504.0
"""The largest element of a vector that float16 comes close to is between them."""
_LEAST_COLUMNS = 2
_LEAST_BLOCK = 16
_MOST_SIZES = 16
"""Columns that share a scale at least, and numbers of columns that are tried."""
_NIBBLE = 8
_MOST_NOISE = 0.5
"""Most that rounding may take of the sum of squares; 4 bits take a hundredth."""
_NODES: dict[Kind, int] = {"raw": 1, "half": 1, "scaled": 2, "palette": 2}
TYPES = (np.float32, np.float16, np.int8, np.uint8)
"""Element types with a form; others stay as they are."""


@dataclass(frozen=True, eq=False)
class Content:
    """The elements of a constant in one kind.

    Attributes:
        kind: See the table above.
        bits: Stored bits per element.
        codes: Vector of what is stored, one per element of the constant: its own type, float16,
            int8, or uint8.
        blank: What of it need not be stored.
        scales: Of the constant's type, one for all along axes of size 1; None but for "scaled".
        blocked: Shape of the constant in which the scales spread over it; None: its own.
        table: Vector of the constant's type; None but for "palette".
        error: Largest difference to the constant, relative to its largest element.
        decoded: Returns what will stand in the place of the constant.
    """

    kind: Kind
    bits: int
    codes: Array
    decoded: Callable[[], Array]
    blank: int = 0
    scales: Array | None = None
    blocked: tuple[int, ...] | None = None
    table: Array | None = None
    error: float = 0.0
    kept: Array = field(init=False)

    def __post_init__(self) -> None:
        """Mark what is not blank; a NaN is not."""
        object.__setattr__(self, "kept", self.codes != self.codes.dtype.type(self.blank))

    @property
    def side_bytes(self) -> int:
        """Bytes of scales or table."""
        side = self.scales if self.scales is not None else self.table
        return 0 if side is None else stored_side(side).nbytes

    @property
    def nodes(self) -> int:
        """Nodes of this constant alone."""
        return _NODES[self.kind]


def contents(constant: Constant, values: Values) -> Iterator[Content]:
    """Yield every kind that a constant can be stored in.

    Args:
        constant: Not empty.
        values: "exact", or what elements of float matrices may be rounded to, and biases to
            float16; forms that need no rounding are among the results all the same.
    """
    if constant.array.size == 0:
        return
    if constant.array.dtype in _NIBBLES:
        codes = constant.array.astype(_NIBBLES[constant.array.dtype]).reshape(-1)
        yield Content("raw", 4, codes, lambda: constant.array, constant.blank)
        return
    if constant.array.dtype not in TYPES:
        return
    array = _positive(constant.array)
    yield Content("raw", array.itemsize * 8, array.reshape(-1), lambda: array, _blank(constant))
    yield from _palettes(array, _blank(constant))
    if array.dtype.kind != "f":
        return
    if array.dtype == np.float32:
        wanted = values == "float16" and _lossy(constant, values)
        yield from _halves(array, lossy=wanted or (values != "exact" and _shifts(constant)))
    if constant.view is not None:
        yield from _scaled(array, constant.view, values)


def stored_side(side: Array) -> Array:
    """Return scales or a table in the type they are stored in: float16 where that is exact."""
    if side.dtype != np.float32:
        return side
    half = _as_half(side)
    return half if np.array_equal(half.astype(np.float32), side) else side


def _blank(constant: Constant) -> int:
    return constant.blank if constant.array.dtype.kind in "iu" else 0


def _lossy(constant: Constant, values: Values) -> bool:
    return values != "exact" and constant.view is not None and constant.array.ndim >= _LOSSY_LEAST


def _shifts(constant: Constant) -> bool:
    """Tell whether a vector is added to or multiplied with channels, and float16 comes close to it.

    Elements keep 11 bits, or are off by less than 2^-24 where they are very small: a fraction of
    what integers of 8 bits do to the weights beside them.
    """
    array = constant.array
    users = [use.node for use in constant.value.uses()]
    if array.ndim != 1 or not users or not all(g.is_op(node, *_SHIFTING) for node in users):
        return False
    return bool(_HALF_LEAST <= np.abs(array).max(initial=0) <= _HALF_MOST)


def _as_half(array: Array) -> Array:
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


def _halves(array: Array, *, lossy: bool) -> Iterator[Content]:
    sample = array.reshape(-1)[:: max(1, array.size // _SAMPLE)]
    if not lossy and not np.array_equal(
        _as_half(sample).astype(np.float32), sample, equal_nan=True
    ):
        return
    half = _as_half(array).reshape(-1)
    wide = half.astype(np.float32).reshape(array.shape)
    if lossy and not np.array_equal(np.isfinite(wide), np.isfinite(array)):
        return  # beyond 65504
    error = _error(wide, array)
    if lossy or error == 0.0:
        yield Content(
            "half", 16, half, lambda: half.astype(np.float32).reshape(array.shape), error=error
        )


def _scaled(array: Array, view: View, values: Values) -> Iterator[Content]:
    if not np.isfinite(array).all():
        return
    rows = view.to_rows(array)
    if rows.shape[1] < _LEAST_COLUMNS:
        return
    for block in _block_sizes(rows.shape[1]):
        found = grid.exact(rows.reshape(-1, block))
        if found is not None:
            integers = found.integers
            yield _gridded(found, array, view, 8)
            if integers.min() >= -_NIBBLE and integers.max() < _NIBBLE:
                yield _gridded(found, array, view, 4)
            return
    if array.ndim >= _LOSSY_LEAST and values in ("int8", "int4"):
        bits = 8 if values == "int8" else 4
        made = _gridded(grid.rounded(rows, bits), array, view, bits)
        if _share(made.decoded() - array, array) < _MOST_NOISE:  # else next to the smallest floats
            yield made


def _block_sizes(columns: int) -> list[int]:
    """Return how many columns may share a scale: what divides them evenly, all of them first."""
    most = columns // _LEAST_BLOCK
    return [columns, *(columns // n for n in range(2, most + 1) if columns % n == 0)][:_MOST_SIZES]


def _gridded(found: grid.Grid, array: Array, view: View, bits: int) -> Content:
    cube = view.to_cube(found.integers.reshape(view.rows, -1))
    codes = np.ascontiguousarray(cube).reshape(-1)
    blocks = len(found.scales) // view.rows
    scales = view.to_cube(found.scales.reshape(view.rows, blocks))
    blocked = None
    if blocks == 1:
        scales = scales.reshape(_spread(array.shape, view))
    else:
        blocked = (view.outer, blocks, view.summed // blocks, view.inner)
        scales = scales.reshape(view.outer, blocks, 1, view.inner)

    def decoded() -> Array:
        steps = codes.reshape(blocked or array.shape).astype(array.dtype)
        return np.asarray((steps * scales).reshape(array.shape))

    error = _error(decoded(), array)
    return Content("scaled", bits, codes, decoded, scales=scales, blocked=blocked, error=error)


def _spread(shape: tuple[int, ...], view: View) -> tuple[int, ...]:
    """Return the shape of one number per row, with ones for the axes summed over."""
    front = next(i for i in range(len(shape) + 1) if math.prod(shape[:i]) == view.outer)
    back = next(i for i in range(len(shape), -1, -1) if math.prod(shape[i:]) == view.inner)
    return (*shape[:front], *[1] * (back - front), *shape[back:])


def _positive(array: Array) -> Array:
    """Make floats that are -0, as masks leave them, 0: equal, and nothing to be stored."""
    if array.dtype.kind == "f" and bool(np.signbit(array[array == 0]).any()):
        found: Array = array + array.dtype.type(0)
        return found
    return array


def _palettes(constant: Array, zero: int) -> Iterator[Content]:
    """Few different elements."""
    array, blank = constant.reshape(-1), constant.dtype.type(zero)
    if array.dtype.kind == "f" and np.isnan(array).any():
        return
    if np.unique(array[:4096]).size > 256:
        return
    table = _distinct(array, 16 if array.itemsize == 1 else 256)
    if table is None:
        return
    table = np.concatenate([[blank], table[table != blank]]).astype(array.dtype)
    order = np.argsort(table, kind="stable")
    indices = order[np.searchsorted(table, array, sorter=order)].astype(np.uint8)
    for bits in (2, 4, 8):
        if len(table) <= 2**bits and bits < array.itemsize * 8:
            yield Content("palette", bits, indices, lambda: constant, table=table)
            return


def _distinct(array: Array, most: int) -> Array | None:
    """Return the different elements in order, or None when there are more."""
    found = array[:0]
    for start in range(0, array.size, _SAMPLE * 64):
        found = np.unique(np.concatenate([found, np.unique(array[start : start + _SAMPLE * 64])]))
        if found.size > most:
            return None
    return found


def _share(part: Array, whole: Array) -> float:
    """Return the ratio of two sums of squares; 0 when the second is."""
    total = np.square(whole, dtype=np.float64).sum()
    return float(np.square(part, dtype=np.float64).sum() / total) if total else 0.0


def _error(new: Array, old: Array) -> float:
    """Return the largest difference relative to the largest element; 0: equal everywhere."""
    if np.array_equal(new, old, equal_nan=True):
        return 0.0
    wide = old.astype(np.float64)
    with np.errstate(invalid="ignore"):
        off = np.nanmax(np.abs(new.astype(np.float64) - wide))
    top = np.nanmax(np.abs(wide))
    return float(off / top) if top else math.inf
