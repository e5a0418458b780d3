"""Activations that follow a layer, and what the layer should make so that they agree.

Where the original is cut off, anything that is cut off as well will do. Targets that say so in
turn with the fit lower the error behind the activation in every round (majorisation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Activation:
    """Identity between two bounds; constant above, a line below.

    Attributes:
        low: Lower bound; minus infinity: none.
        high: Upper bound.
        slope: Of the line below the lower bound, 0 to 1.
    """

    low: float = -math.inf
    high: float = math.inf
    slope: float = 0.0

    def __call__(self, values: Array) -> Array:
        """Apply it."""
        made = np.minimum(values, np.float32(self.high))
        if self.low == -math.inf:
            return made
        low = np.float32(self.low)
        if self.slope:
            return np.where(made < low, low + np.float32(self.slope) * (made - low), made)
        return np.maximum(made, low)

    def targets(self, wanted: Array, present: Array) -> Array:
        """Return what a layer should make before the activation.

        Args:
            wanted: float32, what the original makes.
            present: What the layer makes now.
        """
        low, high = np.float32(self.low), np.float32(self.high)
        made = np.where(wanted > high, np.maximum(present, high), wanted)
        if self.low == -math.inf:
            return made
        below = np.minimum(present, low)
        if self.slope:  # an error below the bound counts with the square of the slope
            below = below + np.float32(self.slope**2) * (wanted - below)
        return np.where(wanted < low, below, made)


def activation_of(node: ir.Node | None) -> Activation | None:
    """Describe a node; None when it is no activation with bounds."""
    if node is None or not g.is_op(node, "Relu", "Clip", "LeakyRelu"):
        return None
    if node.op_type == "Relu":
        return Activation(0.0)
    if node.op_type == "LeakyRelu":
        slope = node.attributes.get_float("alpha", 0.01)
        return Activation(0.0, slope=slope) if 0.0 <= slope < 1.0 else None
    bounds = _bounds(node)
    return Activation(*bounds) if bounds is not None and bounds[0] < bounds[1] else None


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    found = [
        node.attributes.get_float("min", -math.inf),
        node.attributes.get_float("max", math.inf),
    ]
    for i, value in enumerate(node.inputs[1:3]):
        if value is None:
            continue
        array = g.constant_array(value)
        if array is None or array.size != 1:
            return None
        found[i] = float(array.reshape(-1)[0])
    return found[0], found[1]
