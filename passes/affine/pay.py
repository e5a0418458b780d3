"""Which of the planned nodes pay: integers against float with the conversions between them.

Each node is on one of two sides. A node costs its time on its side, and a value that crosses from
one side to the other costs a QuantizeLinear or DequantizeLinear of its size and, beside
convolutions, a change of layout. The cheapest division is a minimum cut of a network with one node
per operator, solved exactly. See :mod:`converter.ops.integer_cost` for where times come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.core import graph as g
from converter.ops.integer_cost import cost
from converter.ops.quantizable import Role
from passes.affine.cut import UNBOUNDED, Network
from passes.affine.operator_costs import Costs, costs
from passes.affine.placement import Placement, Unit
from passes.affine.sizes import Shapes, shapes_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context

_PREFERENCE = 1.10
"""The estimate is good to about 10 %; within that, integers are chosen: they are smaller too."""
_WORTH = 0.98
_CONVOLVES = ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize")


@dataclass(frozen=True)
class Island:
    """Units that hand integers to each other.

    Attributes:
        units: In the order of the graph.
        real: Estimated nanoseconds in float.
        integer: Estimated nanoseconds on integers, with the conversions at the borders.
    """

    units: tuple[Unit, ...]
    real: float
    integer: float

    @property
    def pays(self) -> bool:
        """Integers are faster, all in all."""
        return self.integer < self.real * _WORTH

    @property
    def reason(self) -> str:
        """Why it stays in float, when it does not pay."""
        return (
            f"does not pay: estimated {self.integer / 1e3:.1f} us on integers with the "
            f"conversions around it, {self.real / 1e3:.1f} us in float"
        )


class Estimate:
    """Costs of a placement for one sample.

    Args:
        plan: The placement.
        shapes: Shapes of its values.
    """

    def __init__(self, plan: Placement, shapes: Shapes) -> None:
        self.units = plan.units
        self.shapes = shapes
        self.costs: dict[Unit, Costs | None] = {u: costs(u, shapes) for u in plan.units}
        self.maker = {v: u for u in plan.units if u.integer_output for v in u.outputs}
        self.readers: dict[ir.Value, list[Unit]] = {}
        for unit in plan.units:
            for value in dict.fromkeys(unit.inputs):
                self.readers.setdefault(value, []).append(unit)
        self._inside = {n for u in plan.units for n in (u.node, *u.absorbed)}
        self._inside |= {u.bias_use[0] for u in plan.units if u.bias_use is not None}

    def declined(self) -> dict[ir.Node, str]:
        """Return the nodes that are faster in float, with the reason.

        A group of nodes that pays as a whole keeps all its weighted nodes, which make the file
        smaller too; only where it does not is it divided further.
        """
        found: dict[ir.Node, str] = {}
        kept = self._cheapest(self.units, pinned=True)
        for island in self.islands(kept):
            if island.pays:
                continue
            part = self._cheapest(island.units, pinned=False)
            kept.difference_update(u for u in island.units if u not in part)
            for rest in self.islands(part):
                if not rest.pays:
                    kept.difference_update(rest.units)
                    found.update((unit.node, rest.reason) for unit in rest.units)
            whole = island.reason
            found.update((u.node, whole) for u in island.units if u not in part)
        found.update((u.node, _ALONE) for u in self.units if u not in kept and u.node not in found)
        return found

    def islands(self, kept: Iterable[Unit] | None = None) -> Iterator[Island]:
        """Yield the connected groups of units, in the order of the graph."""
        wanted = None if kept is None else set(kept)
        units = [u for u in self.units if wanted is None or u in wanted]
        chosen, root = set(units), {u: u for u in units}

        def find(unit: Unit) -> Unit:
            while root[unit] is not unit:
                root[unit] = root[root[unit]]
                unit = root[unit]
            return unit

        for unit in units:
            for value in unit.inputs:
                other = self.maker.get(value)
                if other in chosen and other is not None:
                    root[find(unit)] = find(other)
        groups: dict[Unit, list[Unit]] = {}
        for unit in units:
            groups.setdefault(find(unit), []).append(unit)
        for group in groups.values():
            real, integer = self._sums(group)
            yield Island(tuple(group), real, integer)

    def _sums(self, group: list[Unit]) -> tuple[float, float]:
        known = [c for c in map(self.costs.get, group) if c is not None]
        if len(known) < len(group):
            return math.inf, 0.0  # of unknown size: placed by the rules alone
        inside = set(group)
        values = dict.fromkeys(v for u in group for v in (*u.inputs, *u.outputs))
        borders = 0.0
        for value in values:
            inner = self.maker.get(value) in inside
            if not inner and any(r in inside for r in self.readers.get(value, ())):
                borders += self._entry(value)
            if inner and (self._read_in_float(value) or not inside.issuperset(self._users(value))):
                borders += self._exit(value)
        return sum(c.real for c in known), sum(c.integer for c in known) + borders

    def _users(self, value: ir.Value) -> list[Unit]:
        return self.readers.get(value, [])

    def _cheapest(self, units: Iterable[Unit], *, pinned: bool) -> set[Unit]:
        """Return the units to run on integers; all others are in float.

        Args:
            units: To divide.
            pinned: Weighted nodes run on integers whatever they cost.
        """
        network = Network()
        number = {unit: network.add() for unit in units}
        for unit, place in number.items():
            found = self.costs[unit]
            real, integer = (UNBOUNDED, 0) if found is None else (found.real, found.integer)
            if pinned and unit.row.role is Role.WEIGHTED:
                real = UNBOUNDED
            network.join(Network.SOURCE, place, round(real * _PREFERENCE))
            network.join(place, Network.SINK, round(integer))
        for value in dict.fromkeys(v for u in number for v in (*u.inputs, *u.outputs)):
            self._join(network, number, value)
        kept = network.kept()
        return {unit for unit, place in number.items() if place in kept}

    def _join(self, network: Network, number: dict[Unit, int], value: ir.Value) -> None:
        """Charge the conversions of one value."""
        made, users = self.maker.get(value), self._users(value)
        readers = [number[unit] for unit in users if unit in number]
        entry = network.add()
        for reader in readers:
            network.join(reader, entry, UNBOUNDED)
        maker = None if made is None else number.get(made)
        source = Network.SINK if maker is None else maker
        network.join(entry, source, round(self._entry(value)))
        if maker is None:
            return
        out = network.add()
        network.join(maker, out, round(self._exit(value)))
        for reader in readers:
            network.join(out, reader, UNBOUNDED)
        if self._read_in_float(value) or len(readers) < len(users):
            network.join(out, Network.SINK, UNBOUNDED)

    def _read_in_float(self, value: ir.Value) -> bool:
        return value.is_graph_output() or any(n not in self._inside for n in value.consumers())

    def _entry(self, value: ir.Value) -> float:
        return cost("integer:QuantizeLinear", self._elements(value)) + self._layout(value)

    def _exit(self, value: ir.Value) -> float:
        maker = self.maker.get(value)
        if maker is not None and maker.float_output:
            return 0.0  # the integer operator gives float by itself
        return cost("integer:DequantizeLinear", self._elements(value)) + self._layout(value)

    def _elements(self, value: ir.Value) -> dict[str, float]:
        shape = self.shapes.get(value.name or "")
        return {"node": 1, "element": 0 if shape is None else math.prod(shape)}

    def _layout(self, value: ir.Value) -> float:
        """Return what changing between both layouts of channels costs beside a convolution."""
        shape = self.shapes.get(value.name or "")
        if shape is None or len(shape) != 4 or shape[1] == 1 or shape[2] * shape[3] == 1:
            return 0.0
        around = [value.producer(), *value.consumers()]
        if not any(g.is_op(node, *_CONVOLVES) for node in around):
            return 0.0
        elements = self._elements(value)
        border = value.is_graph_input() or value.is_graph_output()
        inner = 0.0 if border else cost("float:layout", elements)
        return inner + (0.0 if border else cost("integer:layout", elements))


def what_pays(
    context: Context, model: ir.Model, place: Callable[[Mapping[ir.Node, str]], Placement]
) -> dict[ir.Node, str]:
    """Return the nodes that had better stay in float, with the reason for each.

    Args:
        context: Gives the sample whose shapes decide.
        model: Left as it is.
        place: Plans the model without the nodes that it is given.
    """
    found: dict[ir.Node, str] = {}
    plan = place(found)
    values = [v for u in plan.units for v in (*u.inputs, *u.outputs, u.node.outputs[0])]
    shapes = shapes_of(model, values, context)
    while True:
        more = Estimate(plan, shapes).declined()
        # What follows a node in float may be planned differently, so plan again.
        if not any(node not in found for node in more):
            return found
        found = more | found
        plan = place(found)


def slower_note(declined: Mapping[ir.Node, str]) -> tuple[str, ...]:
    """Say what was left in float for its speed, and what to do about the size of the file."""
    layers = sum(1 for node in declined if g.is_op(node, "Conv", "Gemm", "MatMul"))
    if not layers:
        return ()
    stay, them = ("layer stays", "it") if layers == 1 else ("layers stay", "them")
    return (
        f"{layers} {stay} in float, which is estimated to be faster; speed=max quantizes {them} "
        "all the same, and quantize_weights makes the file smaller at float speed",
    )


_ALONE = "does not pay: float is faster here than integers and the conversions around them"
