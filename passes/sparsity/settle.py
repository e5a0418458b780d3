"""Original and pruned model advance together; every layer is worked out for some numbers of zeros.

The same walk as that of :mod:`passes.reconstruction.walk`, less exact and for several masks of a
layer at once: targets are what the original has there, the error of a shortcut is made up for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from passes.reconstruction.linear import Linear, linear_of
from passes.reconstruction.tail import Tail, tail_of
from passes.reconstruction.targets import Rows, Side, gather
from passes.sparsity.compensate import Normal
from passes.tuning.segments import Pieces
from passes.tuning.store import Budget

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Arrays, Batch, RunSettings
    from passes.sparsity.prepared import Fits, Prepared

Array = np.ndarray[Any, Any]
_POSITIONS = 48
_ROWS_PER_INPUT = 8
_MOST_NUMBERS = 32_000_000
"""Numbers of the largest matrix of rows: 128 MB."""
_STEPS, _LEAST_STEPS = 40, 6
_WORK = 2e11
"""Multiply-accumulates of working out one layer: about five seconds on one core."""


class Settling:
    """A walk through both models.

    Args:
        models: The original, and the one whose layers are changed on the way.
        batches: Samples to fit on.
        settings: How models are run.
        folder: For files.
        scaling: Layers get back the deviations of their outputs alone.
        choosing: Which weights go is decided on the way, from point to point.
    """

    def __init__(
        self,
        models: tuple[ir.Model, ir.Model],
        batches: Sequence[Batch],
        settings: RunSettings,
        folder: Path,
        *,
        scaling: bool = False,
        choosing: bool = False,
    ) -> None:
        self._models = models
        self._batches = batches
        self._settings = settings
        self._folder = folder
        self._scaling = scaling
        self._choosing = choosing
        self._samples = sum(batch.samples for batch in batches)
        nodes = [list(model.graph) for model in models]
        self._twin = dict(zip(nodes[1], nodes[0], strict=True))
        self._pieces: list[Pieces] = []

    def stops(self, wanted: Iterable[ir.Node]) -> list[ir.Node]:
        """Set the layers of the changed model that are worked out; returns them in order."""
        chosen = set(wanted)
        order = [node for node in self._models[1].graph if node in chosen]
        budget = Budget()
        feeds: list[Arrays] = [batch.inputs for batch in self._batches]
        for i, (model, stops) in enumerate(
            zip(self._models, ([self._twin[n] for n in order], order), strict=True)
        ):
            folder = self._folder / str(i)
            folder.mkdir()
            self._pieces.append(Pieces(model, stops, feeds, self._settings, folder, budget))
        return order

    def step(self, prepared: Prepared, fits: Fits, kind: type[np.floating[Any]]) -> None:
        """Go on to the next layer and work it out; it stays masked only where that fails.

        Args:
            prepared: The layer.
            fits: Takes what is found for its points.
            kind: How weights are kept.
        """
        for pieces in self._pieces:
            pieces.advance()
        linear = prepared.linear()
        found = None if linear is None else self._rows(linear)
        if linear is None or found is None:
            return
        fixed = None if linear.home is not None else linear.bias
        normal = Normal.of(found[0], prepared.original(linear), found[1].gain, fixed)
        if not normal.finite:
            return
        least = normal.work(len(fits.points))
        steps = int(np.clip(_WORK / max(1.0, least), _LEAST_STEPS, _STEPS))
        weight, gone = normal.weight, prepared.least
        for count in fits.points:
            if self._choosing and count > gone:
                density = 1.0 - gone / prepared.size
                if gone == prepared.least:  # the original's weights are not fitted yet
                    weight = normal.solve(prepared.mask(linear, gone), weight, steps)
                prepared.rank(linear, normal.importances(weight, density), gone)
                gone = int(count)
            mask = prepared.mask(linear, int(count))
            weight = normal.scaled(mask) if self._scaling else normal.solve(mask, weight, steps)
            bias = normal.bias(weight).reshape(-1) if linear.home is not None else None
            fits.add(linear.stored(weight).astype(kind), bias, normal.error(weight))

    def _rows(self, linear: Linear) -> tuple[Rows, Tail] | None:
        """Take rows of both models, and what follows; nothing where they cannot be compared."""
        second = linear_of(self._twin[linear.node])
        assert isinstance(second, Linear)
        tails = [tail_of(linear), tail_of(second)]
        sides = [
            Side(layer, tail, pieces)
            for layer, tail, pieces in zip(
                (linear, second), tails, (self._pieces[1], self._pieces[0]), strict=True
            )
        ]
        if not all(_lives(side) for side in sides):
            sides = [Side(s.layer, Tail.empty(s.layer), s.pieces) for s in sides]
        masks = [np.zeros(batch.samples, bool) for batch in self._batches]
        found = gather(sides[0], sides[1], {}, self._most(linear), masks)
        return None if isinstance(found, str) else (found, sides[0].tail)

    def _most(self, linear: Linear) -> int:
        """Return how many positions of one sample are taken."""
        wanted = max(_POSITIONS * self._samples, _ROWS_PER_INPUT * linear.depth)
        width = max(linear.depth * len(linear.weight), 2 * linear.outputs)
        return max(1, min(wanted, _MOST_NUMBERS // max(1, width)) // max(1, self._samples))


def _lives(side: Side) -> bool:
    other = side.tail.other
    return other is None or (other.name or "") in side.pieces.values
