"""Removing atoms from a model: the graph stays as it is, its axes get shorter.

Nodes and values keep their names. All that depends on sizes follows: constants, attributes such as
the groups of a Conv, shapes and indices that nodes read as inputs, and the shapes that the file
tells about values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from passes.coupling import attributes
from passes.coupling.edit import Edit
from passes.coupling.kept import Axis, Keep, Kept, changed
from passes.coupling.operands import RULES
from passes.coupling.sizes import Sizes
from passes.coupling.unshare import slice_constants

if TYPE_CHECKING:
    from converter.coupling.structure import Coupling

Array = np.ndarray[Any, Any]


def cut(model: ir.Model, coupling: Coupling, alive: Array) -> Kept:
    """Remove atoms from a model, in place.

    Args:
        model: The model that was coupled; its coupling is of no use afterwards.
        coupling: Its atoms.
        alive: bool (atoms,): those that stay. No axis may lose all of its indices, and equal
            numbers must stay in each block of a component that has blocks.

    Returns:
        The indices that are left, by name of the value, for every node output and every constant
        of the main graph that changed.

    Raises:
        ValueError: An axis would have no index left, or an index is read whose atom is gone.
    """
    keep = Keep(coupling, alive)
    kept = _outputs(keep)
    if not kept and not _any_use(keep):
        return {}
    edit = Edit(model)
    sizes = Sizes(model, keep)
    imports = model.graph.opset_imports
    attributes.update(list(model.graph), keep, lambda domain: imports.get(domain) or 1)
    kept.update(slice_constants(edit, keep))
    sizes.update(edit, RULES)
    _tell_shapes(model, kept)
    return kept


def _outputs(keep: Keep) -> dict[str, tuple[Axis, ...]]:
    """Return what is left of the node outputs that change."""
    kept = {}
    for value, atoms in keep.coupling.values.items():
        axes = keep.axes(atoms)
        _refuse_empty(value, axes)
        if changed(axes):
            kept[value.name or ""] = axes
    return kept


def _any_use(keep: Keep) -> bool:
    found = False
    for (node, position), atoms in keep.coupling.uses.items():
        axes = keep.axes(atoms)
        value = node.inputs[position]
        if value is not None:
            _refuse_empty(value, axes)
        found = found or changed(axes)
    return found


def _refuse_empty(value: ir.Value, axes: tuple[Axis, ...]) -> None:
    for axis, left in enumerate(axes):
        if left is not None and not len(left):
            raise ValueError(f"nothing would be left of axis {axis} of {value.name!r}")


def _tell_shapes(model: ir.Model, kept: Kept) -> None:
    """Correct the sizes that the file tells about values."""
    for node in model.graph:
        for value in node.outputs:
            axes = kept.get(value.name or "")
            if axes is None or value.shape is None or g.constant(value) is not None:
                continue
            dims = [
                len(left) if left is not None and isinstance(size, int) else size
                for size, left in zip(value.shape, axes, strict=True)
            ]
            value.shape = ir.Shape(dims)
