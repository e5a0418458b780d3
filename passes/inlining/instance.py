"""A copy of a function's body that fits one call: values, attributes and names replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from converter.core.graph import subgraphs
from passes.inlining.calls import all_nodes
from passes.rewriting.rename import renamed


class Taken:
    """Names in use below one root; values and nodes each have their own."""

    def __init__(self, root: ir.Graph) -> None:
        self.values: set[str] = set()
        self.nodes: set[str] = set()
        self._next: dict[str, int] = {}
        self._add_graph(root)
        for node in all_nodes(root):
            self.nodes.add(node.name or "")
            self.values.update(o.name for o in node.outputs if o.name)
            for graph in subgraphs(node):
                self._add_graph(graph)

    def _add_graph(self, graph: ir.Graph) -> None:
        self.values.update(v.name for v in graph.inputs if v.name)
        self.values.update(graph.initializers)

    def value(self, base: str) -> str:
        """Return a name for a value and remember it."""
        return self._fresh(base, self.values)

    def node(self, base: str) -> str:
        """Return a name for a node and remember it."""
        return self._fresh(base, self.nodes)

    def _fresh(self, base: str, used: set[str]) -> str:
        name, count = base, self._next.get(base, 0)
        while name in used:
            count += 1
            name = f"{base}_{count}"
        self._next[base] = count
        used.add(name)
        return name


@dataclass(frozen=True)
class Instance:
    """A body made for one call.

    Attributes:
        nodes: In order; in no graph yet.
        outputs: Values that take the place of the call's outputs.
    """

    nodes: list[ir.Node]
    outputs: list[ir.Value]

    def drop(self) -> None:
        """Let go of the values that the nodes read."""
        users = list(self.nodes)
        for user in users:
            for index in range(len(user.inputs)):
                user.replace_input_with(index, None)
            for graph in subgraphs(user):
                users.extend(graph)


def instantiate(call: ir.Node, function: ir.Function, taken: Taken) -> Instance:
    """Copy the body of the function for the call."""
    body = function.graph.clone()
    given = [*call.inputs, *[None] * (len(body.inputs) - len(call.inputs))]
    defaults = {k: a for k, a in function.attributes.items() if a.value is not None}
    _resolve(list(body), {**defaults, **call.attributes})
    actuals = dict(zip(body.inputs, given, strict=True))
    return fit(call, body, actuals, list(body.outputs), taken)


def fit(
    node: ir.Node,
    body: ir.Graph,
    actuals: Mapping[ir.Value, ir.Value | None],
    results: Sequence[ir.Value],
    taken: Taken,
) -> Instance:
    """Take the nodes out of a graph and make them fit the place of a node.

    Args:
        node: What they replace.
        body: A graph that nobody else has; it is empty afterwards.
        actuals: What its inputs stand for.
        results: What takes the place of the node's outputs.
        taken: Names in use around the node.
    """
    nodes = list(body)
    body.outputs.clear()
    body.remove(nodes)
    _rename(nodes, taken)
    for formal, actual in actuals.items():
        _substitute(formal, actual)
    replaced = [actuals.get(value, value) for value in results]
    instance = Instance(nodes, [value for value in replaced if value is not None])
    _connect(node, instance, taken)
    return instance


def _substitute(formal: ir.Value, actual: ir.Value | None) -> None:
    if actual is not None:
        formal.replace_all_uses_with(actual, replace_graph_outputs=True)
        return
    for use in list(formal.uses()):
        use.node.replace_input_with(use.idx, None)


def _resolve(nodes: list[ir.Node], given: dict[str, ir.Attr]) -> None:
    """Replace references to attributes of the function; one that is not given goes away."""
    for node in _deep(nodes):
        for name, attribute in list(node.attributes.items()):
            if not attribute.is_ref():
                continue
            source = given.get(attribute.ref_attr_name or "")
            if source is None:
                del node.attributes[name]
            elif source.is_ref():
                node.attributes[name] = ir.RefAttr(name, source.ref_attr_name or "", source.type)
            else:
                node.attributes[name] = ir.Attr(name, source.type, source.value)


def _deep(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    found = list(nodes)
    for node in found:
        for graph in subgraphs(node):
            found.extend(graph)
    return found


def _rename(nodes: list[ir.Node], taken: Taken) -> None:
    """Give every node and value a name of its own, and forget dimension names of the function."""
    for node in _deep(nodes):
        if node.name:
            node.name = taken.node(node.name)
        for value in node.outputs:
            _rename_value(value, taken)
        for graph in subgraphs(node):
            for value in (*graph.inputs, *list(graph.initializers.values())):
                _rename_value(value, taken)


def _rename_value(value: ir.Value, taken: Taken) -> None:
    if value.name:
        name = taken.value(value.name)
        if value.const_value is not None:  # the clone shares the tensor, and its name
            value.const_value = renamed(value.const_value, name)
        value.name = name
    if value.shape is not None and not value.shape.is_static():
        value.shape = ir.Shape([d if isinstance(d, int) else None for d in value.shape])


def _connect(call: ir.Node, instance: Instance, taken: Taken) -> None:
    """Give results the names of the call's outputs; one that is not free for it gets a copy."""
    own = {id(value) for node in instance.nodes for value in node.outputs}
    for index, old in enumerate(call.outputs):
        if not old.name:
            continue
        if not (old.uses() or old.is_graph_output()):
            continue
        value = instance.outputs[index]
        if id(value) not in own:
            value = ir.Value(type=old.type, shape=old.shape)
            node = ir.Node("", "Identity", [instance.outputs[index]], outputs=[value])
            node.name = taken.node(f"{call.name}_{index}") if call.name else None
            instance.nodes.append(node)
            instance.outputs[index] = value
        own.discard(id(value))  # a second output may not take the same value
        value.name = old.name
        value.type = old.type or value.type
        value.shape = old.shape if old.shape is not None else value.shape
        value.doc_string = old.doc_string or value.doc_string
        value.metadata_props.update(old.metadata_props)
        value.meta.update(old.meta)
