"""From a weight to its codes: the methods of ``quantize_weights``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from passes.encoding.codes import Codes, storable
from passes.encoding.inputs import Inputs
from passes.rounding.gptq import Steps, sequential
from passes.rounding.hqq import hqq
from passes.rounding.nearest import (
    Grid,
    asymmetric,
    integer_range,
    searched,
    symmetric,
)
from passes.rounding.target import least_squares

Array = np.ndarray[Any, Any]

RIDGE = 0.5
"""Of the least-squares target, in units of the mean of the Gram matrix's diagonal."""
DAMPING = 0.01
"""Added to the diagonal of a Gram matrix, as a share of its mean, at least."""
DOUBT = 0.75
MOST_COLUMNS = 400
"""With ``n`` rows and ``K`` columns the damping is ``DOUBT * min(K, MOST_COLUMNS) / n``. Best for
layers of encoders on inputs held out: 0.6 for 480 rows, 0.15 for 2,900, with 1,536 columns as with
384; a fifth of that costs 0.5 dB and more."""
COHERENCE = 0.4
"""Square of the mean of an input over its variance, assumed where nobody knows the inputs: that of
a Gaussian behind a Relu is 0.47."""
ENOUGH_ROWS = 6
"""Rows per column from which on the ridge needs not be stronger; with fewer it grows in proportion:
directions that a few samples do not show are not free to move in."""
SWEEPS = 2
"""Rounds of coordinate descent after the sequential rounding: more gain nothing on new inputs."""


@dataclass(frozen=True)
class Form:
    """The shape of the codes.

    Attributes:
        bits: Width of an integer.
        block: Columns per scale.
        symmetric: No zero points.
    """

    bits: int
    block: int
    symmetric: bool

    @property
    def ends(self) -> tuple[int, int]:
        """Smallest and largest integer."""
        return integer_range(self.bits, signed=self.symmetric)

    def split(self, rows: Array) -> Array:
        """Return (rows * blocks, block), the last block of each row filled with zeros."""
        spare = -rows.shape[1] % self.block
        if spare:
            rows = np.pad(rows, ((0, 0), (0, spare)))
        return rows.reshape(-1, self.block)

    def spread(self, importance: Array) -> Array:
        """Return the importance of every column, (rows, K), as that of every block's elements."""
        return self.split(importance)


def rtn(rows: Array, form: Form) -> Codes:
    """Round to nearest on grids that hold the largest weight."""
    return _nearest(rows, form, _widest(rows, form))


def least_error(rows: Array, form: Form) -> Codes:
    """Round to nearest on the grids with the least error for inputs that are never negative.

    Such inputs, as all that come out of a Relu, add up the errors of a block: their sum counts as
    well as their squares.
    """
    grid = searched(form.split(rows), _widest(rows, form), coherence=COHERENCE)
    return _nearest(rows, form, grid)


def half_quadratic(rows: Array, form: Form) -> Codes:
    """Round to nearest on the grids of :mod:`passes.rounding.hqq`."""
    grid = hqq(form.split(rows), *form.ends, zero_points=not form.symmetric)
    return _nearest(rows, form, grid)


DATA_FREE: dict[str, Callable[[Array, Form], Codes]] = {
    "rtn": rtn,
    "hqq": half_quadratic,
    "least_error": least_error,
}
"""Methods that look at the weight alone."""


def gptq(rows: Array, form: Form, inputs: Inputs) -> Codes:
    """Round with error feedback towards the weights that suit the inputs really seen.

    Args:
        rows: float (channels, K); the channels of one group of inputs follow each other.
        form: Of the codes.
        inputs: Of one or several groups that divide the channels evenly. Centred where a bias
            takes up the means.
    """
    groups = len(inputs.gram)
    layers = rows.astype(np.float64).reshape(groups, -1, rows.shape[1])
    mask = layers == 0.0
    target = least_squares(layers, inputs.gram, inputs.cross, RIDGE * scarcity(inputs))
    target = np.where(mask, 0.0, target)
    importance = np.einsum("gkk->gk", inputs.gram)
    importance = importance + 0.01 * importance.mean(axis=1, keepdims=True)
    wide = np.broadcast_to(importance[:, None], layers.shape).reshape(rows.shape)
    flat = target.reshape(rows.shape)
    grid = searched(form.split(flat), _widest(flat, form), form.spread(wide))
    scales = storable(grid.scales.reshape(len(rows), -1))
    zeros = None if form.symmetric else grid.zeros.reshape(scales.shape)
    by_layer = (groups, len(rows) // groups, -1)
    lattice = Steps(
        scales.reshape(by_layer),
        *form.ends,
        zeros=None if zeros is None else zeros.reshape(by_layer),
        block=form.block,
    )
    codes, _ = sequential(
        target,
        inputs.gram,
        lattice,
        mask if mask.any() else None,
        damping=damping(inputs),
        sweeps=SWEEPS,
    )
    integers = codes.reshape(rows.shape).astype(np.int32)
    if zeros is not None and mask.any():  # the code of zero is the zero point
        columns = np.repeat(zeros, form.block, axis=1)[:, : rows.shape[1]]
        integers = np.where(mask.reshape(rows.shape), columns, integers)
    return Codes(integers, scales, zeros, form.bits, form.block)


def scarcity(inputs: Inputs) -> float:
    """Return by how much the ridge grows because there are few rows: 1 or more."""
    columns = int(inputs.gram.shape[-1])
    return max(1.0, ENOUGH_ROWS * columns / max(1, inputs.count))


def damping(inputs: Inputs) -> float:
    """Return what is added to the diagonal of a Gram matrix, as a share of its mean."""
    columns = min(int(inputs.gram.shape[-1]), MOST_COLUMNS)
    return max(DAMPING, DOUBT * columns / max(1, inputs.count))


def _widest(rows: Array, form: Form) -> Grid:
    make = symmetric if form.symmetric else asymmetric
    return make(form.split(rows), *form.ends)


def _nearest(rows: Array, form: Form, grid: Grid) -> Codes:
    scales = storable(grid.scales)
    stored = Grid(scales, grid.zeros, grid.low, grid.high)
    integers = stored.quantize(form.split(rows)).reshape(len(rows), -1)[:, : rows.shape[1]]
    blocks = scales.reshape(len(rows), -1)
    zeros = None if form.symmetric else grid.zeros.reshape(blocks.shape)
    return Codes(integers, blocks, zeros, form.bits, form.block)
