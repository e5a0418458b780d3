"""Constants lose the indices of removed atoms; one that is read in different ways is copied.

Exporters store equal constants once, so the biases of two layers may be one initializer although
the layers have nothing to do with each other. Every use says what is left of it. When the uses
differ, each distinct part becomes an initializer of its own and the first one keeps the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from converter.core import graph as g
from passes.coupling.edit import Edit, set_constant
from passes.coupling.kept import Axis, Keep, changed, key, take

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.coupling.structure import Use

_OPERANDS: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Gather": (1,),
    "MaxUnpool": (2,),
    "Pad": (1, 3),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
"""Inputs that hold sizes, indices or axes: they are computed anew and never sliced."""


def is_operand(node: ir.Node, position: int) -> bool:
    """Tell whether an input holds sizes, indices or axes."""
    return g.is_op(node, node.op_type) and position in _OPERANDS.get(node.op_type, ())


def slice_constants(edit: Edit, keep: Keep) -> dict[str, tuple[Axis, ...]]:
    """Remove what is not kept from all constants of the main graph.

    Returns:
        What is left, by name of the constant, for those that changed.
    """
    done: dict[str, tuple[Axis, ...]] = {}
    for value, parts in _wanted(edit.model, keep).items():
        done.update(_slice(edit, value, parts))
    return done


_Parts = dict[tuple[bytes | None, ...], tuple[tuple[Axis, ...], list["Use"]]]


def _wanted(model: ir.Model, keep: Keep) -> dict[ir.Value, _Parts]:
    """Return the parts of each constant that are asked for, with the uses of each."""
    found: dict[ir.Value, _Parts] = {}
    for node in model.graph:
        for position, value in enumerate(node.inputs):
            if value is None or g.constant(value) is None:
                continue
            use = (node, position)
            axes: tuple[Axis, ...] = ()
            if not is_operand(*use):
                axes = keep.axes(keep.coupling.uses.get(use))
            if not changed(axes):
                axes = ()
            found.setdefault(value, {}).setdefault(key(axes), (axes, []))[1].append(use)
    return {value: parts for value, parts in found.items() if len(parts) > 1 or () not in parts}


def _slice(edit: Edit, value: ir.Value, parts: _Parts) -> dict[str, tuple[Axis, ...]]:
    tensor = g.constant(value)
    assert tensor is not None
    array = tensor.numpy()
    told = sum(len(uses) for _, uses in parts.values())
    whole = value.is_graph_output() or len(value.uses()) > told  # sub-graphs read it, too
    first = () if whole or () in parts else next(iter(parts))
    done: dict[str, tuple[Axis, ...]] = {}
    for name, (axes, uses) in parts.items():
        if not axes:
            continue
        part = take(array, axes)
        if name == first:
            set_constant(value, part)
            done[value.name or ""] = axes
            continue
        made = edit.constant(value.name or "constant", part)
        done[made.name or ""] = axes
        for node, position in uses:
            node.replace_input_with(position, made)
    return done
