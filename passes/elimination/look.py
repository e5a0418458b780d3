"""What the rules share: looking at the nodes around one, and taking a node out of the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from converter.core.graph import is_op
from passes.rewriting import sizes
from passes.rewriting.question import Question
from passes.rewriting.rule import Applied, Result
from passes.rewriting.work import Work

PUBLIC = "its output and its input are both public or belong to different graphs"
MOST_USERS = 8  # looked at per node; a bound keeps the pass linear


def bypass(node: ir.Node, work: Work, source: ir.Value | None) -> Result:
    """Let users of the node read ``source`` instead."""
    if source is None:
        return None
    return work.replace(node, source) or PUBLIC


def ask(node: ir.Node, work: Work) -> Question:
    """Return the node with what is certain about its inputs."""
    facts = tuple(work.facts.of(value) for value in node.inputs)
    return Question(node, facts, work.opset(node))


def made_by(value: ir.Value | None, user: ir.Node, work: Work, *op_types: str) -> ir.Node | None:
    """Return the node behind a value if it is one of these operators in the graph of ``user``."""
    producer = value.producer() if value is not None else None
    if producer is None or producer.graph is not user.graph or not is_plain(producer, work):
        return None
    return producer if is_op(producer, *op_types) else None


def is_plain(node: ir.Node, work: Work) -> bool:
    """Tell whether the node means what the specification says and has no attribute to be given."""
    if node.overload or node.op_type in work.redefined:
        return False
    return not any(attribute.is_ref() for attribute in node.attributes.values())


def is_sole(value: ir.Value | None) -> bool:
    """Tell whether one node reads the value, once, and nobody else does."""
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def skip_over(node: ir.Node, work: Work, index: int = 0) -> Applied:
    """Let an input of the node be the first input of the node that made it."""
    value = node.inputs[index]
    producer = value.producer() if value is not None else None
    assert producer is not None
    origin = producer.inputs[0]
    assert origin is not None
    work.set_input(node, index, origin)
    return Applied()


def stand_in(
    node: ir.Node,
    work: Work,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any],
    *,
    op_type: str | None = None,
) -> Result:
    """Let a new node take the place, the name and the notes of a node with one output."""
    new = work.new_node(node, op_type or node.op_type, inputs, attributes, name=node.name)
    maker = new.producer()
    assert maker is not None
    bare = sizes.node_bytes(maker)
    maker.doc_string = node.doc_string
    maker.metadata_props.update(node.metadata_props)
    work.saved -= sizes.node_bytes(maker) - bare
    new.type = node.outputs[0].type
    if work.replace(node, new) is None:
        work.discard(maker)
        return PUBLIC
    return Applied((maker, *new.consumers()))


def integers(node: ir.Node, name: str, numbers: list[int] | tuple[int, ...]) -> None:
    """Set an attribute with integers."""
    node.attributes[name] = ir.AttrInt64s(name, list(numbers))
