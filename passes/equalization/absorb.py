"""High biases: what a channel never goes below moves through the activation into the next bias.

Nagel et al. 2019, section 4.1: ``relu(x) = relu(x - c) + c`` as long as ``x >= c``, and a layer
turns the constant ``c`` into ``W c``, which its bias takes up. The channel's range gets narrower by
``c``. Layers that put zeros around their input cannot take it up: at the borders fewer taps count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from passes.equalization.flow import Flow, Side
from passes.equalization.layers import Array, Layer, owned
from passes.equalization.observe import Seen
from passes.equalization.operators import bounds

_MARGIN = 0.1  # of the channel's range: samples to come may go a bit lower
_WORTH = 0.01  # of the value's largest number: less is not worth a change
_LINEAR_ABOVE_ZERO = ("Relu", "LeakyRelu", "PRelu", "Clip")


@dataclass(frozen=True, eq=False)
class Way:
    """From a layer through at most one activation to the layers that alone read it.

    Attributes:
        writer: The layer's output.
        value: What the readers read.
        top: Upper end of a Clip in between.
        readers: The layers.
    """

    writer: Side
    value: ir.Value
    top: float
    readers: tuple[Layer, ...]


def ways(flow: Flow) -> dict[ir.Value, Way]:
    """Return where constants can move, by the value that the taking layers read."""
    readers = {side.layer.node: side.layer for side in flow.readers}
    found = [_way(side, readers) for side in flow.writers]
    return {way.value: way for way in found if way is not None}


def absorb(
    found: Mapping[ir.Value, Way],
    factors: Array,
    seen: Mapping[ir.Value, Seen],
    counts: dict[str, float],
) -> list[ir.Value]:
    """Shift channels that stay above zero on all samples.

    Args:
        found: As of :func:`ways`; their layers have been divided by ``factors`` already.
        factors: By class.
        seen: Ranges of channels before that; only values in here are considered.
        counts: ``biases_absorbed`` is added to.

    Returns:
        The values that hold other numbers now.
    """
    shifted: list[ir.Value] = []
    for way in found.values():
        if way.writer.value not in seen:
            continue
        shift = shifts(seen[way.writer.value], factors[way.writer.ids], way.top)
        if shift.any():
            _apply(way, shift)
            counts["biases_absorbed"] = counts.get("biases_absorbed", 0.0) + int((shift > 0).sum())
            shifted += [way.writer.value, way.value]
    return shifted


def shifts(seen: Seen, factors: Array | float, top: float) -> Array:
    """Return by how much each channel may go down: float64 (channels,), zero where not."""
    low, high = seen.low / factors, seen.high / factors
    shift = np.maximum(low - _MARGIN * (high - low), 0.0)
    shift[high > top] = 0.0
    shift[shift < _WORTH * high.max(initial=0.0)] = 0.0
    return shift


def _way(side: Side, readers: Mapping[ir.Node, Layer]) -> Way | None:
    """Return where the layer's output goes if all of that can take up a constant."""
    if not _has_bias(side.layer):
        return None
    value, top = side.value, np.inf
    users = [use.node for use in value.uses()]
    if len(users) == 1 and g.is_op(users[0], *_LINEAR_ABOVE_ZERO):
        if value.is_graph_output():
            return None
        if users[0].op_type == "Clip":
            low, high = bounds(users[0])
            if low is None or high is None or low > 0.0:
                return None
            top = high
        value = users[0].outputs[0]
    reading = [readers.get(use.node) for use in value.uses()]
    taking = tuple(layer for layer in reading if layer is not None and _takes(layer, side.layer))
    if not taking or len(taking) < len(reading) or value.is_graph_output():
        return None
    return Way(side, value, top, taking)


def _has_bias(layer: Layer) -> bool:
    """Tell whether a constant can be added to the layer's own bias."""
    if layer.bias is None or not owned(layer.bias):
        return False
    plain = all(layer.node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    array = g.constant_array(layer.bias)
    return plain and array is not None and array.size == layer.outputs and array.dtype == np.float32


def _takes(layer: Layer, writer: Layer) -> bool:
    same = layer.inputs == writer.outputs and layer.node is not writer.node
    fits = layer.node.op_type == "Gemm" or (layer.node.op_type == "Conv" and not layer.padded())
    return same and fits and _has_bias(layer)


def _apply(way: Way, shift: Array) -> None:
    _add(way.writer.layer, -shift)
    for layer in way.readers:
        weight = layer.matrices().sum(axis=3, dtype=np.float64)
        groups, _, inputs = weight.shape
        taken = np.einsum("goi,gi->go", weight, shift.reshape(groups, inputs))
        _add(layer, taken.reshape(-1))


def _add(layer: Layer, amount: Array) -> None:
    assert layer.bias is not None
    array = g.constant_array(layer.bias)
    assert array is not None
    moved = array.astype(np.float64) + amount.reshape(array.shape)
    g.replace_tensor(layer.bias, ir.tensor(moved.astype(np.float32)))
