"""Carrying out a plan: one cast per value and direction, constants rounded where they lie."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import onnx_ir as ir

from converter.core import graph as g
from converter.core.contract import Skip
from passes.precision.operators import QUANTIZED, READERS
from passes.precision.plan import Plan, scopes
from passes.precision.ranges import Ranges
from passes.precision.rounding import Format, rounded
from passes.precision.types import FLOAT, constant_tensor, set_constant_tensor

STORE_BYTES = 1024
"""Constants from this size on are stored in 16 bits even where they are computed with in 32."""
Place = tuple[ir.Node, int]


@dataclass
class Edited:
    """What was done.

    Attributes:
        counts: Figures for the report.
        skipped: Constants and ports that stay, with the reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    skipped: list[Skip] = field(default_factory=list)


class Editor:
    """Changes one model as planned.

    Args:
        model: Edited in place.
        plan: Made for this very model.
        format_: The type to convert to.
    """

    def __init__(self, model: ir.Model, plan: Plan, format_: Format) -> None:
        self.model = model
        self.plan = plan
        self.format = format_
        self.done = Edited()
        self._names = g.Names(model)
        self._suffix = format_.dtype.name.lower()
        self._half_places = {
            (node, index) for node, slots in plan.slots.items() for index in slots.inputs
        }
        self._half_values = {
            node.outputs[index]: None
            for node, slots in plan.slots.items()
            for index in slots.outputs
        }
        self._outputs: dict[ir.Value, list[tuple[ir.Graph, int]]] = {}
        for graph in [model.graph, *(b for n in scopes(model.graph) for b in g.subgraphs(n))]:
            for position, value in enumerate(graph.outputs):
                self._outputs.setdefault(value, []).append((graph, position))

    def edit(self) -> Edited:
        """Change constants, then the values between nodes."""
        read = self._read_values()
        for value in [v for v in read if constant_tensor(v) is not None]:
            self._constant(value)
        for node in self.plan.slots:
            self._retarget(node)
        for value in [v for v in read if constant_tensor(v) is None]:
            if value not in self._half_values:
                self._cast_down(value)
        for value in self._half_values:
            self._narrow(value)
        self.done.counts["nodes_converted"] = len(self.plan.slots)
        return self.done

    def convert_ports(self, ranges: Ranges) -> None:
        """Give float32 inputs and outputs of the main graph the new type, where ranges allow it."""
        graph = self.model.graph
        for value in graph.inputs:
            if not _is_float(value):
                continue
            flaw = g.OVERRIDABLE if value.is_initializer() else ranges.flaw(value)
            if flaw:
                self.done.skipped.append(Skip(value.name or "", flaw))
            else:
                self._convert_input(value)
        for position, value in enumerate(graph.outputs):
            if not _is_float(value):
                continue
            constant = constant_tensor(value) is not None or value.is_graph_input()
            flaw = "it is a constant or an input" if constant else ranges.flaw(value)
            if flaw:
                self.done.skipped.append(Skip(value.name or "", flaw))
            else:
                self._convert_output(graph, position, value)

    # --- constants -------------------------------------------------------------------------------

    def _read_values(self) -> list[ir.Value]:
        found: dict[ir.Value, None] = {}
        for node in scopes(self.model.graph):
            for value in node.inputs:
                if value is not None and self.plan.types.is_float(value):
                    found[value] = None
        return list(found)

    def _constant(self, value: ir.Value) -> None:
        uses = [(use.node, use.idx) for use in value.uses()]
        half = [place for place in uses if place in self._half_places]
        rest = [place for place in uses if place not in self._half_places]
        tensor = constant_tensor(value)
        assert tensor is not None
        if half and not rest and not value.is_graph_output():
            self._round(value, tensor)
        elif half and not self._stores(value, tensor, rest):
            self._duplicate(value, tensor, half)
        elif self._stores(value, tensor, rest):
            self._round(value, tensor)
            self._widen(value, rest)
            self.done.counts["weights_stored"] += not half

    def _stores(self, value: ir.Value, tensor: ir.TensorProtocol, rest: list[Place]) -> bool:
        """Tell whether a constant may be held in 16 bits for nodes that compute in 32."""
        if tensor.nbytes < STORE_BYTES or value.is_graph_output():
            return False
        if not all(self._takes_rounded(node) for node, _ in rest):
            return False
        loss = self.plan.loss(value)
        reason = loss.overflow_reason(self.format) or loss.reason(self.format)
        if reason:
            self.done.skipped.append(Skip(value.name or "", reason))
        return not reason

    def _takes_rounded(self, node: ir.Node) -> bool:
        """Tell whether a node that stays may be given rounded weights."""
        if g.is_op(node, *QUANTIZED, *READERS) or node.graph is None:
            return False
        return node in self.plan.reasons and node not in self.plan.untouchable

    def _round(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        set_constant_tensor(value, rounded(tensor, self.format))
        self.done.counts["weights_rounded"] += 1

    def _duplicate(self, value: ir.Value, tensor: ir.TensorProtocol, places: list[Place]) -> None:
        """Give 16-bit users a small constant of their own; the others keep theirs, unrounded."""
        graph = value.graph if isinstance(value.graph, ir.Graph) else self.model.graph
        name = self._names.fresh(f"{value.name}_{self._suffix}")
        new = g.add_initializer(graph, name, rounded(tensor, self.format))
        _feed(places, new)
        self.done.counts["weights_rounded"] += 1

    # --- values between nodes --------------------------------------------------------------------

    def _retarget(self, node: ir.Node) -> None:
        """Change the type that an attribute of the node names."""
        if g.is_op(node, "Cast"):
            node.attributes["to"] = ir.AttrInt64("to", self.format.dtype.value)
        elif g.is_op(node, "ConstantOfShape"):
            attribute = node.attributes.get("value")
            zero = ir.tensor([0.0], dtype=FLOAT, name="value")
            old = zero if attribute is None else attribute.as_tensor()
            node.attributes["value"] = ir.AttrTensor("value", rounded(old, self.format))

    def _cast_down(self, value: ir.Value) -> None:
        """Give the 16-bit users of a float32 value one cast of it."""
        places = [(u.node, u.idx) for u in value.uses() if (u.node, u.idx) in self._half_places]
        if not places:
            return
        source = self._narrow_source(value)
        _feed(places, source or self._cast(value, self.format.dtype, self._suffix))

    def _narrow_source(self, value: ir.Value) -> ir.Value | None:
        """Return what was widened to this value, if that has the wanted type already."""
        producer = value.producer()
        if producer is None or not g.is_op(producer, "Cast"):
            return None
        source = producer.inputs[0]
        return source if self.plan.types.of(source) is self.format.dtype else None

    def _narrow(self, value: ir.Value) -> None:
        """Let a node give a value in 16 bits, and cast it back for those who want 32."""
        uses = [(use.node, use.idx) for use in value.uses()]
        wide = [
            (node, index)
            for node, index in uses
            if (node, index) not in self._half_places and not g.is_op(node, *READERS)
        ]
        outputs = self._outputs.get(value, [])
        if outputs:
            self._restore_output(value, outputs, wide)
            wide = []
        value.type = ir.TensorType(self.format.dtype)
        if wide:
            self._widen(value, wide)
        self._drop_same_casts(value)

    def _restore_output(
        self, value: ir.Value, outputs: list[tuple[ir.Graph, int]], wide: list[Place]
    ) -> None:
        """Make the graph output of a value that becomes 16 bits by a cast; it keeps its name."""
        name, kind = value.name, value.type or ir.TensorType(FLOAT)
        value.name = self._names.fresh(f"{name}_{self._suffix}")
        public = self._cast(value, FLOAT, name or "", full_name=True)
        public.type, public.shape = kind, value.shape
        public.doc_string, value.doc_string = value.doc_string, None
        public.metadata_props.update(value.metadata_props)
        public.meta.update(value.meta)
        value.metadata_props.clear()
        value.meta.clear()
        for graph, position in outputs:
            graph.outputs[position] = public
        self._outputs[public] = self._outputs.pop(value)
        _feed(wide, public)

    def _drop_same_casts(self, value: ir.Value) -> None:
        """Remove casts of the model's own to the type that the value now has."""
        for use in list(value.uses()):
            node = use.node
            if not g.is_op(node, "Cast") or node.outputs[0].is_graph_output():
                continue
            if self.plan.types.of(node.outputs[0]) is self.format.dtype:
                node.outputs[0].replace_all_uses_with(value)
                assert node.graph is not None
                node.graph.remove(node, safe=True)

    def _widen(self, value: ir.Value, places: list[Place]) -> None:
        _feed(places, self._cast(value, FLOAT, "float32"))

    def _cast(
        self, value: ir.Value, dtype: ir.DataType, suffix: str, *, full_name: bool = False
    ) -> ir.Value:
        """Insert a cast right behind where the value comes from and return its result."""
        name = suffix if full_name else self._names.fresh(f"{value.name}_{suffix}")
        result = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
        node = ir.Node(
            "", "Cast", [value], [ir.AttrInt64("to", dtype.value)], outputs=[result], name=""
        )
        _insert(value, node, self.model.graph)
        self.done.counts["casts_inserted"] += 1
        return result

    # --- ports -----------------------------------------------------------------------------------

    def _convert_input(self, value: ir.Value) -> None:
        """Make an input 16 bits; casts of it to that type go, the other users get one back."""
        casts = [u.node for u in value.uses() if g.is_op(u.node, "Cast") and self._is_ours(u.node)]
        wide = [
            (use.node, use.idx)
            for use in value.uses()
            if use.node not in casts and not g.is_op(use.node, *READERS)
        ]
        value.type = ir.TensorType(self.format.dtype)
        for node in casts:
            node.outputs[0].replace_all_uses_with(value)
            assert node.graph is not None
            node.graph.remove(node, safe=True)
            self.done.counts["casts_inserted"] -= 1
        if wide:
            self._widen(value, wide)
        self.done.counts["ports_converted"] += 1

    def _is_ours(self, node: ir.Node) -> bool:
        return node.outputs[0].dtype is self.format.dtype and not node.outputs[0].is_graph_output()

    def _convert_output(self, graph: ir.Graph, position: int, value: ir.Value) -> None:
        """Make an output 16 bits: the cast back goes, or a cast is added."""
        producer = value.producer()
        if producer is None:
            return
        if g.is_op(producer, "Cast"):
            producer.attributes["to"] = ir.AttrInt64("to", self.format.dtype.value)
            value.type = ir.TensorType(self.format.dtype)
            self._rejoin(graph, producer, value)
        else:
            name = value.name
            value.name = self._names.fresh(f"{name}_float32")
            public = self._cast(value, self.format.dtype, name or "", full_name=True)
            public.metadata_props.update(value.metadata_props)
            public.doc_string, value.doc_string = value.doc_string, None
            value.metadata_props.clear()
            for place, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[place] = public
        self.done.counts["ports_converted"] += 1

    def _rejoin(self, graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
        """Remove a cast from 16 bits to 16 bits before an output; the output keeps its name."""
        source = node.inputs[0]
        assert source is not None
        rest = [(u.node, u.idx) for u in value.uses()]
        if rest:  # other users of the output want float32
            _feed(rest, source)
            self._widen(source, rest)
        if source.dtype is not self.format.dtype or constant_tensor(source) is not None:
            return
        if source.is_graph_input() or source.is_graph_output() or source.graph is not graph:
            return
        g.redirect(value, source)
        graph.remove(node, safe=True)
        self.done.counts["casts_inserted"] -= 1


def _is_float(value: ir.Value) -> bool:
    """Tell whether a port is a float32 tensor, not a sequence of them."""
    return isinstance(value.type, ir.TensorType) and value.dtype is FLOAT


def _feed(places: list[Place], value: ir.Value) -> None:
    for node, index in places:
        node.replace_input_with(index, value)


def _insert(value: ir.Value, node: ir.Node, main: ir.Graph) -> None:
    producer = value.producer()
    graph = value.graph if isinstance(value.graph, ir.Graph) else main
    if producer is not None and producer.graph is not None:
        producer.graph.insert_after(producer, node)
    elif len(graph):
        graph.insert_before(graph[0], node)
    else:
        graph.append(node)
