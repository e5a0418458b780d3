"""How far channels may be scaled: never into a Clip, never beyond the widest of their value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from converter.core import graph as g
from converter.core.contract import Skip
from passes.equalization.absorb import Way, shifts
from passes.equalization.flow import Flow
from passes.equalization.layers import Array
from passes.equalization.observe import Seen, observe
from passes.equalization.operators import bounds
from passes.equalization.solve import movable

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context

_HEADROOM = 1.1
"""A stretched channel keeps this distance from the clip: samples to come may go a bit further."""


class Limits:
    """Bounds of the factors of all classes of one graph, and what was seen to make them.

    Args:
        model: Left as it is.
        flow: Settled; classes whose Clip nobody observed are frozen in it.
        ways: Where constants will be absorbed: what goes there does not count.
        context: Has the samples, if there are any; None: a graph that samples do not show.

    Attributes:
        low: Smallest log2 of each factor.
        high: Largest one.
        seen: Ranges of channels by value; empty without samples.
        skipped: Clips that could not be observed.
        notes: What the samples were used for.
    """

    def __init__(
        self,
        model: ir.Model,
        flow: Flow,
        ways: Mapping[ir.Value, Way],
        context: Context | None,
    ) -> None:
        self.low = np.full(flow.size, -np.inf)
        self.high = np.full(flow.size, np.inf)
        self.skipped: list[Skip] = []
        self.notes: list[str] = []
        self.seen: Mapping[ir.Value, Seen] = {}
        free = movable(flow)
        if context is not None and context.dataset is not None and free.any():
            wanted = _wanted(flow, free)
            self.seen = observe(model, {v: flow.channels[v] for v in wanted}, context)
            if self.seen:
                self.notes.append(
                    f"{context.dataset.samples} calibration samples showed how far channels reach"
                )
        self._widest(flow, ways)
        for node, ids in flow.limits:
            if free[ids].any():
                self._clip(flow, node, ids)

    def _widest(self, flow: Flow, ways: Mapping[ir.Value, Way]) -> None:
        """Stretch no channel beyond the largest number that its value holds anyway."""
        for side in flow.readers:
            seen = self.seen.get(side.value)
            if seen is None:
                continue
            reach = np.maximum(seen.high, -seen.low)
            way = ways.get(side.value)
            if way is not None and way.writer.value in self.seen:
                reach = reach - shifts(self.seen[way.writer.value], 1.0, way.top)
            self._at_least(flow.channels[side.value].ids, reach, float(reach.max(initial=0.0)))

    def _clip(self, flow: Flow, node: ir.Node, ids: Array) -> None:
        """Allow stretching of channels that stay clear of both ends, and nothing else."""
        value, (low, high) = node.inputs[0], bounds(node)
        assert value is not None
        assert low is not None
        assert high is not None
        seen = self.seen.get(value)
        if seen is None:
            reason = "how far its channels reach is not known; samples (--data) would tell"
            flow.frozen.append((ids, f"cut off by Clip, and {reason}"))
            self.skipped.append(Skip(g.label(node), reason))
            return
        self.high[ids] = np.minimum(self.high[ids], 0.0)
        for reach, end in ((seen.high, high), (-seen.low, -low)):
            if end > 0.0 and np.isfinite(end):
                self._at_least(ids, reach * _HEADROOM, end)

    def _at_least(self, ids: Array, reach: Array, end: float) -> None:
        """Bound factors from below by ``reach / end``; a channel beyond the end is not scaled."""
        if end <= 0.0:
            return
        with np.errstate(divide="ignore"):
            bound = np.log2(np.clip(np.where(reach > 0.0, reach, end) / end, 0.0, 1.0))
        np.maximum.at(self.low, ids, bound)


def _wanted(flow: Flow, free: Array) -> list[ir.Value]:
    """List the values to observe: inputs of layers, and what activations are applied to."""
    found: dict[ir.Value, None] = {}
    for side in flow.readers:
        if free[side.ids].any():
            found[side.value] = None
    for side in flow.writers:
        if free[side.ids].any():
            found[side.value] = None
    for node, ids in flow.limits:
        if free[ids].any() and node.inputs[0] is not None:
            found[node.inputs[0]] = None
    return list(found)
