"""The weights that a layer gets for any number of zeros, from a few that were worked out.

Between two of these the masks are cut exactly and the weights blended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from passes.reconstruction.linear import Linear, linear_of
from passes.reconstruction.transposed import matrices
from passes.sparsity.masks import mask_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.sparsity.layers import Layer
    from passes.sparsity.patterns import Pattern
    from passes.tuning.store import Store

Array = np.ndarray[Any, Any]
_SMALLEST = 1e-300
_STAGES = 40
"""Numbers of zeros for which it is worked out which blocks or rows go."""


@dataclass(eq=False)
class Fits:
    """The weights of one layer for some numbers of zeros.

    Attributes:
        points: Numbers of zeros, ascending: int64 (points,).
        store: Holds the weights, in memory or in files.
        key: Their name there.
        biases: By point: float32 (outputs,), or nothing where there is no bias.
        errors: By point, what is left of the error of the layer's output, relative to its variance.
        ranks: Turn at which every weight goes, where that was decided by the fits.
    """

    points: Array
    store: Store
    key: str
    biases: list[Array | None] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    ranks: Array | None = None

    def add(self, weight: Array, bias: Array | None, error: float) -> None:
        """Take the weights for the next point.

        Args:
            weight: In the shape of the tensor.
            bias: float (outputs,), or nothing.
            error: Of the layer's output.
        """
        self.errors.append(error)
        self.store.append(self.key, np.ascontiguousarray(weight).reshape(-1))
        self.biases.append(None if bias is None else bias.astype(np.float32))

    def drop(self) -> None:
        """Forget them."""
        self.store.drop(self.key)
        self.biases, self.errors = [], []


@dataclass(eq=False)
class Prepared:
    """A layer with the weights for some numbers of zeros.

    Attributes:
        layer: Of the model that is changed on trial.
        ranks: Turn at which every weight goes by its score, flat: int32 (weights,).
        least: Zeros that are there already.
        first: Position of the first node of the main graph that needs it.
        node: The one node that is fitted; None: weights are masked only.
        fits: What was worked out; None: weights are masked only.
        now: Zeros that it has at present; -1: weights that no number describes.
    """

    layer: Layer
    ranks: Array
    least: int
    first: int
    node: ir.Node | None = None
    fits: Fits | None = None
    now: int = -1
    _original: Array = field(init=False)

    def __post_init__(self) -> None:
        self._original = np.ascontiguousarray(self.layer.tensor.numpy())

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(self._original.size)

    @property
    def turns(self) -> Array:
        """Turn at which every weight goes: int32 (weights,)."""
        decided = None if self.fits is None else self.fits.ranks
        return self.ranks if decided is None else decided

    def linear(self) -> Linear | None:
        """Return the layer as what can be fitted, with the weights that it has at present."""
        found = None if self.node is None else linear_of(self.node)
        return found if isinstance(found, Linear) else None

    def original(self, linear: Linear) -> Array:
        """Return the weights before this pass: float64 (groups, outputs, K)."""
        return _matrices(linear, self._original.astype(np.float64))

    def mask(self, linear: Linear, zeros: int) -> Array:
        """Return which weights stay: bool (groups, outputs, K)."""
        stays = _matrices(linear, (self.turns >= zeros).reshape(self._original.shape))
        return stays.astype(bool)

    def rank(self, linear: Linear, scores: Array, gone: int) -> None:
        """Decide anew at which turn the weights go that are left.

        Args:
            linear: The layer.
            scores: The lowest goes first: (groups, outputs, K).
            gone: Turns that are over.
        """
        assert self.fits is not None
        places = _matrices(linear, np.arange(self.size).reshape(self._original.shape))
        flat = np.empty(self.size)
        flat[places.astype(np.int64).reshape(-1)] = scores.reshape(-1)
        ranks = self.turns.copy()
        left = np.flatnonzero(ranks >= gone)
        order = left[np.argsort(flat[left], kind="stable")]
        ranks[order] = np.arange(gone, self.size, dtype=np.int32)
        self.fits.ranks = ranks

    def energies(self, points: Array) -> Array:
        """Return the share of the weights' energy that goes: float64, by number of zeros."""
        squares = np.zeros(self.size + 1)
        squares[self.ranks + 1] = np.square(self._original.reshape(-1), dtype=np.float64)
        sums = np.cumsum(squares)
        made: Array = sums[points] / max(float(sums[-1]), _SMALLEST)
        return made

    def put(self, zeros: int) -> None:
        """Give the layer its weights for so many zeros."""
        zeros = max(int(zeros), self.least)
        if zeros == self.now:
            return
        weight, bias = self._at(zeros)
        self._set(weight.astype(self._original.dtype).reshape(self._original.shape))
        linear = self.linear() if bias is not None else None
        if linear is not None and linear.home is not None and bias is not None:
            value = linear.home.node.inputs[linear.home.position]
            old = g.constant_array(value)
            assert value is not None
            assert old is not None
            g.set_constant(value, bias.astype(old.dtype).reshape(old.shape))
        self.now = zeros

    def _at(self, zeros: int) -> tuple[Array, Array | None]:
        stays = self.turns >= zeros
        fits = self.fits
        if fits is None or not fits.biases:
            return np.where(stays, self._original.reshape(-1), self._original.dtype.type(0)), None
        worked, biases = len(fits.biases), fits.biases
        made, points = fits.store[fits.key], fits.points
        after = int(np.searchsorted(points[:worked], zeros))
        if after in (0, worked) or points[after] == zeros:
            at = min(after, worked - 1)
            return np.where(stays, made[at], made[at].dtype.type(0)), biases[at]
        part = np.float32((zeros - points[after - 1]) / (points[after] - points[after - 1]))
        weight = (1 - part) * made[after - 1].astype(np.float32)
        weight *= stays
        weight += part * made[after].astype(np.float32)
        first, second = biases[after - 1], biases[after]
        if first is None or second is None:
            return weight, None
        return weight, (1 - part) * first + part * second

    def _set(self, weight: Array) -> None:
        import onnx_ir as ir

        tensor = ir.tensor(weight, dtype=self.layer.tensor.dtype, name=self.layer.tensor.name)
        g.replace_tensor(self.layer.value, tensor)


def ranks_of(scores: Array, weights: Array) -> Array:
    """Return the turn at which every weight goes; zeros first, equal scores by index.

    Args:
        scores: The lowest goes first: (weights,).
        weights: Flat.

    Returns:
        int32 (weights,).
    """
    order = np.lexsort((scores.reshape(-1), weights.reshape(-1) != 0))
    ranks = np.empty(len(order), np.int32)
    ranks[order] = np.arange(len(order), dtype=np.int32)
    return ranks


def ranks_in_units(layer: Layer, scores: Array, pattern: Pattern) -> Array:
    """Return the turn at which every weight goes; those of a block or row go together.

    Args:
        layer: The layer.
        scores: The lowest goes first, flat: (weights,).
        pattern: The units.

    Returns:
        int32 (weights,).
    """
    weights = layer.tensor.numpy()
    if pattern.kind not in ("block", "row"):
        return ranks_of(scores, weights)
    kept = np.geomspace(1.0, 1.0 / len(scores), _STAGES)
    stages = np.full(len(scores), _STAGES)
    for stage in reversed(range(_STAGES)):
        gone = mask_of(layer, scores, round((1.0 - kept[stage]) * len(scores)), pattern)
        if gone is not None:
            stages[gone.reshape(-1)] = stage
    turns = np.empty(len(scores))
    turns[np.lexsort((scores, stages))] = np.arange(len(scores))
    return ranks_of(turns, weights)


def _matrices(linear: Linear, array: Array) -> Array:
    """Bring something in the form of the weight into that of a matrix per group."""
    if linear.stuffing is not None:
        return matrices(array, linear.geometry.groups)
    groups, outputs, width = linear.weight.shape
    matrix = array.T if linear.swapped else array
    return np.ascontiguousarray(matrix.reshape(groups, outputs, width))
