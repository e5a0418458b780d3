"""Rules that replace what a pattern matches by other nodes.

A :class:`Substitution` is data: patterns, a check that returns a reason, and a function that says
what comes instead, as a tree of :class:`New` nodes. The engine here does the rest: it looks at who
else uses the matched nodes, counts bytes and nodes so that neither grows, keeps names, and reports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core.graph import constant, label
from passes.rewriting import sizes
from passes.rewriting.pattern import (
    Match,
    Matcher,
    attribute_value,
    first_operators,
    parse,
    plausible,
)
from passes.rewriting.rule import Applied, Result, Rule
from passes.rewriting.work import Work

Array = np.ndarray[Any, Any]
BIGGER = "it would make the file bigger"
_FLOATS = frozenset(
    {ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16}
)


class UnfitError(Exception):
    """Raised by the functions of a rule to leave a match alone; the text is the reason."""


@dataclass(frozen=True)
class New:
    """A node to be made.

    Attributes:
        op_type: Operator of the default domain.
        inputs: Values of the model, other new nodes, arrays and tensors that become constants, or
            None for an optional input that is left out.
        attributes: Integers, floats, text, or lists of them.
    """

    op_type: str
    inputs: tuple[ir.Value | New | Array | ir.TensorProtocol | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A match and where it is.

    Attributes:
        match: What the pattern matched.
        work: The model under rewriting.
    """

    match: Match
    work: Work

    def __getitem__(self, name: str) -> ir.Value:
        return self.match[name]

    def __contains__(self, name: str) -> bool:
        return name in self.match.values

    @property
    def root(self) -> ir.Node:
        """The node that the pattern starts with."""
        return self.match.root

    @property
    def opset(self) -> int:
        """Version of the default operator set in force."""
        return self.work.opset(self.root)

    def node(self, name: str) -> ir.Node:
        """Return a node that the pattern names."""
        return self.match.nodes[name]

    def attribute(self, node: str, name: str) -> Any:
        """Return an attribute of a named node, by default the one of the specification."""
        return attribute_value(self.match.nodes[node], name, self.opset)

    def array(self, name: str) -> Array:
        """Return a constant; the array must not be written to."""
        return self.match.array(name)

    def number(self, name: str) -> float | None:
        """Return a constant with one element, or None when it has another number of them."""
        return self.match.number(name)

    def dims(self, name: str) -> tuple[Any, ...] | None:
        """Return the certain dimensions of a value; unknown ones are :class:`facts.Dim`."""
        return self.work.facts.of(self.match[name]).dims

    def dtype(self, name: str) -> ir.DataType | None:
        """Return the certain element type of a value."""
        return self.work.facts.of(self.match[name]).dtype


Check = Callable[[Found], str | None]
Rewrite = Callable[[Found], New | ir.Value | str | None]


@dataclass(frozen=True)
class Substitution:
    """A rule as data.

    Attributes:
        name: Names the count of its uses in the outcome.
        patterns: Texts; see :mod:`passes.rewriting.pattern`.
        rewrite: What comes instead: a tree of new nodes, a value of the model, or a reason.
        check: A reason to leave a match alone, "" when the rule is not about it, or None.
        since: Operator set from which on the new nodes exist.
        tolerance: How outputs may differ, for people; "" means bit-equal.
        dtypes: Element types of the result that it is for; empty means all.
        shaped: The variable that has the shape of the result: constants of one element must not
            have more axes, which would enlarge it.
        makes: The operator that it writes, for people.
        extra: Why it is left off unless the user names it in ``fuse:extra=``; "" means on.
    """

    name: str
    patterns: tuple[str, ...]
    rewrite: Rewrite
    check: Check | None = None
    since: int = 1
    tolerance: str = ""
    dtypes: frozenset[ir.DataType] = frozenset()
    shaped: str = ""
    extra: str = ""
    makes: str = "the operator"

    def rule(self) -> Rule:
        """Return the rule for :meth:`Work.sweep`."""
        roots = tuple(dict.fromkeys(parse(text).op_type for text in self.patterns))
        below: dict[str, frozenset[str]] = {}
        for root in roots:
            needs = [first_operators(p) for p in map(parse, self.patterns) if p.op_type == root]
            if all(needs):
                below[root] = frozenset().union(*needs)
        return Rule(
            self.name,
            roots,
            self.apply,
            self.tolerance,
            self.patterns,
            self.since,
            below,
            minor=bool(self.extra),
        )

    def apply(self, node: ir.Node, work: Work) -> Result:
        """Try the patterns on a node; the first that matches decides."""
        farthest = (1, "")
        version, asked = work.opset(node), work.journal.watches(node)
        for text in self.patterns:
            pattern = parse(text)
            if pattern.op_type != node.op_type:
                continue
            if not asked and not plausible(pattern, node):
                continue
            matcher = Matcher(pattern, version)
            match = matcher.match(node)
            if match is not None:
                return self._apply(Found(match, work))
            farthest = max(farthest, matcher.farthest)
        if farthest[1]:
            work.journal.explain(node, self.name, farthest[1])
        return None

    def _apply(self, found: Found) -> Result:
        match, work = found.match, found.work
        try:
            reason = self._unfit(found)
            if reason is None and self.check is not None:
                reason = self.check(found)
            if reason == "":
                return None
            reason = reason or _obstacle(match, work)
            new = self.rewrite(found) if reason is None else reason
        except UnfitError as unfit:
            return str(unfit)
        if new is None or isinstance(new, str):
            return new
        if isinstance(new, ir.Value):
            return work.replace(match.root, new) or "its output cannot be moved"
        return _install(found, new)

    def _unfit(self, found: Found) -> str | None:
        """Return why the rule is not for this model, whatever was matched."""
        if self.extra and self.name not in found.work.extra:
            return f"{self.extra}; fuse:extra={self.name} does it nevertheless"
        if found.opset < self.since:
            return needs(self.makes, self.since, found.opset)
        if self.dtypes:
            dtype = found.work.facts.of(found.root.outputs[0]).dtype
            if dtype is None:
                return "its element type is not known"
            if dtype not in self.dtypes:
                return f"its element type is {dtype.name}"
        return _enlargement(found, self.shaped) if self.shaped else None


def needs(operator: str, opset: int, found: int) -> str:
    """Return the reason that an operator is younger than the model."""
    words = f"{operator} needs opset {opset}; the model has {found}"
    return f"{words} (convert_opset:to={opset} before it)"


def _enlargement(found: Found, shaped: str) -> str | None:
    """Return why constants of one element could give the result more axes than a value has."""
    dims = found.dims(shaped)
    for node in (found.root, *found.match.inner):
        for value in node.inputs:
            tensor = constant(value)
            if tensor is None or value is None or tensor.size != 1 or tensor.dtype not in _FLOATS:
                continue
            if len(tensor.shape) > (0 if dims is None else len(dims)):
                return f"the constant {value.name} may have more axes than {found[shaped].name}"
    return None


def _obstacle(match: Match, work: Work) -> str | None:
    """Return why the matched nodes cannot go."""
    taken = {match.root, *match.inner}
    for node in match.inner:
        reason = _inner_obstacle(node, taken, work)
        if reason:
            return f"{label(node)} in the middle {reason}"
        if node.graph is not match.root.graph:
            return f"{label(node)} in the middle belongs to another graph"
    if any(o.uses() or o.is_graph_output() for o in match.root.outputs[1:]):
        return "another output of it is used"
    return None


def _inner_obstacle(node: ir.Node, taken: set[ir.Node], work: Work) -> str:
    if node not in work.selection:
        return "is excluded"
    if node.op_type in work.redefined:
        return "is defined by the model itself"
    for output in node.outputs:
        if output.is_graph_output():
            return "has a public output"
        if any(use.node not in taken for use in output.uses()):
            return "is used elsewhere"
    return ""


def _install(found: Found, new: New) -> Result:
    """Make the new nodes, move the users over, and remove the old ones."""
    match, work = found.match, found.work
    nodes, constants = _parts(new)
    read = {id(v.producer()) for n in nodes for v in n.inputs if isinstance(v, ir.Value)}
    for node in match.inner:
        if id(node) in read:
            return f"{label(node)} in the middle is needed by what would replace it"
    if len(nodes) > 1 + len(match.inner):
        return "it would take more nodes"
    if not work.affords(_cost(found, nodes, constants)):
        return BIGGER
    root = match.root
    value = _make(found, new)
    producer = value.producer()
    assert producer is not None
    producer.metadata_props.update(root.metadata_props)
    producer.doc_string = root.doc_string
    old = root.outputs[0]
    value.type, value.shape = old.type, old.shape
    name = None if old.is_graph_output() else old.name
    if not work.redirect(old, value, renamed=True):
        work.discard(producer)
        return "its output cannot be moved"
    work.discard(root)
    if name:
        old.name, value.name = None, name
    return Applied()


def _parts(new: New) -> tuple[list[New], list[Array | ir.TensorProtocol]]:
    """Return the new nodes and the new constants of a tree; one that appears twice counts once."""
    nodes: dict[int, New] = {}
    constants: dict[int, Array | ir.TensorProtocol] = {}
    stack = [new]
    while stack:
        current = stack.pop()
        if id(current) in nodes:
            continue
        nodes[id(current)] = current
        for item in current.inputs:
            if isinstance(item, New):
                stack.append(item)
            elif item is not None and not isinstance(item, ir.Value):
                constants[id(item)] = item
    return list(nodes.values()), list(constants.values())


def _cost(found: Found, nodes: list[New], constants: list[Array | ir.TensorProtocol]) -> int:
    """Return by how much the file grows, counted high."""
    match, work = found.match, found.work
    old = {match.root, *match.inner}
    kept = {id(v) for node in nodes for v in node.inputs if isinstance(v, ir.Value)}
    read = dict.fromkeys(v for node in old for v in node.inputs if v is not None)
    gain = sum(sizes.node_bytes(node) for node in old)
    gain += sum(work.constant_saving(v, old) for v in read if id(v) not in kept)
    cost = sum(_node_cost(node, found) for node in nodes)
    as_nodes = work.wants_nodes(match.root)
    bytes_of = sizes.new_constant_node_bytes if as_nodes else sizes.new_constant_bytes
    for item in constants:
        rank = item.ndim if isinstance(item, np.ndarray) else len(item.shape)
        cost += bytes_of(item.nbytes, rank, f"{_constant_name(match)}_10")
    return cost + _moved(match.root) - gain


def _node_cost(new: New, found: Found) -> int:
    """Return at least the bytes of a new node; its output gets a name that may be a bit longer."""
    cost = 6 + sizes.text_bytes(new.op_type) + sizes.text_bytes(_base(found))
    for item in new.inputs:
        name = item.name if isinstance(item, ir.Value) else _base(found)
        cost += sizes.text_bytes(name) if item is not None else 2
    return cost + sum(sizes.attribute_bytes(k, v) for k, v in new.attributes.items())


def _moved(root: ir.Node) -> int:
    """Return the bytes of what the first new node takes over from the root."""
    moved = sizes.text_bytes(root.name) if root.name else 0
    moved += sizes.text_bytes(root.doc_string) if root.doc_string else 0
    pairs = root.metadata_props.items()
    moved += sum(4 + sizes.text_bytes(k) + sizes.text_bytes(v) for k, v in pairs)
    return moved - len("_10")


def _base(found: Found) -> str:
    return f"{found.root.outputs[0].name or 'value'}_10"


def _constant_name(match: Match) -> str:
    """Name new constants after an old one, which is what people look for."""
    for node in (match.root, *match.inner):
        for value in node.inputs:
            if value is not None and value.name and constant(value) is not None:
                return value.name
    return f"{match.root.outputs[0].name or 'value'}_constant"


def _make(found: Found, new: New) -> ir.Value:
    """Make the nodes of a tree before the root, operands first, and return the last output."""
    work, root = found.work, found.root
    base = _constant_name(found.match)
    made: dict[int, ir.Value] = {}

    def operand(item: Any) -> ir.Value | None:
        if item is None or isinstance(item, ir.Value):
            return item
        if id(item) not in made:
            if isinstance(item, New):
                made[id(item)] = node(item, None)
            else:
                made[id(item)] = work.new_constant(root, base, item)
        return made[id(item)]

    def node(item: New, name: str | None) -> ir.Value:
        inputs = [operand(x) for x in item.inputs]
        return work.new_node(root, item.op_type, inputs, item.attributes, name=name)

    return node(new, root.name)
