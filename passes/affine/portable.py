"""``portable=true``: 7-bit weights where processors without VNNI would give other results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from converter.calibration.patches import Geometry, patches
from converter.core import graph as g
from converter.measure.saturation import SAFE_MAGNITUDE, overflowing
from passes.affine.grid import INT8_SYMMETRIC, UINT8, Array
from passes.affine.numbers import Numbers, weight_key
from passes.affine.placement import Placement, Unit
from passes.affine.scale import quantize_weight, weight_scales

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Arrays, Context

_SAMPLES = 2
_POSITIONS = 128
_LAYERS = 16
"""Layers whose inputs are held at a time."""


@dataclass(frozen=True)
class Sums:
    """The integer sums of a placement, looked at on the first samples.

    Attributes:
        model: In float, as it was planned; left as it is.
        plan: The placement.
        numbers: What will be written.
        per_channel: One scale per output channel of a weight.
    """

    model: ir.Model
    plan: Placement
    numbers: Numbers
    per_channel: bool

    def saturating(self, context: Context) -> dict[Unit, float]:
        """Return the layers with sums that saturate in 16 bits, and the share of such results."""
        layers = [u for u in self.plan.units if u.row.weight is not None and self._affected(u)]
        feeds = [batch.inputs for batch in islice(context.dataset or (), _SAMPLES)]
        found: dict[Unit, float] = {}
        for start in range(0, len(layers), _LAYERS):
            part = layers[start : start + _LAYERS]
            for inputs in _inputs(self.model, part, feeds, context):
                for unit in part:
                    share = overflowing(*self._rows(unit, inputs[unit.inputs[0].name or ""]))
                    found[unit] = found.get(unit, 0.0) + share / len(feeds)
        return {unit: share for unit, share in found.items() if share > 0.0}

    def narrowed(self, units: Iterable[Unit]) -> Numbers:
        """Return the numbers with 7-bit weights, rounded to nearest, in some units."""
        keys = {weight_key(unit, per_channel=self.per_channel) for unit in units}
        wider = INT8_SYMMETRIC.high / SAFE_MAGNITUDE
        magnitudes = {k: m * wider if k in keys else m for k, m in self.numbers.magnitudes.items()}
        weights = {k: w for k, w in self.numbers.weights.items() if k not in keys}
        return replace(self.numbers, magnitudes=magnitudes, weights=weights)

    def _affected(self, unit: Unit) -> bool:
        grid = self.numbers.grids.get(unit.inputs[0].name or "")
        groups = unit.node.attributes.get_int("group", 1)
        depthwise = g.is_op(unit.node, "Conv") and groups == unit.channels > 1
        return grid is not None and grid.integers is UINT8 and not depthwise

    def _rows(self, unit: Unit, x: Array) -> tuple[Array, Array]:
        """Return activations and weights as the processor multiplies them, groups one by one."""
        weight = self._integers(unit)
        grid = self.numbers.grids[unit.inputs[0].name or ""]
        if not g.is_op(unit.node, "Conv"):
            weight = weight if unit.axis == 0 else weight.T
            rows = patches(x, Geometry(), _POSITIONS, 0)[:, 0]
            return grid.quantize(rows), weight
        geometry = Geometry.of(unit.node, weight.shape)
        rows = grid.quantize(patches(x, geometry, _POSITIONS, 0))
        count, groups, _ = rows.shape
        kernel = weight.shape[1:]
        # Channels last: those of one position of the kernel are neighbours.
        last = np.moveaxis(rows.reshape(count, groups, *kernel), 2, -1)
        turned = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
        if groups == 1:
            return last.reshape(count, -1), turned
        return _spread(last.reshape(count, groups, -1), turned)

    def _integers(self, unit: Unit) -> Array:
        key = weight_key(unit, per_channel=self.per_channel)
        chosen = self.numbers.weights.get(key)
        if chosen is not None:
            return chosen.integers
        weight = g.constant_array(unit.weight)
        assert weight is not None
        return quantize_weight(weight, weight_scales(self.numbers.magnitudes[key]), key[1])


def _spread(rows: Array, weights: Array) -> tuple[Array, Array]:
    """Lay groups side by side: weights are zero for the channels of other groups."""
    count, groups, width = rows.shape
    even = width + width % 2  # pairs do not cross from one group to the next
    wide = np.zeros((count, groups, even), rows.dtype)
    wide[:, :, :width] = rows
    outputs = len(weights)
    spread = np.zeros((outputs, groups, even), weights.dtype)
    spread[np.arange(outputs), np.arange(outputs) * groups // outputs, :width] = weights
    return wide.reshape(count, -1), spread.reshape(outputs, -1)


def _inputs(
    model: ir.Model, units: Sequence[Unit], feeds: Sequence[Arrays], context: Context
) -> Iterator[Mapping[str, Array]]:
    """Yield the inputs of layers for each feed."""
    names = list(dict.fromkeys(unit.inputs[0].name or "" for unit in units))
    for feed in feeds:
        made = [name for name in names if name not in feed]
        found = context.run(model, [feed], made)[0] if made else {}
        yield {name: np.asarray(found[name] if name in found else feed[name]) for name in names}


def portability_note(found: Mapping[Unit, float], *, narrowed: bool) -> tuple[str, ...]:
    """Say what processors without VNNI would do, and what was done about it."""
    if not found:
        return (
            ("no sum saturates on x86 processors without VNNI: results are the same there",)
            if narrowed
            else ()
        )
    worst = max(found, key=lambda unit: found[unit])
    layers = "1 layer" if len(found) == 1 else f"{len(found)} layers"
    shown = f"{layers} (most: {g.label(worst.node)}, {100 * found[worst]:.3g} % of its results)"
    if narrowed:
        return (f"7-bit weights in {shown}, whose sums would saturate without VNNI",)
    return (
        f"on older x86 processors, without VNNI instructions, sums saturate in {shown}: "
        "portable=true avoids that with 7-bit weights there",
    )
