"""``eliminate``: remove what computes nothing; outputs stay equal to the last bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from converter.core.graph import constant, is_op, subgraphs
from passes.rewriting.facts import Dims, static
from passes.rewriting.movement import slice_ranges
from passes.rewriting.question import Question
from passes.rewriting.rewrite import Rewrite
from passes.rewriting.work import Applied, Result, Rule, Work, is_unused_initializer

PUBLIC = "its output and its input are both public or belong to different graphs"
_TO_THE_END = (1 << 31) - 1
_MOST_ROUNDS = 8
_LONGEST_CHAIN = 8  # views looked through; a bound keeps the pass linear


@dataclass(frozen=True)
class Eliminate(Rewrite):
    """Remove dead code, identities and operators that provably change nothing.

    Nodes without used outputs go when the ONNX specification defines them; operators of unknown
    domains stay, because they may have effects. Names of inputs and outputs never change.
    """

    name: ClassVar[str] = "eliminate"
    summary: ClassVar[str] = "remove dead code, identities and operators that change nothing"

    def rewrite(self, work: Work) -> None:
        """Remove what computes nothing."""
        for _ in range(_MOST_ROUNDS):
            before = work.edits
            eliminate(work)
            if work.edits == before:
                break
            work.forget_facts()


def eliminate(work: Work) -> None:
    """Remove what computes nothing; the body of the pass, used by ``simplify`` too."""
    _remove_dead_nodes(work)
    work.sweep(RULES)
    if not work.selection.include:
        _remove_unused_initializers(work)
        _remove_unused_functions(work)


def _remove_dead_nodes(work: Work) -> None:
    dead = [node for node in work.nodes() if work.removable(node)]
    before = work.removed
    for node in dead:
        if work.alive(node):
            work.discard(node)
    work.counts["dead_nodes_removed"] += work.removed - before
    work.finish()


def _remove_unused_initializers(work: Work) -> None:
    for graph in work.scopes:
        unused = [value for value in graph.initializers.values() if is_unused_initializer(value)]
        for value in unused:
            work.drop_initializer(value)
        work.counts["initializers_removed"] += len(unused)


def _remove_unused_functions(work: Work) -> None:
    """Remove model functions that no node of the main graph calls, directly or through others."""
    functions = work.model.functions
    graphs: list[ir.Graph] = [work.model.graph]
    used: set[ir.OperatorIdentifier] = set()
    for graph in graphs:
        for node in graph:
            graphs.extend(subgraphs(node))
            key = node.op_identifier()
            if key in functions and key not in used:
                used.add(key)
                graphs.append(functions[key].graph)
    for key in [key for key in functions if key not in used]:
        del functions[key]
        work.edits += 1
        work.counts["functions_removed"] += 1
    work.__dict__.pop("scopes", None)


# Rules. Each returns early when the node is not its business.


def _bypass(node: ir.Node, work: Work, source: ir.Value | None) -> Result:
    """Let users of the node read ``source`` instead."""
    if source is None:
        return None
    return work.replace(node, source) or PUBLIC


def _identity(node: ir.Node, work: Work) -> Result:
    return _bypass(node, work, node.inputs[0])


def _cast(node: ir.Node, work: Work) -> Result:
    to = node.attributes.get("to")
    if to is None or to.is_ref() or to.type != ir.AttributeType.INT:
        return None
    dtype = work.facts.of(node.inputs[0]).dtype
    if dtype is None or dtype != to.as_int():
        return None
    return _bypass(node, work, node.inputs[0])


def _perm(node: ir.Node, work: Work) -> tuple[int, ...] | None:
    """Return the permutation of a Transpose; the default reverses the axes."""
    attribute = node.attributes.get("perm")
    if attribute is not None:
        return None if attribute.is_ref() else tuple(attribute.as_ints())
    dims = work.facts.of(node.inputs[0]).dims
    return None if dims is None else tuple(range(len(dims)))[::-1]


def _moves_nothing(perm: tuple[int, ...], dims: Dims | None) -> bool:
    """Tell whether the axes that are longer than 1 keep their order and all sizes their place."""
    if perm == tuple(range(len(perm))):
        return True
    if dims is None or len(dims) != len(perm):
        return False
    long = [p for p in perm if dims[p] != 1]
    return long == sorted(long) and all(dims[p] == dims[i] for i, p in enumerate(perm))


def _transpose(node: ir.Node, work: Work) -> Result:
    perm = _perm(node, work)
    source = node.inputs[0]
    if perm is None or source is None:
        return None
    if _moves_nothing(perm, work.facts.of(source).dims):
        return _bypass(node, work, source)
    return _merge_transposes(node, work, source, perm)


def _merge_transposes(node: ir.Node, work: Work, source: ir.Value, perm: tuple[int, ...]) -> Result:
    before = source.producer()
    if before is None or not is_op(before, "Transpose") or before.inputs[0] is None:
        return None
    first = _perm(before, work)
    if first is None or len(first) != len(perm):
        return None
    merged = tuple(first[p] for p in perm)
    origin = before.inputs[0]
    if _moves_nothing(merged, work.facts.of(origin).dims):
        return _bypass(node, work, origin)
    if source.is_graph_output() or len(source.uses()) > 1:
        return None
    node.attributes["perm"] = ir.AttrInt64s("perm", merged)
    work.set_input(node, 0, origin)
    return Applied()


_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def _view(node: ir.Node, work: Work) -> Result:
    """Reshape and its like: the order of elements stays, so equal dimensions mean equal tensors."""
    source = node.inputs[0]
    after = work.facts.of(node.outputs[0]).dims
    if source is None:
        return None
    origin: ir.Value | None = source
    for _ in range(_LONGEST_CHAIN):
        if origin is None or after is None:
            break
        if work.facts.of(origin).dims == after:
            return _bypass(node, work, origin)
        producer = origin.producer()
        origin = producer.inputs[0] if producer is not None and is_op(producer, *_VIEWS) else None
    return _undo(node, work) or _skip_view_before(node, work)


def _undo(node: ir.Node, work: Work) -> Result:
    """Squeeze after Unsqueeze of the same axes, or the other way round, of unknown rank."""
    opposite = {"Squeeze": "Unsqueeze", "Unsqueeze": "Squeeze"}.get(node.op_type)
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    if opposite is None or before is None or not is_op(before, opposite):
        return None
    axes, others = _axes(node, work), _axes(before, work)
    if not axes or not others or sorted(axes) != sorted(others) or min(axes) < 0:
        return None
    return _bypass(node, work, before.inputs[0])


def _axes(node: ir.Node, work: Work) -> tuple[int, ...] | None:
    return static(_ask(node, work).vector("axes", 1, 13))


def _ask(node: ir.Node, work: Work) -> Question:
    facts = tuple(work.facts.of(value) for value in node.inputs)
    return Question(node, facts, work.opset(node))


def _skip_view_before(node: ir.Node, work: Work) -> Result:
    """Reshape to sizes that do not refer to the input's: what shape it had does not matter."""
    source = node.inputs[0]
    before = source.producer() if source is not None else None
    if source is None or before is None or not is_op(before, *_VIEWS) or before.inputs[0] is None:
        return None
    if node.op_type != "Reshape" or source.is_graph_output() or len(source.uses()) > 1:
        return None
    target = static(_ask(node, work).vector("shape", 1, 5))
    if target is None or 0 in target or work.opset(node) < 5:
        return None
    work.set_input(node, 0, before.inputs[0])
    return Applied()


def _expand(node: ir.Node, work: Work) -> Result:
    before, after = work.facts.of(node.inputs[0]).dims, work.facts.of(node.outputs[0]).dims
    if before is None or before != after:
        return None
    return _bypass(node, work, node.inputs[0])


def _dropout(node: ir.Node, work: Work) -> Result:
    if work.opset(node) < 7:
        attribute = node.attributes.get("is_test")
        if attribute is None or attribute.is_ref() or not attribute.as_int():
            return "Dropout runs in training mode"
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        mode = constant(node.inputs[2])
        if mode is None or bool(mode.numpy()):
            return "Dropout runs in training mode"
    if any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
        return "the mask of Dropout is used"
    return _bypass(node, work, node.inputs[0])


def _pad(node: ir.Node, work: Work) -> Result:
    attribute = "pads" if work.opset(node) >= 2 else "paddings"
    pads = static(_ask(node, work).vector(attribute, 1, 11))
    if pads is None or any(pads):
        return None
    return _bypass(node, work, node.inputs[0])


def _concat(node: ir.Node, work: Work) -> Result:
    if len(node.inputs) != 1:
        return None
    return _bypass(node, work, node.inputs[0])


def _slice(node: ir.Node, work: Work) -> Result:
    question = _ask(node, work)
    ranges = slice_ranges(question)
    dims = question.input(0).dims
    if ranges is None or dims is None:
        return None
    for axis, (start, end, step) in ranges.items():
        size = dims[axis]
        last = size if isinstance(size, int) else _TO_THE_END
        if start != 0 or step != 1 or end < last:
            return None
    return _bypass(node, work, node.inputs[0])


_NEUTRAL = {
    # Which operand may be neutral, and the value; -0.0 is the neutral element of float addition:
    # x + 0.0 turns -0.0 into 0.0.
    "Mul": ((0, 1), 1.0),
    "Div": ((1,), 1.0),
    "Add": ((0, 1), -0.0),
    "Sub": ((1,), 0.0),
}


def _neutral(node: ir.Node, work: Work) -> Result:
    operands, neutral = _NEUTRAL[node.op_type]
    if work.opset(node) < 7 or len(node.inputs) != 2:
        return None
    for operand in operands:
        tensor = constant(node.inputs[operand])
        if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
            continue
        other = node.inputs[1 - operand]
        if _is_exactly(tensor, neutral) and _has_rank(other, len(tensor.shape), work):
            return _bypass(node, work, other)
    return None


def _has_rank(value: ir.Value | None, rank: int, work: Work) -> bool:
    """Tell whether the value certainly has at least so many axes."""
    if not rank:
        return True
    dims = work.facts.of(value).dims
    return dims is not None and len(dims) >= rank


def _is_exactly(tensor: ir.TensorProtocol, number: float) -> bool:
    array = tensor.numpy().reshape(-1)
    if array.dtype.kind in "iu":
        return bool(array[0] == number)
    if array.dtype.kind != "f":
        return False
    return bool(array[0] == number) and bool(np.signbit(array[0]) == np.signbit(number))


RULES = (
    Rule("identities_removed", ("Identity",), _identity),
    Rule("casts_removed", ("Cast",), _cast),
    Rule("transposes_removed", ("Transpose",), _transpose),
    Rule("reshapes_removed", _VIEWS, _view),
    Rule("expands_removed", ("Expand",), _expand),
    Rule("dropouts_removed", ("Dropout",), _dropout),
    Rule("pads_removed", ("Pad",), _pad),
    Rule("concats_removed", ("Concat",), _concat),
    Rule("slices_removed", ("Slice",), _slice),
    Rule("arithmetic_removed", tuple(_NEUTRAL), _neutral),
)
"""All rules of ``eliminate``; each keeps every output bit for bit."""
