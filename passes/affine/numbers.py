"""Every number that a placement needs: grids, integers of weights, corrected biases.

They are kept by the names of values, so the same numbers fit the model and every clone of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from passes.affine.grid import Array, Grid
from passes.affine.placement import Unit

WeightKey = tuple[str, int | None]
"""Name of a weight, and the axis of its scales (None: one scale for the tensor)."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight on its symmetric grid.

    Attributes:
        integers: int8, the weight's shape.
        scales: float32 (channels,), or shape () for one scale.
        bits: 4 when all integers are in -7..7 and may be stored so.
    """

    integers: Array
    scales: Array
    bits: int = 8


@dataclass
class Numbers:
    """What is written into the model.

    Attributes:
        grids: The grid of every value that lies on one; values that share one share the object.
        magnitudes: Largest magnitudes of weights, as of :func:`passes.affine.scale.largest`: a
            weight without integers of its own is rounded to nearest on the scale that follows.
        weights: Weights whose integers were chosen already.
        biases: Corrected biases by the name of the node's first output, float32 (channels,). They
            replace the node's bias; a node without one gets it.
    """

    grids: dict[str, Grid] = field(default_factory=dict)
    magnitudes: dict[WeightKey, Array] = field(default_factory=dict)
    weights: dict[WeightKey, QuantizedWeight] = field(default_factory=dict)
    biases: dict[str, Array] = field(default_factory=dict)


def weight_key(unit: Unit, *, per_channel: bool) -> WeightKey:
    """Return the key of a unit's weight; units with one key share integers."""
    return unit.weight.name or "", (unit.axis if per_channel else None)


def bias_key(unit: Unit) -> str:
    """Return the key of a unit's bias."""
    return unit.node.outputs[0].name or ""
