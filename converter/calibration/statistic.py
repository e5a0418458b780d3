"""Statistics of a tensor over the calibration samples: small and mergeable.

A statistic's size does not depend on the number of samples. The samples are cut into chunks that
depend on the data alone, every chunk fills statistics of its own, and those are merged in the order
of the chunks: any number of workers gives equal bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    import numpy as np

    from converter.calibration.patches import Geometry


class Request(NamedTuple):
    """One statistic of one value.

    Attributes:
        value_name: Name of a value of the main graph.
        kind: Key of :data:`converter.calibration.kinds.STATISTICS`.
        axis: The axis of the channels, for statistics per channel; negative from the end.
        geometry: How the layer that reads the value cuts it into rows (``gram``).
        rows: Most rows taken of one sample (``gram``).
    """

    value_name: str
    kind: str = "minmax"
    axis: int = 1
    geometry: Geometry | None = None
    rows: int = 256


class Source(NamedTuple):
    """Where an array comes from.

    Attributes:
        first: Position of the batch's first sample in the data set.
        samples: Samples in the batch; an array whose first axis has this size holds one per entry.
    """

    first: int = 0
    samples: int = 1


ONE = Source()
"""A batch of one sample, the first."""


class Statistic(Protocol):
    """What every statistic does. It is filled in a child process and comes back as its state.

    Class attributes:
        sketches: Keys of :data:`converter.calibration.sketches.SKETCHES`: small results computed
            inside the graph that are all ``update_reduced`` needs, so that the tensor itself never
            leaves the runtime; empty when the whole tensor is needed.
    """

    sketches: ClassVar[tuple[str, ...]]

    @classmethod
    def begin(cls, request: Request) -> Self:
        """Make an empty one for a request."""

    def update(self, array: np.ndarray[Any, Any], source: Source = ONE) -> None:
        """Take in one tensor of any shape; an empty one changes nothing."""

    def update_reduced(self, *values: np.ndarray[Any, Any], source: Source = ONE) -> None:
        """Take in one tensor by its sketches, in their order."""

    def merge(self, other: Self) -> None:
        """Take in everything that ``other`` has seen."""

    def state(self) -> dict[str, Any]:
        """Return everything that it holds, as numbers, text and arrays."""

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Build it again from :meth:`state`."""

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""


def per_sample(array: np.ndarray[Any, Any], source: Source) -> np.ndarray[Any, Any]:
    """Return a view (samples, elements); one row for an array that is not cut by samples."""
    cut = array.ndim > 0 and array.shape[0] == source.samples
    return array.reshape(source.samples if cut else 1, -1)
