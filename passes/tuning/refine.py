"""Scales and zero points moved a little, one grid after the other, where the outputs gain by it.

A coordinate search on the outputs of the whole model: half of the samples decide on every move, the
other half has the last word, so that the result is never worse than before on samples which had no
part in the search. What lies before a grid is not run again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from converter.execution.blas import use_one_thread
from passes.affine.grid import Array, Grid
from passes.affine.scale import bias_scales, quantize_bias
from passes.tuning.distance import Distances
from passes.tuning.segments import Pieces

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, RunSettings

MOST_BATCHES_NODES = 2_000
"""Batches searched on times nodes: more of either leaves fewer of the other."""
_FACTORS = (0.94, 1.06)
_SHIFTS = (-3, 3)
_GAIN = 0.998
"""A move must make the distance at least this much smaller."""


@dataclass(frozen=True, eq=False)
class Bias:
    """A bias that follows the scale of a grid.

    Attributes:
        node: The DequantizeLinear of the bias.
        bias: float32 (channels,).
        scales: Of the weight it is added to, float32.
    """

    node: ir.Node
    bias: Array
    scales: Array


@dataclass(frozen=True, eq=False)
class Knob:
    """A grid that may be moved.

    Attributes:
        grid: As it is.
        stop: The first QuantizeLinear on the grid.
        biases: What follows its scale.
    """

    grid: Grid
    stop: ir.Node
    biases: tuple[Bias, ...]

    def set(self, grid: Grid) -> None:
        """Write a grid, and the biases on it."""
        _, scale, zero = self.stop.inputs[:3]
        assert scale is not None
        assert zero is not None
        g.set_constant(scale, np.asarray(grid.scale, np.float32))
        g.set_constant(zero, np.asarray(grid.zero_point, grid.integers.dtype))
        for each in self.biases:
            step = bias_scales(each.scales, grid.scale)
            integers = quantize_bias(each.bias, step)
            for value, array in zip(each.node.inputs[:2], (integers, step), strict=True):
                assert value is not None
                g.set_constant(value, array)

    def moves(self) -> list[Grid]:
        """Return the grids next to the present one."""
        grid, ends = self.grid, self.grid.integers
        found = [replace(grid, scale=float(np.float32(grid.scale * f))) for f in _FACTORS]
        if ends.low < grid.zero_point < ends.high:
            shifted = (min(max(grid.zero_point + s, ends.low), ends.high) for s in _SHIFTS)
            found += [replace(grid, zero_point=zero) for zero in shifted]
        return found


def run(
    models: tuple[ir.Model, ir.Model],
    knobs: Sequence[Knob],
    batches: Sequence[Batch],
    *,
    settings: RunSettings,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Move the grids of a written model; called in a child process.

    Args:
        models: The float model and the written one.
        knobs: In the order of the graph.
        batches: Calibration samples.
        settings: How models are run.
        progress: Told after every grid.

    Returns:
        ``moved``: number of the knob, scale and zero point of each grid that was moved; ``before``
        and ``after``: distances on samples that had no part in the search.
    """
    use_one_thread()
    most = max(4, MOST_BATCHES_NODES // max(1, len(knobs)))
    search, check = (list(range(start, len(batches), 2))[:most] for start in (0, 1))
    with tempfile.TemporaryDirectory(prefix="tuning-", dir=settings.workspace) as folder:
        feeds = [batch.inputs for batch in batches]
        parts = Path(folder) / "float", Path(folder) / "student"
        for part in parts:
            part.mkdir()
        expected = Pieces(models[0], [], feeds, settings, parts[0]).outlook(range(len(batches)))
        student = Pieces(models[1], [knob.stop for knob in knobs], feeds, settings, parts[1])
        before = _distance(student, expected, check)
        least = _distance(student, expected, search)
        moved: dict[int, Grid] = {}
        for i, knob in enumerate(knobs):
            student.advance()
            best = knob.grid
            for grid in knob.moves():
                knob.set(grid)
                distance = _distance(student, expected, search)
                if distance < least * _GAIN:
                    least, best = distance, grid
            knob.set(best)
            if best is not knob.grid:
                moved[i] = best
            progress(1)
        after = _distance(student, expected, check)
    if not after < before:
        moved.clear()
    listed = [[i, grid.scale, grid.zero_point] for i, grid in moved.items()]
    return {"moved": listed, "before": before, "after": after}


def _distance(
    student: Pieces, expected: Mapping[str, Sequence[Array]], batches: Sequence[int]
) -> float:
    found = Distances()
    for name, arrays in student.outlook(batches).items():
        for i, array in zip(batches, arrays, strict=True):
            found.update(name, expected[name][i], array)
    return found.result()[0]
