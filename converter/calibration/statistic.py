"""Statistics of a tensor over the calibration samples: small, mergeable, order-independent.

A statistic's size does not depend on the number of samples. ``merge`` makes sharding possible: the
statistic of two halves merged equals that of the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    import numpy as np


class Request(NamedTuple):
    """One statistic of one value.

    Attributes:
        value_name: Name of a value of the main graph.
        kind: Key of :data:`converter.calibration.collect.STATISTICS`.
    """

    value_name: str
    kind: str = "minmax"


class Statistic(Protocol):
    """What every statistic does. It is filled in a child process and comes back as its state.

    Class attributes:
        reductions: Operators that give all that ``update_reduced`` needs as scalars, so that the
            tensor itself never leaves the runtime; empty when the whole tensor is needed.
    """

    reductions: ClassVar[tuple[str, ...]]

    def update(self, array: np.ndarray[Any, Any]) -> None:
        """Take in one tensor of any shape."""

    def update_reduced(self, *values: np.ndarray[Any, Any]) -> None:
        """Take in one tensor by the results of ``reductions``, in their order."""

    def merge(self, other: Self) -> None:
        """Take in everything that ``other`` has seen."""

    def state(self) -> dict[str, Any]:
        """Return everything that it holds, as numbers, text and arrays."""

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Self:
        """Build it again from :meth:`state`."""

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
