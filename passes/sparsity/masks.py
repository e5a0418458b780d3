"""Which weights of a layer go, once it is known how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from converter.core.tensors import MappedTensor
from passes.allocation.order import Cut, plan_zeros
from passes.sparsity.layers import MARK
from passes.sparsity.matrix import matrix_of

if TYPE_CHECKING:
    from passes.sparsity.layers import Layer
    from passes.sparsity.patterns import Pattern
    from passes.sparsity.problem import Problem

Array = np.ndarray[Any, Any]
Choice = Cut | Array | None

_EAGER_BYTES = 1 << 16  # smaller tensors are computed at once, larger ones when they are written


def choose(
    problem: Problem, zeros: Array, cuts: Sequence[Cut | None] | None = None
) -> list[Choice]:
    """Return which weights of every layer go.

    Zeros that are there already go first, then the lowest scores; of equal ones the lower flat
    index. Blocks and rows go as a whole: what a layer gets too many or too few by that is made up
    for at the next layer. Of N:M all groups are cut, whatever the counts say.

    Args:
        problem: The question.
        zeros: By layer, zeros that are there already included: int64 (layers,).
        cuts: What the allocation found on its way, see ``Allocation.cuts``.

    Returns:
        By layer: a cut for magnitude without a pattern (no memory of the size of a tensor), else
        bool of the tensor's shape, true where a weight goes; None: the tensor stays as it is.
    """
    if cuts is not None:
        return list(cuts)
    streamed = problem.criterion == "magnitude" and problem.pattern.kind == "unstructured"
    found: list[Choice] = []
    rest = 0
    for index, (layer, count) in enumerate(zip(problem.layers, zeros.tolist(), strict=True)):
        if streamed:
            found.append(plan_zeros([layer.tensor], count)[0].cut)
            continue
        scores = problem.scores(index)
        if problem.pattern.kind in ("block", "row"):
            mask = _units_of(layer, scores, count + rest, problem.pattern)
            rest += count - int(np.count_nonzero(mask))
            found.append(_if_new(layer, mask))
        else:
            found.append(mask_of(layer, scores, count, problem.pattern))
    return found


def mask_of(layer: Layer, scores: Array, zeros: int, pattern: Pattern) -> Array | None:
    """Return the weights of one layer that go, as :func:`choose` does.

    Args:
        layer: The layer.
        scores: Not negative, the lowest goes first: (size,), in the order of the tensor.
        zeros: Weights that are zero afterwards.
        pattern: The units in which they go.

    Returns:
        bool of the tensor's shape; None when nothing changes.
    """
    if pattern.kind != "unstructured":
        return _if_new(layer, _units_of(layer, scores, zeros, pattern))
    array = layer.tensor.numpy()
    gone = array.reshape(-1) == 0
    before = int(np.count_nonzero(gone))
    if zeros <= before:
        return None
    mask: Array = gone | lowest(np.where(gone, np.inf, scores), zeros - before)
    return mask.reshape(array.shape)


def _units_of(layer: Layer, scores: Array, zeros: int, pattern: Pattern) -> Array:
    """Return the units of a layer that go, those that are zero already included."""
    gone = layer.tensor.numpy().reshape(-1) == 0
    matrix = matrix_of(layer)
    # below all others, so that zeros go first also where a score is 0
    ranked = np.where(gone, -1.0 if pattern.kind == "n:m" else 0.0, scores)
    cut = lowest_units(matrix.forward(ranked.reshape(matrix.shape)), zeros, pattern)
    return np.ascontiguousarray(matrix.backward(cut))


def _if_new(layer: Layer, mask: Array) -> Array | None:
    return mask if (layer.tensor.numpy()[mask] != 0).any() else None


def lowest(scores: Array, count: int) -> Array:
    """Return where the ``count`` lowest scores are, of equal ones those that come first.

    Args:
        scores: Any shape; NaN counts as highest.
        count: From 0 to the size.

    Returns:
        bool of the same shape.
    """
    flat = scores.reshape(-1)
    if count <= 0:
        return np.zeros(scores.shape, bool)
    if count >= flat.size:
        return np.ones(scores.shape, bool)
    edge = np.partition(flat, count - 1)[count - 1]
    unknown = bool(np.isnan(edge))
    gone: Array = ~np.isnan(flat) if unknown else flat < edge
    ties = np.flatnonzero(np.isnan(flat) if unknown else flat == edge)
    gone[ties[: count - int(np.count_nonzero(gone))]] = True
    return gone.reshape(scores.shape)


def lowest_units(scores: Array, count: int, pattern: Pattern) -> Array:
    """Return which weights go from a matrix of scores, by pattern.

    Args:
        scores: Per weight, not negative: (rows, columns). A block counts by the mean of its
            weights, which is the order of sums but for the smaller blocks at the edges.
        count: Weights that go; a pattern of blocks or rows comes as near as it can, N:M decides
            itself.
        pattern: The pattern.

    Returns:
        bool (rows, columns).
    """
    if pattern.kind == "n:m":
        return pattern.densest(scores)
    if pattern.kind == "unstructured":
        return lowest(scores, count)
    units = pattern.units(*scores.shape)
    sizes = units.sizes()
    order = np.argsort((units.sums(scores) / sizes).reshape(-1), kind="stable")
    reached = np.concatenate([[0], np.cumsum(sizes.reshape(-1)[order])])
    blocks = np.zeros(sizes.size, bool)
    blocks[order[: int(np.argmin(np.abs(reached - count)))]] = True
    return units.spread(blocks.reshape(sizes.shape))


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask as a function for :class:`MappedTensor`, of one bit per weight.

    Attributes:
        bits: As ``np.packbits`` makes them of the flat mask.
    """

    bits: Array

    def __call__(self, chunk: Array, start: int) -> Array:
        """Return a copy of the flat chunk, whose first element has index ``start``, masked."""
        first = start // 8
        bits = self.bits[first : (start + chunk.size + 7) // 8]
        gone = np.unpackbits(bits)[start - 8 * first :][: chunk.size].astype(bool)
        result = chunk.copy()
        result[gone] = 0
        return result


def assign(layer: Layer, choice: Choice) -> bool:
    """Set weights of a layer to zero: at once where it is small, else when it is read.

    Args:
        layer: Changed in the model; its ``tensor`` becomes the new one.
        choice: A cut, or bool of the tensor's shape; None: nothing.

    Returns:
        True when there is a new tensor.
    """
    if choice is None:
        return False
    old = layer.tensor
    function = choice if isinstance(choice, Cut) else Mask(np.packbits(choice))
    tensor: ir.TensorProtocol = MappedTensor(old, function, name=old.name)
    if tensor.nbytes <= _EAGER_BYTES:
        tensor = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=old.name)
    g.replace_tensor(layer.value, tensor)
    layer.tensor = tensor
    mark(layer)
    return True


def mark(layer: Layer) -> None:
    """Remember that the zeros of a layer were made on purpose."""
    layer.value.meta[MARK] = True
