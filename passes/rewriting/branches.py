"""Control flow that is decided in advance: the chosen branch of an If, a Loop that never runs."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from converter.core import graph as edit
from converter.core.graph import constant, subgraphs
from passes.rewriting import sizes
from passes.rewriting.rename import renamed
from passes.rewriting.rule import Applied, Result, Rule
from passes.rewriting.work import Work

_NO_SCALAR = "Range reads a value that is no scalar, which onnxruntime would see then"
_BIGGER = "the chosen branch would make the file bigger"
_SCANS = "the Loop never runs, but outputs that it collects are used"
_IDENTITY_BYTES = 24
_SUFFIX_BYTES = 4


def choose_branch(node: ir.Node, work: Work) -> Result:
    """If with a constant condition: the nodes of the chosen branch take its place."""
    chosen = _truth(node.inputs[0] if node.inputs else None)
    if chosen is None:
        return None
    attributes = [node.attributes.get(name) for name in ("else_branch", "then_branch")]
    if any(a is None or a.is_ref() or a.type != ir.AttributeType.GRAPH for a in attributes):
        return None
    other, branch = (a.as_graph() for a in attributes if a is not None)
    if not chosen:
        other, branch = branch, other
    if len(branch.outputs) != len(node.outputs):
        return None
    pairs = zip(node.outputs, branch.outputs, strict=True)
    if any(_unfit_for_range(output, inner, work) for output, inner in pairs):
        return _NO_SCALAR
    lift = _Lift(node, branch, work)
    growth = lift.cost() - sizes.node_bytes(node) - _graph_bytes(other)
    if growth > 0 and not work.affords(growth):
        return _BIGGER
    moved = lift.apply()
    work.saved -= growth + sizes.node_bytes(node)  # discarding counts the node itself
    work.discard(node)
    return Applied(tuple(moved))


def skip_loop(node: ir.Node, work: Work) -> Result:
    """Loop that never runs: its outputs are the initial values."""
    trip = constant(node.inputs[0]) if node.inputs else None
    never = trip is not None and trip.size == 1 and int(trip.numpy().reshape(-1)[0]) <= 0
    if not never and _truth(node.inputs[1] if len(node.inputs) > 1 else None) is not False:
        return None
    initial = node.inputs[2:]
    if any(value is None for value in initial) or len(initial) > len(node.outputs):
        return None
    if any(_wanted(output) for output in node.outputs[len(initial) :]):
        return _SCANS
    for output, value in zip(node.outputs, initial, strict=False):
        if value is not None and _wanted(output):
            _adopt(work, node, output, value)
    work.discard(node)
    return Applied()


def _unfit_for_range(output: ir.Value, inner: ir.Value, work: Work) -> bool:
    """Tell whether Range reads a vector here; onnxruntime allows it where it cannot see it."""
    dims = work.facts.of(inner).dims
    return bool(dims) and any(use.node.op_type == "Range" for use in output.uses())


def _truth(value: ir.Value | None) -> bool | None:
    """Return a constant truth value, or None."""
    tensor = constant(value)
    if tensor is None or tensor.size != 1 or tensor.dtype != ir.DataType.BOOL:
        return None
    return bool(tensor.numpy().reshape(-1)[0])


def _wanted(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _adopt(work: Work, before: ir.Node, old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` take the place of ``old``, through an Identity where names stand in the way."""
    if work.redirect(old, new):
        return
    name = old.name
    copy = ir.Value(name=name, type=old.type, shape=old.shape)
    node = ir.Node("", "Identity", [new], outputs=[copy])
    work.home(before).insert_before(before, node)
    users = old.consumers()
    assert edit.redirect(old, copy)
    old.name, copy.name = work.names.fresh(name or "replaced"), name
    work.visit([node, *users])
    work.edits += 1


def _graph_bytes(graph: ir.Graph) -> int:
    """Return at most the bytes that go away with a graph."""
    size = sum(
        sizes.constant_bytes(v.const_value, v.name)
        for v in graph.initializers.values()
        if v.const_value is not None
    )
    for node in graph:
        size += sizes.node_bytes(node) + sum(_graph_bytes(inner) for inner in subgraphs(node))
    return size


@dataclass
class _Lift:
    """Moves everything out of one branch of an If to the graph that the If is in."""

    node: ir.Node
    branch: ir.Graph
    work: Work

    def cost(self) -> int:
        """Return at least the bytes that the move adds to the file."""
        size = 0
        if self.work.wants_nodes(self.node):
            size += sizes.CONSTANT_NODE_BYTES * len(self.branch.initializers)
        for value in self._values():
            if value.name in self.work.shadowed:
                size += _SUFFIX_BYTES * (1 + len(value.uses()))
        own = set(self._made())
        for old, new in zip(self.node.outputs, self.branch.outputs, strict=True):
            longer = len(old.name or "") - len(new.name or "")
            if new not in own and _wanted(old):
                size += _IDENTITY_BYTES + len(old.name or "") + len(new.name or "")
            elif old.is_graph_output() and longer > 0:
                size += longer * (1 + len(new.uses()))
            elif longer < 0:
                size -= longer * len(old.uses())
            own.discard(new)
        return size

    def apply(self) -> list[ir.Node]:
        """Move the nodes and constants; the outputs of the If are then those of the branch."""
        outputs = list(self.branch.outputs)
        self.branch.outputs.clear()
        for value in list(self._values()):
            self._rename(value)
        constants = self._move_initializers()
        moved = [node for node in self.branch if self.work.alive(node)]
        self.branch.remove(moved)
        self.work.home(self.node).insert_before(self.node, moved)
        for old, new in zip(self.node.outputs, outputs, strict=True):
            value = constants.get(new, new)
            if _wanted(old) and value is not None:
                _adopt(self.work, self.node, old, value)
        return moved

    def _made(self) -> list[ir.Value]:
        return [o for node in self.branch if self.work.alive(node) for o in node.outputs]

    def _values(self) -> list[ir.Value]:
        return [*self._made(), *self.branch.initializers.values()]

    def _rename(self, value: ir.Value) -> None:
        """A name that another graph has too may not be that of a value around it."""
        if value.name not in self.work.shadowed:
            return
        name = self.work.names.fresh(value.name or "value")
        if value.const_value is not None:  # models share tensors, and with them the name
            value.const_value = renamed(value.const_value, name)
        value.name = name

    def _move_initializers(self) -> dict[ir.Value, ir.Value]:
        """Make the constants of the branch part of the graph around it."""
        home, as_nodes = self.work.home(self.node), self.work.wants_nodes(self.node)
        replaced: dict[ir.Value, ir.Value] = {}
        for name, value in list(self.branch.initializers.items()):
            del self.branch.initializers[name]
            if not as_nodes:
                home.register_initializer(value)
                continue
            tensor = value.const_value
            assert tensor is not None
            twin = ir.Value(name=name, type=value.type, shape=value.shape)
            attributes = [ir.AttrTensor("value", tensor)]
            made = ir.Node("", "Constant", [], attributes, outputs=[twin])
            home.insert_before(self.node, made)
            value.replace_all_uses_with(twin)
            replaced[value] = twin
        return replaced


RULES = (
    Rule("branches_chosen", ("If",), choose_branch),
    Rule("loops_skipped", ("Loop",), skip_loop),
)
"""Rules about control flow; each keeps every output bit for bit.

Graphs disappear with them: ``Work.scopes`` is to be made anew after a sweep in which one fired.
"""
