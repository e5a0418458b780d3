"""Outputs of If, Loop and Scan that nobody reads: what makes them in the inner graphs goes, too."""

from __future__ import annotations

from collections.abc import MutableSequence

import onnx_ir as ir

from converter.core.graph import redirect, subgraphs
from passes.elimination.look import is_plain
from passes.rewriting.rule import Applied, Result, Rule
from passes.rewriting.work import Work


def _unused(node: ir.Node) -> list[int]:
    return [
        index
        for index, output in enumerate(node.outputs)
        if not output.uses() and not output.is_graph_output()
    ]


def _branches(node: ir.Node, work: Work) -> Result:
    """Drop outputs of both branches of an If."""
    gone = _unused(node)
    if not gone or len(gone) == len(node.outputs) or not is_plain(node, work):
        return None
    graphs = list(subgraphs(node))
    if any(len(graph.outputs) != len(node.outputs) for graph in graphs):
        return None
    for graph in graphs:
        _drop(graph.outputs, gone)
    return _finish(node, work, gone, graphs)


def _loop(node: ir.Node, work: Work) -> Result:
    """Drop collected outputs of a Loop, and carried values that only carry themselves."""
    graphs = list(subgraphs(node))
    if len(graphs) != 1 or not is_plain(node, work):
        return None
    (body,) = graphs
    carried = len(body.inputs) - 2
    if carried < 0 or len(body.outputs) != len(node.outputs) + 1:
        return None
    if len(node.inputs) != carried + 2:
        return None
    gone = [i for i in _unused(node) if i >= carried or _is_idle(body.inputs[i + 2], body, i + 1)]
    if not gone or len(gone) == len(node.outputs):
        return None
    values = [i for i in gone if i < carried]
    _drop_inputs(node, work, [i + 2 for i in values])
    _drop(body.outputs, [i + 1 for i in gone])
    _drop(body.inputs, [i + 2 for i in values])
    return _finish(node, work, gone, graphs)


def _scan(node: ir.Node, work: Work) -> Result:
    """Drop collected outputs of a Scan, and states that only keep themselves."""
    graphs = list(subgraphs(node))
    count = node.attributes.get("num_scan_inputs")
    if len(graphs) != 1 or count is None or not is_plain(node, work) or work.opset(node) < 9:
        return None
    (body,) = graphs
    states = len(node.inputs) - count.as_int()
    if len(body.outputs) != len(node.outputs) or len(body.inputs) != len(node.inputs):
        return None
    gone = [i for i in _unused(node) if i >= states or _is_idle(body.inputs[i], body, i)]
    if not gone or len(gone) == len(node.outputs):
        return None
    values = [i for i in gone if i < states]
    _drop_inputs(node, work, values)
    _drop(body.inputs, values)
    _drop(body.outputs, gone)
    for name in ("scan_output_axes", "scan_output_directions"):
        attribute = node.attributes.get(name)
        if attribute is not None:
            kept = [n for i, n in enumerate(attribute.as_ints(), states) if i not in gone]
            node.attributes[name] = ir.AttrInt64s(name, kept)
            if not kept:
                del node.attributes[name]
    return _finish(node, work, gone, graphs)


def _is_idle(value: ir.Value, body: ir.Graph, place: int) -> bool:
    """Tell whether a carried value decides nothing but its own next value."""
    if not value.uses():
        return not value.is_graph_output() or list(body.outputs).index(value) == place
    # It may pass through one node on the way to its own output, as counters do.
    users = value.consumers()
    if value.is_graph_output() or len(users) != 1 or next(subgraphs(users[0]), None) is not None:
        return False
    (user,) = users
    if user.graph is not body or len(user.outputs) != 1:
        return False
    (result,) = user.outputs
    return not result.uses() and [i for i, v in enumerate(body.outputs) if v is result] == [place]


def _drop(values: MutableSequence[ir.Value], indices: list[int]) -> None:
    for index in sorted(indices, reverse=True):
        values.pop(index)


def _drop_inputs(node: ir.Node, work: Work, indices: list[int]) -> None:
    """Close the gaps that the given inputs leave."""
    kept = [value for index, value in enumerate(node.inputs) if index not in indices]
    for index, value in enumerate(kept):
        if node.inputs[index] is not value:
            node.replace_input_with(index, value)
    node.resize_inputs(len(kept))
    work.edits += 1


def _finish(node: ir.Node, work: Work, gone: list[int], graphs: list[ir.Graph]) -> Result:
    """Close the gaps among the node's outputs and clean up what made them."""
    kept = [index for index in range(len(node.outputs)) if index not in gone]
    for place, index in enumerate(kept):
        if place != index:
            _move(node.outputs[index], node.outputs[place])
    node.resize_outputs(len(kept))
    work.edits += 1
    for graph in graphs:
        for inner in reversed(list(graph)):
            if work.removable(inner):
                work.discard(inner)
    work.forget_facts()
    return Applied((node,))


def _move(old: ir.Value, new: ir.Value) -> None:
    """Let an output of a node take the place, the users and the name of a later one."""
    name = old.name
    if old.is_graph_output():
        new.name = None
        redirect(old, new)
    else:
        new.type, new.shape = old.type, old.shape
        new.doc_string = old.doc_string
        new.metadata_props.clear()
        new.metadata_props.update(old.metadata_props)
        ir.convenience.replace_all_uses_with(old, new)
    old.name = None
    new.name = name


RULES = (
    Rule("branch_outputs_removed", ("If",), _branches),
    Rule("loop_outputs_removed", ("Loop",), _loop),
    Rule("scan_outputs_removed", ("Scan",), _scan),
)
"""Outputs of inner graphs that nobody reads."""
