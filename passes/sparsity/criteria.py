"""What orders the weights of a layer: size, what it does to its outputs, or chance.

All scores are not negative and the lowest goes first; a weight that is zero has score 0.

- ``magnitude``: the absolute value.
- ``wanda``: the mean energy that a weight adds to its output, w^2 mean(x^2), relative to that of
  the whole layer. It is the square of the score of Sun et al. 2023 (arXiv 2306.11695), which is the
  same order.
- ``obs``: the error of the output when a weight goes and all others of its row make up for it,
  w^2 / inv(H)_jj with the damped Gram matrix H of the inputs (Hassibi and Stork 1993; Frantar and
  Alistarh 2023, arXiv 2301.00774), relative to the energy of the whole layer.
- ``random``: uniform numbers from the stream of the layer's name.

Because wanda and obs are relative to the layer's own energy, scores of several layers can be
compared: they are shares of what each layer puts out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.contract import Skip
from converter.errors import MissingDataError
from passes.sparsity.inputs import measured
from passes.sparsity.matrix import matrix_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context
    from passes.sparsity.layers import Layer
    from passes.sparsity.problem import Criterion

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of the weights of every layer; computed when asked for.

    Attributes:
        criterion: What they mean.
        layers: As they are now; a layer whose tensor changes has other scores.
        context: Has the random streams.
        factors: Of wanda and obs by layer: what a squared weight is multiplied with, for groups of
            rows and columns: float64 (groups, columns). A layer without was not measured; its
            inputs count as all alike.
        skipped: Layers that were not measured, with the reason.
    """

    criterion: Criterion
    layers: Sequence[Layer]
    context: Context
    factors: Mapping[int, Array] = field(default_factory=dict)
    skipped: tuple[Skip, ...] = ()

    def __call__(self, index: int) -> Array:
        """Return the scores of a layer: float32 or float64 (size,), in the order of the tensor."""
        layer = self.layers[index]
        weight = layer.tensor.numpy()
        if weight.dtype.itemsize < 4:
            weight = weight.astype(np.float32)
        if self.criterion == "magnitude":
            size: Array = np.abs(weight).reshape(-1)
            return size
        if self.criterion == "random":
            stream = self.context.rng(f"prune:random:{layer.name}")
            return np.where(weight == 0, 0.0, stream.random(weight.shape)).reshape(-1)
        return self._energies(layer, weight, self.factors.get(index))

    def _energies(self, layer: Layer, weight: Array, factors: Array | None) -> Array:
        matrix = matrix_of(layer)
        energy = np.square(matrix.forward(weight.reshape(matrix.shape)), dtype=np.float64)
        if factors is not None:
            groups = len(factors)
            energy = (energy.reshape(groups, -1, matrix.columns) * factors[:, None]).reshape(
                energy.shape
            )
        total = float(energy.sum())
        if total > 0 and np.isfinite(total):
            energy /= total
        return np.ascontiguousarray(matrix.backward(energy)).reshape(-1)


def scores(
    criterion: Criterion, layers: Sequence[Layer], model: ir.Model, context: Context
) -> Scores:
    """Prepare the scores of layers; wanda and obs run the model on the samples.

    Args:
        criterion: What orders the weights.
        layers: The layers.
        model: Their model.
        context: Samples, limits and random streams.

    Raises:
        MissingDataError: wanda or obs, and there are no samples.
        ConverterError: The model cannot be run on the samples.
    """
    if criterion == "magnitude" or criterion == "random":  # noqa: PLR1714 - narrows the type
        return Scores(criterion, layers, context)
    if context.dataset is None:
        raise MissingDataError(
            f"criterion={criterion} looks at the inputs of layers, and there are no samples",
            where="prune",
            allowed="64 to 512 unlabelled samples",
            hint="give --data FILE, or --data smooth for made-up ones, or take criterion=magnitude",
        )
    factors, skipped = measured(criterion, layers, model, context)
    return Scores(criterion, layers, context, factors, skipped)
