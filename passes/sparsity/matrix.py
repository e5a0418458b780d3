"""How a tensor is multiplied with: as rows of outputs and columns that products are summed over."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from passes.sparsity.layers import way_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.sparsity.layers import Layer

Array = np.ndarray[Any, Any]
Dims = tuple[int, ...]
Turn = Callable[[Array], Array]


@dataclass(frozen=True)
class Matrix:
    """A tensor as a matrix: one row per output, columns along the summed axes.

    Attributes:
        shape: Of the tensor.
        rows, columns: Of the matrix; rows * columns is the size of the tensor.
        forward: Tensor (any element type, of ``shape``) to (rows, columns).
        backward: The inverse.
        seen: Shape in which the node reads it, behind views.
    """

    shape: Dims
    rows: int
    columns: int
    forward: Turn
    backward: Turn
    seen: Dims


def matrix_of(layer: Layer) -> Matrix:
    """Return how the first node that reads a layer multiplies with it.

    Conv: (out, in * kernel). MatMul (K, N): (N, K). Gemm as its transA and transB say. Recurrent
    layers: (directions * gates * hidden, inputs). Einsum: letters that are summed are columns.
    Views between the constant and the node are followed; where one cannot be, or the operator is
    unknown, the first axis of the stored tensor is the rows.
    """
    shape = tuple(int(size) for size in layer.tensor.shape.numpy())
    node, port, views = way_of(layer)
    turns: list[tuple[Turn, Turn]] = []
    seen = shape
    for view in views:
        found = _turn(view, seen)
        if found is None:
            return _stored(shape)
        turns.append(found[:2])
        seen = found[2]
    build = _BUILD.get(node.op_type, _first_axis)
    last = build(node, port, seen)
    if last is None:
        return _stored(shape)
    turns.append(last[:2])
    rows, columns = last[2]
    forward = _chain([turn[0] for turn in turns])
    backward = _chain([turn[1] for turn in turns[::-1]])
    return Matrix(shape, rows, columns, forward, backward, seen)


def _chain(turns: Sequence[Turn]) -> Turn:
    def run(array: Array) -> Array:
        for turn in turns:
            array = turn(array)
        return array

    return run


_Found = tuple[Turn, Turn, Dims]


def _permuted(shape: Dims, order: Sequence[int], rows: int) -> _Found:
    """Bring axes into an order, of which the first ``rows`` are the rows."""
    order = tuple(order)
    turned = tuple(shape[axis] for axis in order)
    size = math.prod(turned[:rows]), math.prod(turned[rows:])
    inverse = tuple(int(axis) for axis in np.argsort(order))
    return (
        lambda a: a.transpose(order).reshape(size),
        lambda m: m.reshape(turned).transpose(inverse),
        size,
    )


def _reshaped(shape: Dims, target: Dims) -> _Found:
    return lambda a: a.reshape(target), lambda m: m.reshape(shape), target


def _stored(shape: Dims) -> Matrix:
    forward, backward, (rows, columns) = _permuted(shape, range(len(shape)), 1)
    return Matrix(shape, rows, columns, forward, backward, shape)


def _turn(node: ir.Node, shape: Dims) -> _Found | None:
    """Return a view as a function, its inverse, and the shape behind it."""
    if g.is_op(node, "Transpose"):
        order = tuple(node.attributes.get_ints("perm", ())) or tuple(range(len(shape)))[::-1]
        inverse = tuple(int(axis) for axis in np.argsort(order))
        turned = tuple(shape[axis] for axis in order)
        return lambda a: a.transpose(order), lambda m: m.transpose(inverse), turned
    if g.is_op(node, "Identity", "Cast"):
        return lambda a: a, lambda m: m, shape
    target = _target(node, shape)
    return None if target is None else _reshaped(shape, target)


def _target(node: ir.Node, shape: Dims) -> Dims | None:
    """Return the shape that Reshape, Flatten, Squeeze or Unsqueeze gives; None: unknown."""
    if g.is_op(node, "Flatten"):
        axis = node.attributes.get_int("axis", 1)
        return math.prod(shape[:axis]), math.prod(shape[axis:])
    given = g.constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    if g.is_op(node, "Reshape"):
        return None if given is None else _filled(node, given.tolist(), shape)
    read = tuple(node.attributes.get_ints("axes", ())) if given is None else given.tolist()
    if g.is_op(node, "Squeeze"):
        gone = {int(axis) % len(shape) for axis in read}
        drop = gone or {i for i, size in enumerate(shape) if size == 1}
        return tuple(size for i, size in enumerate(shape) if i not in drop)
    if not read:
        return None
    rank = len(shape) + len(read)
    new = {int(axis) % rank for axis in read}
    rest = iter(shape)
    return tuple(1 if i in new else next(rest) for i in range(rank))


def _filled(node: ir.Node, wanted: Sequence[int], shape: Dims) -> Dims | None:
    keep = not node.attributes.get_int("allowzero", 0)
    sizes = [shape[i] if size == 0 and keep else int(size) for i, size in enumerate(wanted)]
    known = math.prod(size for size in sizes if size >= 0)
    total = math.prod(shape)
    if -1 in sizes:
        if not known or total % known:
            return None
        sizes[sizes.index(-1)] = total // known
    return tuple(sizes) if math.prod(sizes) == total else None


def _first_axis(_: ir.Node, __: int, shape: Dims) -> _Found:
    return _permuted(shape, range(len(shape)), 1)


def _last_axis(_: ir.Node, __: int, shape: Dims) -> _Found:
    return _permuted(shape, range(len(shape)), len(shape) - 1)


def _mat_mul(_: ir.Node, port: int, shape: Dims) -> _Found:
    rank = len(shape)
    if port == 0 or rank < 2:
        return _last_axis(_, port, shape)
    return _permuted(shape, (*range(rank - 2), rank - 1, rank - 2), rank - 1)


def _fused_mat_mul(node: ir.Node, port: int, shape: Dims) -> _Found:
    turned = node.attributes.get_int("transB" if port else "transA", 0) != 0
    return _mat_mul(node, 1 - port if turned else port, shape)


def _gemm(node: ir.Node, port: int, shape: Dims) -> _Found:
    name, along = ("transB", 0) if port else ("transA", 1)
    summed = along if not node.attributes.get_int(name, 0) else 1 - along
    return _permuted(shape, (1 - summed, summed), 1)


def _conv_transpose(node: ir.Node, _: int, shape: Dims) -> _Found | None:
    groups = node.attributes.get_int("group", 1)
    if shape[0] % groups:
        return None
    split = (groups, shape[0] // groups, *shape[1:])
    order = (0, *range(2, len(split)), 1)
    into, back, size = _permuted(split, order, len(split) - 1)
    return lambda a: into(a.reshape(split)), lambda m: back(m).reshape(shape), size


def _attention(_: ir.Node, __: int, shape: Dims) -> _Found:
    return _permuted(shape, (*range(1, len(shape)), 0), len(shape) - 1)


def _einsum(node: ir.Node, port: int, shape: Dims) -> _Found | None:
    equation = node.attributes.get_string("equation", "") or ""
    terms, arrow, output = equation.replace(" ", "").partition("->")
    letters = terms.split(",")
    if not arrow or "." in equation or port >= len(letters) or len(letters[port]) != len(shape):
        return None
    summed = [i for i, letter in enumerate(letters[port]) if letter not in output]
    kept = [i for i in range(len(shape)) if i not in summed]
    return _permuted(shape, (*kept, *summed), len(kept))


_Build = Callable[["ir.Node", int, Dims], "_Found | None"]
_BUILD: dict[str, _Build] = {
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "MatMul": _mat_mul,
    "FusedMatMul": _fused_mat_mul,
    "Attention": _attention,
    "Einsum": _einsum,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _last_axis),
}
