"""Operators that return their input as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converter.core.graph import constant
from passes.elimination.look import ask, bypass
from passes.rewriting.facts import static
from passes.rewriting.question import axis_in
from passes.rewriting.rule import Result, Rule
from passes.rewriting.work import Work

if TYPE_CHECKING:
    import onnx_ir as ir

_LONGEST_GATHER = 4096  # indices read to see whether they count up


def _identity(node: ir.Node, work: Work) -> Result:
    return bypass(node, work, node.inputs[0])


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
    return bypass(node, work, node.inputs[0])


def _only_input(node: ir.Node, work: Work) -> Result:
    """Concat, Sum, Mean, Max or Min of one tensor."""
    return bypass(node, work, node.inputs[0]) if len(node.inputs) == 1 else None


def _only_output(node: ir.Node, work: Work) -> Result:
    """Split into one part."""
    return bypass(node, work, node.inputs[0]) if len(node.outputs) == 1 else None


def _one_block(node: ir.Node, work: Work) -> Result:
    """DepthToSpace or SpaceToDepth with blocks of one element."""
    return bypass(node, work, node.inputs[0]) if ask(node, work).integer("blocksize") == 1 else None


def _pad(node: ir.Node, work: Work) -> Result:
    attribute = "pads" if work.opset(node) >= 2 else "paddings"
    pads = static(ask(node, work).vector(attribute, 1, 11))
    if pads is None or any(pads):
        return None
    return bypass(node, work, node.inputs[0])


def _gather_all(node: ir.Node, work: Work) -> Result:
    """Gather of 0, 1, 2 and so on to the last index of the axis."""
    question = ask(node, work)
    indices, dims = constant(node.inputs[1]), question.input(0).dims
    if indices is None or dims is None or len(indices.shape) != 1:
        return None
    axis = axis_in(question.integer("axis", 0), len(dims))
    if axis is None or dims[axis] != indices.size or indices.size > _LONGEST_GATHER:
        return None
    size = indices.size
    counts_up = all(int(i) % size == at for at, i in enumerate(indices.numpy()))
    return bypass(node, work, node.inputs[0]) if counts_up else None


_ORDERED = frozenset({"ReduceMax", "ReduceMin", "ReduceProd"})
_INTEGER = frozenset({"ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"})


def _reduce_one(node: ir.Node, work: Work) -> Result:
    """Reduce over axes of size 1; a floating-point sum of one number turns -0.0 into 0.0."""
    before, after = work.facts.of(node.inputs[0]), work.facts.of(node.outputs[0])
    if before.dims is None or before.dims != after.dims or before.dtype is None:
        return None
    question = ask(node, work)
    since = 13 if node.op_type == "ReduceSum" else 18
    axes = static(question.vector("axes", 1, since))
    if axes is None and (question.has(1) or not all(size == 1 for size in before.dims)):
        return None
    if any(before.dims[axis] != 1 for axis in axes or ()):
        return None
    if not axes and not all(size == 1 for size in before.dims):
        return None
    if node.op_type not in (_INTEGER if before.dtype.is_integer() else _ORDERED):
        return "a sum of one number turns -0.0 into 0.0"
    return bypass(node, work, node.inputs[0])


RULES = (
    Rule("identities_removed", ("Identity",), _identity),
    Rule("dropouts_removed", ("Dropout",), _dropout),
    Rule("concats_removed", ("Concat",), _only_input),
    Rule("arithmetic_removed", ("Sum", "Mean", "Max", "Min"), _only_input),
    Rule("splits_removed", ("Split",), _only_output),
    Rule("blocks_removed", ("DepthToSpace", "SpaceToDepth"), _one_block),
    Rule("pads_removed", ("Pad",), _pad),
    Rule("gathers_removed", ("Gather",), _gather_all),
    Rule(
        "reductions_removed",
        ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"),
        _reduce_one,
    ),
)
"""Operators that return their input as it is."""
