"""Smallest and largest element of each channel of some values over the calibration samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from converter.core import graph as g
from passes.equalization.flow import Channels
from passes.equalization.layers import Array
from passes.equalization.reduction import reduce

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context


@dataclass(frozen=True, eq=False)
class Seen:
    """Range of each channel of one value: float64 (channels,) each."""

    low: Array
    high: Array


def observe(
    model: ir.Model, values: Mapping[ir.Value, Channels], context: Context
) -> dict[ir.Value, Seen]:
    """Run the samples once; each tensor is reduced inside the graph to two numbers per channel.

    Args:
        model: Left as it is.
        values: Values of the main graph and where their channels are.
        context: Has data.

    Returns:
        What was seen of every value whose channels could be told apart and were finite.
    """
    assert context.dataset is not None
    copy, outputs = _augmented(model, values)
    if not outputs:
        return {}
    names = [name for pair in outputs.values() for name in pair]
    results = context.run(copy, (batch.inputs for batch in context.dataset), names)
    return dict(_merged(outputs, results))


def _augmented(
    model: ir.Model, values: Mapping[ir.Value, Channels]
) -> tuple[ir.Model, dict[ir.Value, tuple[str, str]]]:
    """Return a copy of the model that gives the ranges only, and their names."""
    copy, names = model.clone(), g.Names(model)
    ours = {v.name: v for node in copy.graph for v in node.outputs}
    outputs: dict[ir.Value, tuple[str, str]] = {}
    made: list[ir.Value] = []
    for value, channels in values.items():
        twin = ours.get(value.name)
        if twin is None or channels.rank is None or channels.flat:
            continue
        axes = [a for a in range(channels.rank) if a != channels.rank + channels.axis]
        pair = [reduce(copy, twin, op, axes, names) for op in ("ReduceMin", "ReduceMax")]
        made += pair
        outputs[value] = (pair[0].name or "", pair[1].name or "")
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(made)
    return copy, outputs


def _merged(
    outputs: Mapping[ir.Value, tuple[str, str]], results: Iterable[Mapping[str, Array]]
) -> Iterable[tuple[ir.Value, Seen]]:
    found: dict[ir.Value, Seen] = {}
    for result in results:
        for value, (low, high) in outputs.items():
            seen = Seen(result[low].astype(np.float64), result[high].astype(np.float64))
            if value in found:
                seen = Seen(
                    np.minimum(found[value].low, seen.low), np.maximum(found[value].high, seen.high)
                )
            found[value] = seen
    for value, seen in found.items():
        if np.isfinite(seen.low).all() and np.isfinite(seen.high).all():
            yield value, seen
