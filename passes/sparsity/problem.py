"""How many weights of which tensor become zero: the question, and the form of an answer.

Every strategy is one function from a :class:`Problem` to an :class:`Allocation`. It decides counts
alone; which weights of a tensor go is decided by criterion and pattern, in the same way for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, Context
    from passes.allocation.order import Cut
    from passes.sparsity.layers import Layer
    from passes.sparsity.patterns import Pattern

Array = np.ndarray[Any, Any]
Criterion = Literal["magnitude", "wanda", "obs", "random"]
Recovery = Literal["least_squares", "moments", "obs", "none"]


class Build(Protocol):
    """Makes the model that an allocation leads to, as the pass itself would."""

    def __call__(self, zeros: Array, samples: Sequence[Batch] | None = None) -> ir.Model:
        """Return the model before this pass, masked and recovered.

        Args:
            zeros: By layer: int64 (layers,).
            samples: To fit on; None: all there are. Strategies that judge the result keep some out.
        """


@dataclass(frozen=True, eq=False)
class Problem:
    """What to distribute zeros over.

    Attributes:
        model: Before this pass; never changed by a strategy.
        layers: The tensors that may be pruned, in the order of the model. A tensor that several
            nodes read is one layer.
        share: Zeros wanted, as a share of the weights of all layers together: 0 <= share < 1.
        context: Data, random streams, limits, budget.
        criterion: What orders the weights within a tensor.
        pattern: The units in which they go.
        recover: What makes up for them afterwards.
        scores: Importance of every weight of a layer by its index, the lowest goes first: float or
            unsigned integer, flat, in the order of the tensor. Computed when asked for: with large
            tensors ask for one at a time and keep none.
        build: Makes the model that an allocation leads to, masked and recovered, as the pass itself
            would: for strategies that must know the real result. Expensive.
        population, generations: Effort of evolutionary search.
    """

    model: ir.Model
    layers: Sequence[Layer]
    share: float
    context: Context
    criterion: Criterion
    pattern: Pattern
    recover: Recovery
    scores: Callable[[int], Array]
    build: Build
    population: int = 16
    generations: int = 20

    @property
    def sizes(self) -> Array:
        """Number of weights of every layer: int64 (layers,)."""
        return np.asarray([layer.tensor.size for layer in self.layers], np.int64)

    @property
    def wanted(self) -> int:
        """Zeros in all layers together: exactly this many, where the pattern allows it."""
        return round(self.share * int(self.sizes.sum()))


@dataclass(frozen=True, eq=False)
class Allocation:
    """How many zeros each layer gets.

    Attributes:
        zeros: By layer, zeros that are there already included: int64 (layers,). They add up to
            :attr:`Problem.wanted`, except for strategies that decide the share themselves.
        notes: What was decided and why, in words for the report.
        counts: Figures for the report.
        cuts: By layer what goes, where that was found on the way (a large model is read once then);
            None: it is looked for afterwards.
    """

    zeros: Array
    notes: tuple[str, ...] = ()
    counts: Mapping[str, float] = field(default_factory=dict)
    cuts: tuple[Cut | None, ...] | None = None


Strategy = Callable[[Problem], Allocation]
