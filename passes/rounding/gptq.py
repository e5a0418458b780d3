"""Rounding weights one column after the other, each making up for the errors before it.

The damage that rounding does to a layer is ``trace(E H E^T)`` with the errors ``E`` (rows: output
channels) and the Gram matrix ``H = X^T X`` of the layer's inputs. Columns are rounded in order of
falling ``diag(H)``; what is left of the damage after the columns so far have been rounded is made
as small as it can be by moving the columns that follow (Frantar et al., "GPTQ", 2022). Written with
``H = U U^T``, ``U`` upper triangular, this needs no inverse: column ``k`` is rounded at
``w_k + sum_{j<k} e_j U_jk / U_kk`` (the form of Chee et al., "QuIP", 2023).

Everything is computed in float64. ``E = target - rounded`` throughout.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]

_BLOCK = 64
"""Columns whose feedback within the block is vector by matrix; between blocks matrix by matrix."""
MOST_COLUMNS = 6_144
"""Longest row of a weight that is rounded so: a Gram matrix has its square, 300 MB, and several of
them are needed at once; the work grows with the cube."""
DAMPING = 0.01
"""Added to the diagonal of a Gram matrix, as a share of its mean: few samples leave it singular."""


class Lattice(Protocol):
    """The numbers that a weight may become, column by column."""

    def nearest(self, column: int, values: Array) -> tuple[Array, Array]:
        """Return codes (integers or indices) and the numbers they stand for.

        Args:
            column: Position in a row of the weight.
            values: float64 (layers, channels).
        """


class Steps:
    """Integers times a scale, per channel or per block of columns, with or without zero points.

    Args:
        scales: float (..., channels) or (..., channels, blocks), above zero.
        low: Smallest integer.
        high: Largest integer.
        zeros: Zero points of the scales' shape; None: 0 throughout.
        block: Columns per scale; 0: ``scales`` has one per channel.
    """

    def __init__(
        self, scales: Array, low: int, high: int, zeros: Array | None = None, block: int = 0
    ) -> None:
        self.low = low
        self.high = high
        self.block = block
        self._scales = self._by_column(np.asarray(scales, np.float64))
        self._zeros = None if zeros is None else self._by_column(np.asarray(zeros, np.float64))

    def _by_column(self, figures: Array) -> Array:
        """Bring to (blocks, layers, channels): contiguous for one column."""
        full = figures if self.block else figures[..., None]
        if full.ndim == 2:
            full = full[None]
        return np.ascontiguousarray(np.moveaxis(full, -1, 0))

    def nearest(self, column: int, values: Array) -> tuple[Array, Array]:
        """Return integers as float64 and their numbers."""
        position = column // self.block if self.block else 0
        scale = self._scales[position]
        steps = values / scale
        if self._zeros is None:
            codes = np.clip(np.rint(steps), self.low, self.high)
            return codes, codes * scale
        zero = self._zeros[position]
        codes = np.clip(np.rint(steps + zero), self.low, self.high)
        return codes, (codes - zero) * scale


def gptq(
    target: Array,
    gram: Array,
    scales: Array,
    low: int,
    high: int,
    mask: Array | None = None,
) -> Array:
    """Round weights to integers on given scales, without zero points.

    Args:
        target: float (channels, K), or (layers, channels, K) for groups and depthwise layers.
        gram: X^T X of the inputs, (K, K) or (layers, K, K); any factor, may be singular or zero.
        scales: (channels,), or (channels, blocks) with K a multiple of blocks; for several layers
            with their axis in front. A scale is real number per integer step.
        low: Smallest integer.
        high: Largest integer.
        mask: Of target's shape, True where the result has to be 0 (pruned weights); or None.

    Returns:
        Integers of target's shape: int8, or int32 when ``low`` and ``high`` need it.
    """
    scales = np.asarray(scales)
    block = target.shape[-1] // scales.shape[-1] if scales.ndim == target.ndim else 0
    codes, _ = sequential(target, gram, Steps(scales, low, high, block=block), mask)
    return codes.astype(np.int8 if low >= -128 and high <= 127 else np.int32)


def sequential(
    target: Array,
    gram: Array,
    lattice: Lattice,
    mask: Array | None = None,
    *,
    damping: float = DAMPING,
    sweeps: int = 0,
) -> tuple[Array, Array]:
    """Round weights onto any lattice with error feedback; see the module for the method.

    Args:
        target: float (channels, K) or (layers, channels, K).
        gram: (K, K) or (layers, K, K).
        lattice: Where to round to.
        mask: True where the result has to be exactly 0; or None. The code there is that of 0.
        damping: Share of the mean of the diagonal that is added to it.
        sweeps: Rounds of :func:`descend` afterwards.

    Returns:
        Codes and the numbers they stand for, both float64 of target's shape.
    """
    if not target.size:
        return np.zeros(target.shape), np.zeros(target.shape)
    weights = _columns(target)  # (layers, K, channels)
    regular = regularized(gram, damping)
    fixed = None if mask is None else _columns(mask)
    order = np.argsort(-np.einsum("gkk->gk", regular).sum(axis=0), kind="stable")
    factor = _feedback(regular[:, order][:, :, order])
    codes, errors = np.empty_like(weights), np.empty_like(weights)
    for start in range(0, len(order), _BLOCK):
        block = slice(start, start + _BLOCK)
        columns = order[block]
        # Everything that the columns of earlier blocks did wrong, in one product.
        wanted = weights[:, columns] + _transposed(factor[:, :start, block]) @ errors[:, :start]
        for offset, column in enumerate(columns):
            inside = slice(start, start + offset)
            row = wanted[:, offset]
            if offset:
                back = _transposed(factor[:, inside, start + offset, None])
                row = row + (back @ errors[:, inside])[:, 0]
            code, number = _rounded(lattice, int(column), row, fixed)
            codes[:, column] = code
            errors[:, start + offset] = weights[:, column] - number
    in_place = np.empty_like(errors)
    in_place[:, order] = errors
    for _ in range(sweeps):
        if not _sweep(weights, regular, lattice, fixed, codes, in_place):
            break
    shape = target.shape
    numbers = np.swapaxes(weights - in_place, 1, 2).reshape(shape)
    if mask is not None:
        numbers[mask] = 0.0  # w - (w - 0) may be off by a rounding error
    return np.swapaxes(codes, 1, 2).reshape(shape), numbers


def descend(
    target: Array,
    gram: Array,
    lattice: Lattice,
    numbers: Array,
    mask: Array | None = None,
    *,
    sweeps: int = 1,
) -> tuple[Array, Array]:
    """Re-round every column given all others, until nothing changes: the damage only falls.

    Args:
        target: float (channels, K) or (layers, channels, K).
        gram: (K, K) or (layers, K, K).
        lattice: Where to round to.
        numbers: Where to start from, of target's shape.
        mask: True where the result has to be exactly 0; or None.
        sweeps: Most rounds over all columns, at least 1.

    Returns:
        Codes and numbers as of :func:`sequential`.
    """
    weights, regular = _columns(target), regularized(gram, DAMPING)
    fixed = None if mask is None else _columns(mask)
    errors, codes = weights - _columns(numbers), np.zeros_like(weights)
    for _ in range(sweeps):
        if not _sweep(weights, regular, lattice, fixed, codes, errors):
            break
    found = np.swapaxes(weights - errors, 1, 2).reshape(target.shape)
    if mask is not None:
        found[mask] = 0.0
    return np.swapaxes(codes, 1, 2).reshape(target.shape), found


def damage(errors: Array, gram: Array) -> Array:
    """Return the output error of every channel, ``e H e^T``.

    Args:
        errors: (channels, K) or (layers, channels, K).
        gram: (K, K) or (layers, K, K).

    Returns:
        float64 (channels,) or (layers, channels), not negative but for rounding.
    """
    return np.asarray(((errors @ gram) * errors).sum(axis=-1))


def regularized(gram: Array, damping: float) -> Array:
    """Return float64 (layers, K, K) with a diagonal that makes it safely positive definite.

    A Gram matrix of zeros becomes the identity: rounding to nearest. Inputs that are always zero
    are treated alike: they get the damping alone.

    Raises:
        ValueError: The matrix holds NaN or infinity.
    """
    regular = np.array(gram, np.float64, ndmin=3)
    if not np.isfinite(regular).all():
        raise ValueError("the Gram matrix holds NaN or infinity")
    regular = (regular + _transposed(regular)) / 2
    diagonal = np.einsum("gkk->gk", regular)
    mean = diagonal.sum(axis=1, keepdims=True) / max(1, diagonal.shape[1])
    diagonal = np.maximum(diagonal, 0.0) + np.where(mean > 0, damping * mean, 1.0)
    np.einsum("gkk->gk", regular)[...] = diagonal
    return regular


def _feedback(gram: Array) -> Array:
    """Return C (layers, K, K): how much of the error of column j is added to column k > j.

    With ``H = U U^T`` that is ``U_jk / U_kk``. The reversal of a Cholesky factor of the reversed
    matrix is such a ``U``.
    """
    reverse = gram[:, ::-1, ::-1]
    extra = np.einsum("gkk->gk", gram).mean(axis=1)
    for attempt in range(8):
        try:
            lower = np.linalg.cholesky(reverse)
        except np.linalg.LinAlgError:
            # Rounding in sums of many samples can leave small negative eigenvalues.
            more = extra * 10.0 ** (attempt - 7)
            reverse = reverse + more[:, None, None] * np.eye(gram.shape[1])
            continue
        upper = lower[:, ::-1, ::-1]
        return np.asarray(upper / np.einsum("gkk->gk", upper)[:, None, :])
    return np.zeros_like(gram)  # to nearest, which is always right


def _sweep(
    weights: Array,
    gram: Array,
    lattice: Lattice,
    fixed: Array | None,
    codes: Array,
    errors: Array,
) -> bool:
    """Re-round all columns once, in place; returns whether any number changed."""
    changed = False
    diagonal = np.einsum("gkk->gk", gram)
    for start in range(0, weights.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        pull = gram[:, block] @ errors  # (layers, block, channels)
        square = gram[:, block, block]
        for offset in range(pull.shape[1]):
            column = start + offset
            others = pull[:, offset] / diagonal[:, column, None] - errors[:, column]
            code, number = _rounded(lattice, column, weights[:, column] + others, fixed)
            codes[:, column] = code
            moved = weights[:, column] - number - errors[:, column]
            if np.abs(moved).max(initial=0.0) > 0:
                changed = True
                errors[:, column] += moved
                pull += square[:, :, offset, None] * moved[:, None, :]
    return changed


def _rounded(
    lattice: Lattice, column: int, values: Array, fixed: Array | None
) -> tuple[Array, Array]:
    if fixed is not None:
        values = np.where(fixed[:, column], 0.0, values)
    code, number = lattice.nearest(column, values)
    return (code, number) if fixed is None else (code, np.where(fixed[:, column], 0.0, number))


def _columns(array: Array) -> Array:
    """Return (layers, K, channels): a column of the weight is contiguous."""
    full = array if array.ndim == 3 else array[None]
    kind = bool if array.dtype == np.bool_ else np.float64
    return np.ascontiguousarray(np.swapaxes(full, 1, 2), kind)


def _transposed(matrices: Array) -> Array:
    return np.swapaxes(matrices, 1, 2)
