"""Rules for nodes with sub-graphs: how many inputs and outputs their bodies need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx

Attributes = Mapping[str, onnx.AttributeProto]
Rule = Callable[[onnx.NodeProto, Attributes], Iterator[str]]


def _if(node: onnx.NodeProto, attributes: Attributes) -> Iterator[str]:
    for name in ("then_branch", "else_branch"):
        branch = attributes[name].g
        if branch.input:
            yield f"{name} has inputs"
        if len(branch.output) != len(node.output):
            yield f"{name} has {len(branch.output)} outputs but the node {len(node.output)}"


def _loop(node: onnx.NodeProto, attributes: Attributes) -> Iterator[str]:
    body = attributes["body"].g
    carried = max(len(node.input) - 2, 0)
    if len(body.input) != carried + 2:
        yield f"the body has {len(body.input)} inputs where {carried + 2} are wanted"
    if len(body.output) != len(node.output) + 1 or len(node.output) < carried:
        yield f"the body has {len(body.output)} outputs but the node {len(node.output)}"


def _scan(node: onnx.NodeProto, attributes: Attributes) -> Iterator[str]:
    body, scanned = attributes["body"].g, attributes["num_scan_inputs"].i
    # operator set 8 had the lengths of the sequences as a first input
    inputs = {len(node.input), len(node.input) - 1}
    if len(body.input) not in inputs:
        yield f"the body has {len(body.input)} inputs but the node {len(node.input)}"
    if len(body.output) != len(node.output):
        yield f"the body has {len(body.output)} outputs but the node {len(node.output)}"
    if not 1 <= scanned <= len(node.input):
        yield f"num_scan_inputs is {scanned} of {len(node.input)} inputs"
        return
    states = len(body.input) - scanned
    if states < 0 or states > len(body.output):
        yield f"there are {states} states but {len(body.output)} outputs of the body"
    wanted = {"scan_input_": scanned, "scan_output_": len(body.output) - states}
    for prefix, count in wanted.items():
        for name in (f"{prefix}axes", f"{prefix}directions"):
            found = len(attributes[name].ints) if name in attributes else 0
            if found not in {0, count}:
                yield f"{name} has {found} numbers where {count} are wanted"


def _sequence_map(node: onnx.NodeProto, attributes: Attributes) -> Iterator[str]:
    body = attributes["body"].g
    if len(body.input) != len(node.input) or len(body.output) != len(node.output):
        yield "the body has other numbers of inputs or outputs than the node"


BODIES: dict[str, tuple[frozenset[str], Rule]] = {
    "If": (frozenset({"then_branch", "else_branch"}), _if),
    "Loop": (frozenset({"body"}), _loop),
    "Scan": (frozenset({"body", "num_scan_inputs"}), _scan),
    "SequenceMap": (frozenset({"body"}), _sequence_map),
}
"""Operator -> attributes that must be there, and the rule for them."""


def body_problems(node: onnx.NodeProto, attributes: Attributes) -> Iterator[str]:
    """Yield what is wrong with the bodies of a node of the default domain."""
    required, rule = BODIES.get(node.op_type, (frozenset(), None))
    missing = sorted(name for name in required if name not in attributes)
    if missing:
        yield f"the attribute {missing[0]!r} is missing"
    elif rule is not None and not any(attributes[name].ref_attr_name for name in required):
        yield from rule(node, attributes)
