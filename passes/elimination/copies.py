"""Expand, Tile, Resize and Upsample that make no element more, or none that anybody would miss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from converter.core.graph import constant, is_op
from passes.elimination.look import MOST_USERS, ask, bypass, is_plain
from passes.rewriting.facts import static
from passes.rewriting.question import broadcast
from passes.rewriting.rule import Result, Rule
from passes.rewriting.work import Work

if TYPE_CHECKING:
    import onnx_ir as ir

_BROADCASTING = (
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow Sub Sum "
    "Where Xor"
)
_TILE_REPEATS_SINCE = 6
_COPYING_MODES = frozenset(
    {"half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"}
)
"""Coordinates for which a scale of 1 gives each element back; cropping does not."""


def _expand(node: ir.Node, work: Work) -> Result:
    before, after = work.facts.of(node.inputs[0]).dims, work.facts.of(node.outputs[0]).dims
    if before is None:
        return None
    if before == after:
        return bypass(node, work, node.inputs[0])
    output = node.outputs[0]
    if after is None or output.is_graph_output() or len(output.uses()) > MOST_USERS:
        return None
    if all(_broadcasts_anyway(user, output, node.inputs[0], work) for user in output.consumers()):
        return bypass(node, work, node.inputs[0])
    return None


def _broadcasts_anyway(
    user: ir.Node, expanded: ir.Value, source: ir.Value | None, work: Work
) -> bool:
    """Tell whether the user's result has the same dimensions without the Expand."""
    if not is_op(user, *_BROADCASTING.split()) or not is_plain(user, work) or work.opset(user) < 8:
        return False
    after = work.facts.of(user.outputs[0]).dims
    values = [source if value is expanded else value for value in user.inputs]
    without = broadcast(*(work.facts.of(value).dims for value in values))
    return without is not None and without == after


def _tile(node: ir.Node, work: Work) -> Result:
    if work.opset(node) < _TILE_REPEATS_SINCE:
        return None
    repeats = static(ask(node, work).input(1).content)
    if repeats is None or any(count != 1 for count in repeats):
        return None
    return bypass(node, work, node.inputs[0])


def _resize(node: ir.Node, work: Work) -> Result:
    """Resize to the size that the input has."""
    mode = node.attributes.get("coordinate_transformation_mode")
    if mode is not None and mode.as_string() not in _COPYING_MODES:
        return None
    policy = node.attributes.get("keep_aspect_ratio_policy")
    if policy is not None and policy.as_string() != "stretch":
        return None
    scales = _scales(node, work)
    if scales is not None:
        if all(scale == 1.0 for scale in scales):
            return bypass(node, work, node.inputs[0])
        return None
    return _keeps_sizes(node, work)


def _scales(node: ir.Node, work: Work) -> tuple[float, ...] | None:
    """Return the factors if they are given as constants."""
    if node.op_type == "Upsample" and work.opset(node) < 9:
        attribute = node.attributes.get("scales")
        return None if attribute is None else tuple(attribute.as_floats())
    index = 1 if node.op_type == "Upsample" or work.opset(node) < 11 else 2
    tensor = constant(node.inputs[index]) if len(node.inputs) > index else None
    if tensor is None or tensor.size == 0:
        return None
    return tuple(float(scale) for scale in np.asarray(tensor.numpy()).reshape(-1))


def _keeps_sizes(node: ir.Node, work: Work) -> Result:
    question = ask(node, work)
    target, dims = question.input(3).content, question.input(0).dims
    if node.op_type != "Resize" or work.opset(node) < 11 or target is None or dims is None:
        return None
    axes = question.integers("axes") or tuple(range(len(dims)))
    if len(axes) != len(target) or any(not -len(dims) <= axis < len(dims) for axis in axes):
        return None
    if any(dims[axis] != size for axis, size in zip(axes, target, strict=True)):
        return None
    return bypass(node, work, node.inputs[0])


RULES = (
    Rule("expands_removed", ("Expand",), _expand),
    Rule("tiles_removed", ("Tile",), _tile),
    Rule("resizes_removed", ("Resize", "Upsample"), _resize),
)
"""Copies that nobody needs."""
