"""Deciding which nodes compute in 16 bits."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from converter.core import graph as g
from converter.core.contract import Skip
from converter.ops.table import NEWEST
from passes.precision.operators import HALF, INDEXES, QUANTIZED, READERS, HalfOp, Role
from passes.precision.ranges import Ranges
from passes.precision.rounding import Format, Loss, loss
from passes.precision.types import NO_SLOTS, Slots, Types, constant_tensor
from passes.rewriting.purity import RANDOM

CAST_BYTES = 70
"""About what a Cast and the name and type of its result take in the file."""
Losses = dict[int, tuple[ir.TensorProtocol, Loss]]
"""What rounding does to tensors, by their identity; clones of a model share tensors."""
_UNSCHEMED = "ONNX does not define the operator, so nobody knows what it bears"
_INTEGERS = "it computes sizes or positions, which must stay exact"
_QUANTIZED = "it is part of a quantized region"


class Caution(enum.IntEnum):
    """How much is left in float32; each level keeps all that the one before keeps."""

    RANGES = 0
    """What the observed ranges forbid; without data what is known to be delicate."""
    DELICATE = 1
    """Everything delicate, whatever the data says."""
    WEIGHTED = 2
    """Everything but matrix products with constant weights, and what lies between them."""
    STORAGE = 3
    """All nodes: only weights are stored in 16 bits, and computation is in float32."""


@dataclass(frozen=True)
class Settings:
    """What the plan depends on beside model and data.

    Attributes:
        format: Of the result.
        touchable: Tells whether a node and its weights may be changed at all.
        kept: Tells whether a node must compute in float32 by the user's wish.
        caution: See :class:`Caution`.
    """

    format: Format
    touchable: Callable[[ir.Node], bool]
    kept: Callable[[ir.Node], bool]
    caution: Caution = Caution.RANGES


@dataclass
class Plan:
    """The decision.

    Attributes:
        types: Element types before the change.
        loss: What rounding does to a constant.
        slots: Float32 slots of the nodes to convert.
        reasons: Why other nodes that hold float32 stay.
        untouchable: Nodes whose constants must stay as they are, too.
    """

    types: Types
    loss: Callable[[ir.Value], Loss]
    slots: dict[ir.Node, Slots] = field(default_factory=dict)
    reasons: dict[ir.Node, str] = field(default_factory=dict)
    untouchable: frozenset[ir.Node] = frozenset()

    def results(self) -> list[ir.Value]:
        """Return the values that converted nodes give."""
        return [node.outputs[i] for node, slots in self.slots.items() for i in slots.outputs]

    def skips(self) -> Iterator[Skip]:
        """Yield every node that stays, with its reason."""
        for node, reason in self.reasons.items():
            yield Skip(g.label(node), reason)


class Planner:
    """Makes plans for one model; looks at each constant once.

    Args:
        model: Functions are left out: their bodies stay as they are.
        format_: The type to convert to.
        losses: Filled in here; hand it to the planner of a clone, and nothing is read twice.
    """

    def __init__(self, model: ir.Model, format_: Format, losses: Losses) -> None:
        self.types = Types(model)
        self.format = format_
        self.nodes = [n for n in scopes(model.graph) if not g.is_op(n, "Constant")]
        self._rows = {node: self._row(node) for node in self.nodes}
        self.slots = {node: self._slots(node) for node in self.nodes}
        self._losses = losses
        self._exact = self._exact_nodes()

    def values(self, main: ir.Graph) -> list[ir.Value]:
        """Return the float values of the main graph whose ranges matter."""
        found: dict[ir.Value, None] = {}
        for node, slots in self.slots.items():
            if not slots or (self._rows[node] is None and not g.is_op(node, "Cast")):
                continue
            for value in _values(node, slots):
                # a default that callers may override shows nothing of what they will give
                if value.graph is main and not value.is_initializer():
                    found[value] = None
        return [value for value in found if constant_tensor(value) is None]

    def plan(self, settings: Settings, ranges: Ranges) -> Plan:
        """Decide for every node."""
        plan = Plan(self.types, self.loss, untouchable=frozenset(self._exact))
        for node in self.nodes:
            slots = self.slots[node]
            if not slots or not settings.touchable(node):
                continue
            reason = self._refusal(node, slots, settings, ranges)
            if reason:
                plan.reasons[node] = reason
            else:
                plan.slots[node] = slots
        self._drop_islands(plan)
        return plan

    def loss(self, value: ir.Value) -> Loss:
        """Return what rounding does to a constant."""
        tensor = constant_tensor(value)
        assert tensor is not None
        found = self._losses.get(id(tensor))
        if found is None:  # the tensor is kept so that its id is not given to another
            found = self._losses[id(tensor)] = (tensor, loss(tensor, self.format))
        return found[1]

    def _row(self, node: ir.Node) -> HalfOp | None:
        return HALF.find(node.domain, node.op_type, self.types.version(node) or NEWEST)

    def _slots(self, node: ir.Node) -> Slots:
        if node.op_type in READERS and node.domain in g.DEFAULT_DOMAINS:
            makes = g.is_op(node, "Cast") and self.types.is_float(node.outputs[0])
            return Slots((), (0,), frozenset()) if makes else NO_SLOTS
        row = self._rows[node]
        slots = self.types.slots(node, row.fixed if row else ())
        if g.is_op(node, "ConstantOfShape") and self.types.is_float(node.outputs[0]):
            return Slots((), (0,), frozenset())
        return slots

    def _refusal(self, node: ir.Node, slots: Slots, settings: Settings, ranges: Ranges) -> str:
        if settings.kept(node):
            return "it was to be kept"
        if node in self._exact:
            return self._exact[node]
        if settings.caution >= Caution.STORAGE:
            return "the results would differ too much"
        if g.is_op(node, "Cast"):
            return self._cast_refusal(node, ranges)
        row = self._rows[node]
        if row is None:
            return f"nothing is known of {node.op_type} in 16 bits"
        return (
            row.never
            or row.obstacle(node)
            or self._kernel_refusal(node, row, slots, settings)
            or self._caution_refusal(node, row, slots, settings)
            or self._constant_refusal(node, row, slots)
            or self._range_refusal(node, row, slots, ranges)
        )

    def _cast_refusal(self, node: ir.Node, ranges: Ranges) -> str:
        source = self.types.of(node.inputs[0])
        if source is None:
            return "the type of its input is not known"
        if source is not ir.DataType.BOOL and source.is_integer():
            return ranges.whole_flaw(node.outputs[0])
        if source is ir.DataType.FLOAT16 or source is ir.DataType.BFLOAT16:
            return "the model widens 16 bits to float32 here"
        return ranges.flaw(node.outputs[0])

    def _kernel_refusal(self, node: ir.Node, row: HalfOp, slots: Slots, settings: Settings) -> str:
        signature = self.types.signature(node)
        name = self.format.dtype.name.lower()
        if signature is None:
            return _UNSCHEMED
        if not all(signature.allows(v, self.format.dtype) for v in slots.variables):
            return f"{node.op_type} takes no {name} at opset {self.types.version(node)}"
        if self.format.dtype is ir.DataType.BFLOAT16 and not row.cpu_bfloat16:
            return "onnxruntime has no CPU kernel for bfloat16"
        return ""

    def _caution_refusal(self, node: ir.Node, row: HalfOp, slots: Slots, settings: Settings) -> str:
        if settings.caution >= Caution.DELICATE and row.blind:
            return "the results would differ too much"
        if settings.caution >= Caution.WEIGHTED and row.role is not Role.MOVE:
            weighted = any(constant_tensor(node.inputs[i]) is not None for i in slots.inputs)
            if row.role is not Role.HEAVY or not weighted:
                return "the results would differ too much"
        return ""

    def _constant_refusal(self, node: ir.Node, row: HalfOp, slots: Slots) -> str:
        for index in slots.inputs:
            value = node.inputs[index]
            if value is None or constant_tensor(value) is None:
                continue
            found = self.loss(value)
            reason = found.reason(self.format, elements=index in row.small)
            if index not in row.saturates:
                reason = reason or found.overflow_reason(self.format)
            if reason:
                return reason
        return ""

    def _range_refusal(self, node: ir.Node, row: HalfOp, slots: Slots, ranges: Ranges) -> str:
        blind = False
        for value in _values(node, slots):
            if constant_tensor(value) is not None:
                continue
            blind = blind or not ranges.known(value)
            reason = ranges.flaw(value)
            if reason:
                return reason
            producer = value.producer()
            if g.is_op(producer, "Cast") and producer is not None:
                reason = self._cast_refusal(producer, ranges)
                if reason and self.types.of(producer.inputs[0]) not in _HALVES:
                    return reason
        if blind and row.blind:
            return row.blind
        return ranges.node_flaw(node, row)

    def _exact_nodes(self) -> dict[ir.Node, str]:
        """Find nodes that stay whatever the ranges: random, quantized, and what sizes come from."""
        found: dict[ir.Node, str] = {}
        front: list[ir.Value] = []
        for node in self.nodes:
            domain = node.domain in g.DEFAULT_DOMAINS
            if domain and node.op_type in RANDOM and self.slots[node]:
                found[node] = "it makes random numbers"
            if self.slots[node] and _touches_integers(node):
                found[node] = _QUANTIZED
            if domain and node.op_type in INDEXES:
                indexes = INDEXES[node.op_type]
                front += [v for i, v in enumerate(node.inputs) if v is not None and i in indexes]
            if g.is_op(node, "Cast") and self._to_integer(node) and node.inputs[0] is not None:
                front.append(node.inputs[0])
        self._trace_back(front, found)
        return found

    def _to_integer(self, node: ir.Node) -> bool:
        target = self.types.of(node.outputs[0])
        return target is not None and target.is_integer() and target is not ir.DataType.BOOL

    def _trace_back(self, front: list[ir.Value], found: dict[ir.Node, str]) -> None:
        """Mark what computes the values, up to the first matrix product or delicate operator."""
        seen: set[ir.Node] = set()
        while front:
            node = front.pop().producer()
            if node is None or node in seen or not self.slots.get(node):
                continue
            seen.add(node)
            row = self._rows[node]
            if row is not None and row.role is Role.HEAVY:
                continue
            found.setdefault(node, _INTEGERS)
            front += [v for v in node.inputs if v is not None and self.types.is_float(v)]

    def _drop_islands(self, plan: Plan) -> None:
        """Keep in float32 what neither multiplies matrices nor saves what its casts would cost."""
        for island in _islands(plan.slots):
            rows = [self._rows[node] for node in island]
            if any(row is not None and row.role is Role.HEAVY for row in rows):
                continue
            saved = sum(self._saved(node, plan.slots[node]) for node in island)
            if saved <= CAST_BYTES * _borders(island, plan.slots):
                for node in island:
                    del plan.slots[node]
                    plan.reasons[node] = "casts around it would cost more than it saves"

    def _saved(self, node: ir.Node, slots: Slots) -> int:
        tensors = [constant_tensor(node.inputs[i]) for i in slots.inputs]
        return sum(t.nbytes // 2 for t in tensors if t is not None)


_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def scopes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the nodes of the graph and of the bodies inside."""
    for node in graph:
        yield node
        for body in g.subgraphs(node):
            yield from scopes(body)


def _values(node: ir.Node, slots: Slots) -> Iterator[ir.Value]:
    for index in slots.inputs:
        value = node.inputs[index]
        if value is not None:
            yield value
    for index in slots.outputs:
        if node.outputs[index].name or node.outputs[index].uses():
            yield node.outputs[index]


def _touches_integers(node: ir.Node) -> bool:
    if g.is_op(node, *QUANTIZED):
        return True
    makers = (v.producer() for v in node.inputs if v is not None)
    return any(g.is_op(maker, *QUANTIZED) for maker in makers) or any(
        g.is_op(user, *QUANTIZED) for output in node.outputs for user in output.consumers()
    )


def _islands(slots: dict[ir.Node, Slots]) -> list[list[ir.Node]]:
    """Group nodes that hand each other values in 16 bits."""
    groups: list[list[ir.Node]] = []
    seen: set[ir.Node] = set()
    for start in slots:
        if start in seen:
            continue
        seen.add(start)
        group, front = [], [start]
        while front:
            node = front.pop()
            group.append(node)
            for other in _neighbours(node, slots):
                if other not in seen:
                    seen.add(other)
                    front.append(other)
        groups.append(group)
    return groups


def _neighbours(node: ir.Node, slots: dict[ir.Node, Slots]) -> Iterator[ir.Node]:
    for index in slots[node].inputs:
        value = node.inputs[index]
        maker = value.producer() if value is not None else None
        if maker is not None and maker in slots and value in _outputs(maker, slots):
            yield maker
    for value in _outputs(node, slots):
        for use in value.uses():
            if use.node in slots and use.idx in slots[use.node].inputs:
                yield use.node


def _outputs(node: ir.Node, slots: dict[ir.Node, Slots]) -> list[ir.Value]:
    return [node.outputs[i] for i in slots[node].outputs]


def _borders(island: list[ir.Node], slots: dict[ir.Node, Slots]) -> int:
    """Count the casts around an island."""
    inside = set(island)
    read = {node.inputs[i] for node in island for i in slots[node].inputs}
    entering = [
        value
        for value in read
        if value is not None and constant_tensor(value) is None and value.producer() not in inside
    ]
    leaving = {
        value
        for node in island
        for value in _outputs(node, slots)
        if value.is_graph_output() or any(use.node not in inside for use in value.uses())
    }
    return len(entering) + len(leaving)
