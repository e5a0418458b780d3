"""Numbers of zeros by rules that need no data: local, global, ERK, LAMP, and by depth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from passes.allocation.order import plan_zeros
from passes.sparsity.lamp import lamp_cuts
from passes.sparsity.matrix import matrix_of
from passes.sparsity.problem import Allocation, Problem
from passes.sparsity.room import exact, zeros_of

if TYPE_CHECKING:
    from passes.sparsity.layers import Layer

Array = np.ndarray[Any, Any]
_MOST = 0.99
"""Share of zeros that a layer gets at most by depth."""
_HALVINGS = 200


def local(problem: Problem) -> Allocation:
    """Give every tensor the same share of zeros; those that have more already keep them."""
    sizes = problem.sizes
    if problem.pattern.kind == "n:m":
        shapes = [matrix_of(layer) for layer in problem.layers]
        fixed = [problem.pattern.fixed(each.rows, each.columns) for each in shapes]
        return Allocation(np.maximum(np.asarray(fixed, np.int64), _present(problem)))
    return _settled(problem, lambda scale: scale * sizes)


def erk(problem: Problem) -> Allocation:
    """Let the density fall with the size of a layer (Erdos-Renyi-Kernel).

    The density is in proportion to (inputs + outputs + kernel sizes) / (inputs * outputs * kernel),
    at most 1 (Evci et al. 2020, arXiv 1911.11134, section 3).
    """
    raw = np.asarray([_erk(layer) for layer in problem.layers])
    return _settled(problem, lambda scale: scale * raw)


def linear(problem: Problem) -> Allocation:
    """Let the share of zeros grow with the depth along a line: the first layer has the least."""
    return _by_depth(problem, lambda depth: depth)


def polynomial(problem: Problem) -> Allocation:
    """Let the share of zeros grow with the depth: fast at first, then slowly, 1 - (1 - depth)^3."""
    return _by_depth(problem, lambda depth: 1.0 - (1.0 - depth) ** 3)


def global_(problem: Problem) -> Allocation:
    """Compare all weights of all tensors with each other: the lowest scores go.

    Magnitudes are compared as they are. Scores of wanda and obs are relative to what their layer
    puts out (:mod:`passes.sparsity.criteria`), so that a loud layer does not keep all.
    """
    if problem.criterion == "magnitude" and problem.pattern.kind == "unstructured":
        plans = plan_zeros([layer.tensor for layer in problem.layers], problem.wanted)
        zeros = np.asarray([p.zeros_after for p in plans], np.int64)
        return Allocation(zeros, cuts=tuple(p.cut for p in plans))
    parts = [_units(problem, index, squared=False) for index in range(len(problem.layers))]
    return _lowest(problem, parts)


def lamp(problem: Problem) -> Allocation:
    """Compare every weight with the larger ones of its layer (Lee et al. 2021, arXiv 2010.07611).

    The score is w^2 / (sum of the squares that are not smaller): what a weight is worth within the
    best layer that still has it. The lowest scores of all layers go. Scores of wanda and obs take
    the place of squares; random weights are as many as magnitudes say.
    """
    if problem.pattern.kind == "unstructured" and problem.criterion in ("magnitude", "random"):
        found = lamp_cuts([layer.tensor for layer in problem.layers], problem.wanted)
        zeros = np.asarray([count for count, _ in found], np.int64)
        if problem.criterion == "random":
            return Allocation(zeros)
        return Allocation(zeros, cuts=tuple(cut for _, cut in found))
    parts = []
    for index in range(len(problem.layers)):
        scores, sizes = _units(problem, index, squared=problem.criterion == "magnitude")
        order = np.argsort(scores, kind="stable")
        ranked, width = scores[order], sizes[order]
        tail = np.cumsum((ranked * width)[::-1])[::-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            worth = np.where(ranked > 0, ranked / tail, 0.0)
        parts.append((worth, width))
    return _lowest(problem, parts)


def _units(problem: Problem, index: int, *, squared: bool) -> tuple[Array, Array]:
    """Return the mean score and the number of weights of every unit of a layer, flat."""
    layer = problem.layers[index]
    scores = np.asarray(problem.scores(index), np.float64)
    if squared:
        scores = scores**2
    if problem.pattern.kind in ("unstructured", "n:m"):
        return scores, np.ones(scores.size, np.int64)
    matrix = matrix_of(layer)
    units = problem.pattern.units(matrix.rows, matrix.columns)
    sizes = units.sizes()
    sums = units.sums(matrix.forward(scores.reshape(matrix.shape)))
    return (sums / sizes).reshape(-1), sizes.reshape(-1)


def _lowest(problem: Problem, parts: list[tuple[Array, Array]]) -> Allocation:
    """Count by layer which units have the lowest scores of all."""
    low = _present(problem)
    scores = np.concatenate([part[0] for part in parts])
    sizes = np.concatenate([part[1] for part in parts])
    owner = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(sizes[order])
    taken = order[: int(np.searchsorted(reached, problem.wanted, side="right"))]
    zeros = np.bincount(owner[taken], weights=sizes[taken], minlength=len(parts))
    return Allocation(exact(zeros, low, problem.sizes, problem.wanted))


def _by_depth(problem: Problem, rise: Callable[[float], float]) -> Allocation:
    sizes, number = problem.sizes, len(problem.layers)
    steep = np.asarray([rise((i + 0.5) / number) for i in range(number)])
    if problem.wanted > _MOST * sizes.sum():
        return local(problem)

    def kept(scale: float) -> Array:
        slope = math.inf if scale == 0 else 1.0 / scale
        return sizes * (1.0 - np.minimum(_MOST, slope * steep))

    return _settled(problem, kept)


def _erk(layer: Layer) -> float:
    shape = [int(size) for size in layer.tensor.shape.numpy()]
    matrix = matrix_of(layer)
    if len(shape) > 2 and layer.nodes[0].op_type.endswith(("Conv", "ConvTranspose")):
        kernel = shape[2:]
        return float(shape[0] + shape[1] + sum(kernel))
    return float(matrix.rows + matrix.columns)


def _present(problem: Problem) -> Array:
    return np.asarray([zeros_of(layer) for layer in problem.layers], np.int64)


def _settled(problem: Problem, kept: Callable[[float], Array]) -> Allocation:
    """Find the scale at which what is kept adds up.

    Args:
        problem: The question.
        kept: Scale (>= 0) to weights that layers keep, rising with the scale.
    """
    sizes, low = problem.sizes, _present(problem)
    goal = int(sizes.sum()) - problem.wanted
    most = sizes - low
    below, above = 0.0, 1.0
    while above < 1e300 and np.minimum(kept(above), most).sum() < min(goal, int(most.sum())):
        above *= 2.0
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        if np.minimum(kept(middle), most).sum() < goal:
            below = middle
        else:
            above = middle
    return Allocation(exact(sizes - kept(above), low, sizes, problem.wanted))
