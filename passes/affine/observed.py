"""What a placement needs of the calibration data: seen once, turned into grids by any method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from converter.calibration.minmax import MinMax
from converter.calibration.statistic import Request
from converter.core import graph as g
from converter.core.select import Selection
from converter.ops.targets import ORT_CPU, Target
from passes.affine.grid import Array, Grid
from passes.affine.numbers import Numbers, WeightKey, weight_key
from passes.affine.opset import PER_CHANNEL_OPSET
from passes.affine.pay import what_pays
from passes.affine.placement import Placement, place
from passes.affine.ranges import STATISTICS_OF, Seen, choose
from passes.affine.rules import Rules
from passes.affine.scale import largest
from passes.affine.uneven import better_in_float, joined

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context

_WIDEST = 1e30
"""Values beyond this are masks (minus infinity in disguise), and no grid of 256 steps fits them."""


@dataclass(frozen=True)
class Choice:
    """How grids are made.

    Attributes:
        methods: Keys of :data:`passes.affine.ranges.STATISTICS_OF` that will be asked for; what
            none of them needs is not gathered. The first is the one used by default.
        percentile: Share of the elements, in percent, that ``percentile`` keeps.
        symmetric: Grids of activations have zero in their middle.
        per_channel: One scale per output channel of a weight, where the opset allows it.
        everything: Also what is estimated to be slower on integers.
        target: What will run the model.
        activations: Type of the integers of activations; "" is the target's own.
    """

    methods: tuple[str, ...] = ("minmax",)
    percentile: float = 99.99
    symmetric: bool = False
    per_channel: bool = True
    everything: bool = False
    target: Target = ORT_CPU
    activations: str = ""

    @property
    def rules(self) -> Rules:
        """Return what placements follow."""
        return Rules(self.target, self.symmetric, activations=self.activations)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of statistics to gather, ``minmax`` first."""
        return tuple(dict.fromkeys(k for m in self.methods for k in STATISTICS_OF[m]))


class Observed:
    """Plans, looks at the values of what was planned, and plans again without what has no range.

    Args:
        model: Left as it is.
        selection: Nodes that the user chose.
        context: Has calibration data.
        choice: What will be asked for.

    Attributes:
        per_channel: Weights have one scale per output channel.
        magnitudes: Largest magnitudes of all weights of the last plan.
        declined: Nodes that stay in float because integers are estimated to be slower, and why.
    """

    def __init__(
        self, model: ir.Model, selection: Selection, context: Context, choice: Choice
    ) -> None:
        self.model = model
        self.selection = selection
        self.context = context
        self.choice = choice
        self.per_channel = choice.per_channel and g.opset(model) >= PER_CHANNEL_OPSET
        self.magnitudes: dict[WeightKey, Array] = {}
        self.declined: dict[ir.Node, str] = {}
        self._seen: dict[ir.Value, Seen] = {}
        self._unusable: dict[ir.Value, str] = {}

    def plan(self) -> Placement:
        """Return a placement all of whose values and weights are finite."""
        if not self.choice.everything and self.choice.rules.priced:
            self.declined = what_pays(self.context, self.model, self._place)
        while True:
            plan = self._place(self.declined)
            known = len(self._unusable)
            self._weigh(plan)
            if len(self._unusable) == known:
                self._observe(plan)
            if len(self._unusable) == known:
                torn = better_in_float(plan, self.ranges(plan))
                if not torn:
                    return plan
                self.declined |= torn

    def ranges(self, plan: Placement) -> dict[ir.Value, tuple[float, float]]:
        """Return the ends of everything seen so far, or known without data."""
        seen = {v: (s.minmax.low, s.minmax.high) for v, s in self._seen.items()}
        return seen | _fixed_ranges(plan)

    def numbers(self, plan: Placement) -> Numbers:
        """Return the grid of every value by the first method, and the magnitudes of all weights."""
        return Numbers(self.grids(plan, self.choice.methods[0]), self.magnitudes)

    def grids(
        self, plan: Placement, method: str, percentile: float | None = None
    ) -> dict[str, Grid]:
        """Return the grid of every value of a plan, by the value's name.

        Args:
            plan: As of :meth:`plan`.
            method: One of the methods of the choice.
            percentile: Instead of that of the choice.
        """
        fixed = _fixed_ranges(plan)
        roots = plan.ranged()
        made: dict[ir.Value, Grid] = {}
        for root in dict.fromkeys(roots.values()):
            low, high = fixed.get(root) or choose(
                method,
                self._seen[root],
                integers=self.choice.rules.integers,
                symmetric=self.choice.rules.target.centred or self.choice.symmetric,
                percentile=percentile or self.choice.percentile,
            )
            made[root] = self.choice.rules.grid(low, high)
        return {value.name or "": made[root] for value, root in roots.items()}

    def _place(self, declined: Mapping[ir.Node, str]) -> Placement:
        return place(
            self.model,
            self.selection,
            self._unusable,
            rules=self.choice.rules,
            declined=declined,
        )

    def _weigh(self, plan: Placement) -> None:
        """Look at every weight once: its magnitudes make the scales."""
        for unit in plan.units:
            if unit.row.weight is None:
                continue
            key = weight_key(unit, per_channel=self.per_channel)
            if key in self.magnitudes:
                continue
            weight = g.constant_array(unit.weight)
            assert weight is not None
            self.magnitudes[key] = largest(weight, key[1])
            if not np.isfinite(self.magnitudes[key]).all():
                self._unusable[unit.weight] = "the weight holds NaN or infinity"

    def _observe(self, plan: Placement) -> None:
        fixed = _fixed_ranges(plan)
        values = dict.fromkeys([*plan.ranged().values(), *joined(plan)])
        wanted = [v for v in values if v not in self._seen and v not in fixed]
        if not wanted:
            return
        requests = {v: [Request(v.name or "", kind) for kind in self.choice.kinds] for v in wanted}
        found = self.context.collect(self.model, [r for rs in requests.values() for r in rs])
        for value in wanted:
            self._seen[value] = Seen.of([found[request] for request in requests[value]])
            reason = _flaw(self._seen[value].minmax)
            if reason:
                self._unusable[value] = reason


def _fixed_ranges(plan: Placement) -> dict[ir.Value, tuple[float, float]]:
    """Ranges that follow from the operator alone."""
    return {
        value: unit.row.output_range
        for unit in plan.units
        if unit.row.output_range is not None
        for value in unit.outputs
    }


def _flaw(seen: MinMax) -> str:
    """Say why a range cannot become a grid; "" when it can."""
    if not seen.seen:
        return "its values were never computed on the calibration data"
    if not seen.finite:
        return "its values were NaN or infinite on the calibration data"
    if max(-seen.low, seen.high) > _WIDEST:
        return "its values are too large for 8 bits"
    return ""
