"""The model with atoms masked at all their readers, evaluated as a whole.

For components that are read by more than layers: norms, products, means, recurrent layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from passes.allocation.trial import Change, damage, write
from passes.tuning.segments import Pieces

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Arrays, Batch, RunSettings
    from converter.coupling.structure import Coupling

Array = np.ndarray[Any, Any]


class Masked:
    """Evaluates masked clones.

    Args:
        model: The original; left as it is.
        batches: Samples to compare outputs on.
        settings: How models are run.
        folder: For files.
        recouple: Finds the atoms of a clone.
    """

    def __init__(
        self,
        model: ir.Model,
        batches: Sequence[Batch],
        settings: RunSettings,
        folder: Path,
        recouple: Callable[[ir.Model], Coupling] | None,
    ) -> None:
        self._model = model
        self._batches = batches
        self._settings = settings
        self._recouple = recouple
        self._folder = folder / "masked"
        self._folder.mkdir()
        self._expected: dict[str, list[Array]] = {}

    def loss(self, gone: Array, changes: Sequence[Change]) -> float:
        """Return the damage when these atoms are masked and these layers re-fitted."""
        from passes.coupling.mask import mask

        if not self._expected:
            self._expected = self._run(self._model)
        assert self._recouple is not None
        clone = self._model.clone()
        twin = dict(zip(self._model.graph, clone.graph, strict=True))
        coupling = self._recouple(clone)
        alive = coupling.all_alive()
        alive[gone] = False
        mask(clone, coupling, alive)
        names = g.Names(clone)
        for layer, matrices in changes:
            write(clone, twin, layer, matrices, names)
        return damage(self._expected, self._run(clone), self._batches)

    def _run(self, model: ir.Model) -> dict[str, list[Array]]:
        feeds: list[Arrays] = [batch.inputs for batch in self._batches]
        pieces = Pieces(model, (), feeds, self._settings, self._folder)
        pieces.finish()
        names = [value.name or "" for value in model.graph.outputs]
        return {name: list(pieces.values[name]) for name in names}
