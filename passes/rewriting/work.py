"""The state of one clean-up run and the worklist that applies rules until none fires.

Every edit costs time in proportion to what it touches, so a run is linear in the size of the model.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converter.core import graph as edit
from converter.core.contract import Outcome
from converter.core.graph import DEFAULT_DOMAINS, constant, label, subgraphs
from converter.core.select import Selection
from passes.rewriting import rename, sizes
from passes.rewriting.facts import Facts
from passes.rewriting.journal import Journal
from passes.rewriting.purity import is_pure
from passes.rewriting.rule import Applied, Rule
from passes.rewriting.scopes import Scope, scopes_of
from passes.rewriting.shapes import answer

if TYPE_CHECKING:
    from converter.core.context import Context

Array = np.ndarray[Any, Any]
_FIRST_IR_WITH_FREE_INITIALIZERS = 4
_CREDIT_BYTES = 1024


@dataclass
class Work:
    """A model under rewriting.

    Attributes:
        model: Edited in place, through the methods of this class.
        context: Limits and services.
        selection: Nodes that may be changed or removed.
        saved: Bytes that the edits so far have taken from the file, counted low; what a rewrite
            adds is paid from it.
        extra: Rules that are off by default and that the user asked for.
    """

    model: ir.Model
    context: Context
    selection: Selection
    saved: int = 0
    edits: int = 0
    extra: frozenset[str] = frozenset()
    _dead: dict[ir.Node, None] = field(default_factory=dict)
    _pending: list[tuple[ir.Node, ir.Graph]] = field(default_factory=list)
    _orphans: dict[ir.Value, None] = field(default_factory=dict)
    _queue: deque[ir.Node] = field(default_factory=deque)
    _queued: set[ir.Node] = field(default_factory=set)

    @cached_property
    def journal(self) -> Journal:
        """Counts, times and reasons."""
        asked = self.context.explain
        return Journal(Selection(asked) if asked else None)

    @property
    def counts(self) -> Counter[str]:
        """How often each rule fired."""
        return self.journal.counts

    @cached_property
    def scopes(self) -> dict[ir.Graph, Scope]:
        """All graphs; rewrites make no new ones."""
        return {scope.graph: scope for scope in scopes_of(self.model)}

    @cached_property
    def names(self) -> edit.Names:
        """Hands out names for new values."""
        return edit.Names(self.model)

    @cached_property
    def facts(self) -> Facts:
        """What is certain about values."""
        opsets = {graph: scope.opset for graph, scope in self.scopes.items()}
        return Facts(set(self.model.graph.inputs), opsets, answer)

    def adopt(self, other: Work) -> None:
        """Make the outcome of a trial on a clone of the model this one's."""
        model, new = self.model, other.model
        model.graph = new.graph
        model.functions.clear()
        model.functions.update(new.functions)
        self.__dict__.update(other.__dict__)
        self.model = model

    def refresh(self) -> None:
        """Look at the model anew after an edit of its scopes or functions."""
        for name in ("scopes", "facts", "redefined", "shadowed", "_pure_functions"):
            self.__dict__.pop(name, None)

    def forget_facts(self) -> None:
        """Derive facts anew: rewrites never make one wrong, but more may be certain now."""
        self.__dict__.pop("facts", None)

    @cached_property
    def shadowed(self) -> set[str]:
        """Names with more than one meaning: uses may not be moved onto them across graphs."""
        seen: set[str] = set()
        twice: set[str] = set()
        for graph in self.scopes:
            values = [*graph.inputs, *graph.initializers.values()]
            values += [output for node in graph for output in node.outputs]
            names = {value.name for value in values if value.name}
            twice |= seen & names
            seen |= names
        return twice

    def opset(self, node: ir.Node) -> int:
        """Return the version of the default operator set that holds for the node."""
        return self.scopes[self.home(node)].opset

    def home(self, node: ir.Node) -> ir.Graph:
        """Return the graph that the node is in."""
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        return graph

    @property
    def removed(self) -> int:
        """Number of nodes removed so far."""
        return len(self._dead)

    def alive(self, node: ir.Node) -> bool:
        """Tell whether the node is still part of the model."""
        return node not in self._dead

    def nodes(self) -> Iterable[ir.Node]:
        """Yield the nodes of all graphs that are still part of the model."""
        for graph in self.scopes:
            for node in graph:
                if node not in self._dead:
                    yield node

    # Edits

    def redirect(self, old: ir.Value, new: ir.Value, *, renamed: bool = False) -> bool:
        """Let users of ``old`` use ``new``; see :func:`converter.core.graph.redirect`.

        Args:
            old: What is used now.
            new: What is used then.
            renamed: The caller gives ``new`` the name of ``old`` afterwards.

        Returns:
            False when a public name, or a name that means something else in an inner graph, or a
            name so long that the file would grow, stands in the way; then nothing was changed.
        """
        if self.shadowed and not rename.keeps_meaning(old, new, self.shadowed):
            return False
        growth = 0 if renamed else sizes.renaming_bytes(old, new)
        if growth > 0 and not self._affords_names(growth, old):
            if not rename.take_name(old, new, self.shadowed):
                return False
            growth = 0
        was_output, users = old.is_graph_output(), old.consumers()
        if not edit.redirect(old, new):
            return False
        if was_output:
            # The old value may live on as one of several outputs of its node.
            old.name = self.names.fresh(old.name or "replaced")
        self.edits += 1
        self.saved -= growth
        self.visit(users)
        return True

    def _affords_names(self, growth: int, old: ir.Value) -> bool:
        """Tell whether the node that goes pays for a longer name in all its readers."""
        maker = old.producer()
        return self.affords(growth - (sizes.node_bytes(maker) if maker is not None else 0))

    def replace(self, node: ir.Node, new: ir.Value) -> Applied | None:
        """Let ``new`` take the place of the node's first output and remove the node if unused."""
        if not self.redirect(node.outputs[0], new):
            return None
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            self.discard(node)
        return Applied()

    def set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Give the node another input, or none, and remove what only the old one needed."""
        old = node.inputs[index]
        node.replace_input_with(index, value)
        self.edits += 1
        new_name, old_name = (each.name or "" if each else "" for each in (value, old))
        self.saved -= len(new_name) - len(old_name)
        self.visit([node])
        if old is not None:
            self._release([old])

    def discard(self, node: ir.Node) -> None:
        """Remove a node whose outputs are not used, and the pure nodes that only it needed."""
        self._release(self._detach(node))

    def _detach(self, node: ir.Node) -> list[ir.Value]:
        """Mark the node as dead, captured values of inner graphs included."""
        self.edits += 1
        self.journal.gone(node)
        self._dead[node] = None
        self._pending.append((node, self.home(node)))
        self.saved += sizes.node_bytes(node)
        loose: list[ir.Value] = []
        users = [node]
        for user in users:
            for index, value in enumerate(user.inputs):
                if value is not None:
                    user.replace_input_with(index, None)
                    loose.append(value)
            for graph in subgraphs(user):
                users.extend(graph)
                self._dead.update((inner, None) for inner in graph)
        return loose

    def _release(self, values: list[ir.Value]) -> None:
        """Remove what made the values if nothing else needs it."""
        while values:
            value = values.pop()
            if value.uses() or value.is_graph_output():
                continue
            producer = value.producer()
            if producer is None:
                if value.is_initializer():
                    self._orphans[value] = None
            elif self.removable(producer):
                values.extend(self._detach(producer))
            if producer is not None:
                self.visit([producer])

    def removable(self, node: ir.Node) -> bool:
        """Tell whether the node may go: selected, without side effect, and nobody uses it."""
        if any(output.uses() or output.is_graph_output() for output in node.outputs):
            return False
        return node not in self._dead and node in self.selection and self._is_pure(node)

    def _is_pure(self, node: ir.Node) -> bool:
        if not self.model.functions:
            return is_pure(node)
        key = node.op_identifier()
        return key in self._pure_functions if key in self.model.functions else is_pure(node)

    @cached_property
    def _pure_functions(self) -> set[ir.OperatorIdentifier]:
        """Model functions of which every node is pure; calls inside them are not followed."""
        return {
            key
            for key, function in self.model.functions.items()
            if all(is_pure(node) for node in function)
        }

    @cached_property
    def redefined(self) -> set[str]:
        """Operator types of the default domain that the model defines itself."""
        return {key[1] for key in self.model.functions if key[0] in DEFAULT_DOMAINS}

    def drop_initializer(self, value: ir.Value) -> None:
        """Remove an initializer that is neither used nor public."""
        tensor, graph = value.const_value, value.graph
        assert isinstance(graph, ir.Graph)
        if tensor is not None:
            self.saved += sizes.constant_bytes(tensor, value.name)
        assert value.name is not None
        del graph.initializers[value.name]
        self.edits += 1

    def new_constant(
        self, user: ir.Node, base: str, data: Array | ir.TensorProtocol, *, as_node: bool = False
    ) -> ir.Value:
        """Make a constant that ``user`` can read; ``as_node``: one that can become an output.

        It becomes an initializer, or a Constant node where the format wants that: in functions,
        and before IR version 4, where each initializer had to be a graph input.
        """
        self.edits += 1
        name = self.names.fresh(base)
        tensor = ir.tensor(data, name=name) if isinstance(data, np.ndarray) else data
        tensor.name = name
        graph = self.home(user)
        self.saved -= sizes.new_constant_bytes(tensor.nbytes, len(tensor.shape), name)
        kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        if as_node or self.wants_nodes(user):
            self.saved -= sizes.CONSTANT_NODE_BYTES
            value = ir.Value(name=name, type=kind, shape=shape)
            tensor.name = None  # neither it nor the node needs a name, which would cost bytes
            attributes = [ir.AttrTensor("value", tensor)]
            node = ir.Node("", "Constant", [], attributes, outputs=[value], name="")
            graph.insert_before(user, node)
            return value
        value = ir.Value(name=name, type=kind, shape=shape, const_value=tensor)
        graph.register_initializer(value)
        return value

    def new_node(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any],
        *,
        name: str | None = None,
    ) -> ir.Value:
        """Insert a node of the default domain with one output, and return that."""
        self.edits += 1
        base = before.outputs[0].name or "value"
        output = ir.Value(name=self.names.fresh(base))
        node = ir.Node(
            before.domain,
            op_type,
            inputs,
            ir.convenience.convert_attributes(attributes),
            outputs=[output],
            name=name or "",  # None would let the graph make up one, which takes bytes
        )
        self.saved -= sizes.node_bytes(node)
        self.home(before).insert_before(before, node)
        self.visit([node])
        return output

    def wants_nodes(self, user: ir.Node) -> bool:
        """Tell whether constants that the node reads have to be Constant nodes."""
        return self.scopes[self.home(user)].in_function or not self.free_initializers

    @property
    def free_initializers(self) -> bool:
        """Initializers need not be graph inputs."""
        version = self.model.ir_version
        return version is None or version >= _FIRST_IR_WITH_FREE_INITIALIZERS

    def affords(self, cost: int) -> bool:
        """Tell whether the file stays no bigger when a rewrite makes it ``cost`` bytes longer.

        At most a kilobyte is paid from what earlier edits saved.
        """
        return cost <= min(_CREDIT_BYTES, max(0, self.saved))

    def constant_saving(self, value: ir.Value | None, users: set[ir.Node]) -> int:
        """Return the bytes that go away with a constant when ``users`` no longer read it."""
        tensor = constant(value)
        if value is None or tensor is None or value.is_graph_output():
            return 0
        if any(use.node not in users for use in value.uses()):
            return 0
        producer = value.producer()
        if producer is not None:
            return tensor.nbytes + 2 * len(tensor.shape) + sizes.node_bytes(producer)
        return sizes.constant_bytes(tensor, value.name)

    # Worklist

    def visit(self, nodes: Iterable[ir.Node]) -> None:
        """Put nodes on the worklist."""
        for node in nodes:
            if node not in self._queued and node not in self._dead:
                self._queued.add(node)
                self._queue.append(node)

    def sweep(self, rules: Sequence[Rule]) -> None:
        """Apply the rules to all nodes, and again to what changed, until none fires."""
        index: dict[str, list[Rule]] = {}
        for rule in rules:
            for op_type in rule.op_types:
                index.setdefault(op_type, []).append(rule)
        self._queue.clear()
        self._queued.clear()
        self.visit(node for node in self.nodes() if node.op_type in index)
        steps = 20 * len(self._queue) + 1000
        while self._queue and steps:
            steps -= 1
            node = self._queue.popleft()
            self._queued.discard(node)
            if node in self._dead or node.domain not in DEFAULT_DOMAINS or node.overload:
                continue
            matching = index.get(node.op_type)
            if matching is None or node.op_type in self.redefined:
                continue
            # Dead nodes are left to the rule that removes them: replacing one frees what it reads.
            if node in self.selection and _is_read(node):
                self._try(node, matching)
        self.finish()

    def _try(self, node: ir.Node, rules: Sequence[Rule]) -> None:
        journal = self.journal
        asked, below = journal.watches(node), _makers(node)
        for rule in rules:
            needed = rule.below.get(node.op_type)
            if needed is not None and not asked and needed.isdisjoint(below):
                continue
            subject = label(node) if asked else ""
            started = time.perf_counter()
            journal.acting = rule.name
            result = rule.function(node, self)
            journal.spend(rule.name, time.perf_counter() - started)
            if isinstance(result, Applied):
                journal.fired(node, rule.name, subject)
                users = [user for output in node.outputs for user in output.consumers()]
                self.visit((node, *users, *result.revisit))
                return
            if result is not None:
                journal.skip(node, rule.name, result, minor=rule.minor)

    def skip(self, node: ir.Node, rule: str, reason: str, *, minor: bool = False) -> None:
        """Note why an eligible node was left alone; the last reason of a rule counts."""
        self.journal.skip(node, rule, reason, minor=minor)

    def finish(self) -> None:
        """Take dead nodes out of their graphs and drop constants that lost their last user."""
        by_graph: dict[ir.Graph, list[ir.Node]] = {}
        for node, graph in self._pending:
            by_graph.setdefault(graph, []).append(node)
        self._pending.clear()
        for graph, nodes in by_graph.items():
            graph.remove(nodes)
        for value in self._orphans:
            if is_unused_initializer(value):
                self.drop_initializer(value)
        self._orphans.clear()

    def outcome(self, notes: tuple[str, ...] = ()) -> Outcome:
        """Report what was done."""
        self.finish()
        return self.journal.outcome(modified=self.edits > 0, alive=self.alive, notes=notes)


def _makers(node: ir.Node) -> set[str]:
    """Return the operators whose outputs the node reads."""
    producers = (value.producer() for value in node.inputs if value is not None)
    return {producer.op_type for producer in producers if producer is not None}


def _is_read(node: ir.Node) -> bool:
    return any(output.uses() or output.is_graph_output() for output in node.outputs)


def is_unused_initializer(value: ir.Value) -> bool:
    """Tell whether an initializer can go: nobody reads it and it is not public."""
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return False
    return value.is_initializer()
