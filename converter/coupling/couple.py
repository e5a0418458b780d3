"""Couple a model: which indices of which axes can only be removed together, and which never."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from converter.core import graph as g
from converter.coupling.components import Components
from converter.coupling.ends import freeze_ends
from converter.coupling.heads import Choices
from converter.coupling.propagate import Propagation
from converter.coupling.structure import Coupling

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
Units = Literal["all", "channels", "heads"]


def couple(
    model: ir.Model,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    units: Units = "all",
    frozen_nodes: Collection[str] = (),
) -> Coupling:
    """Find the atoms of a model, the components they form, and what is frozen.

    The same model with the same shapes has the same atoms, with the same numbers.

    Args:
        model: Sorted; function bodies inlined. Left as it is.
        shapes: Sizes of the values of the main graph by name, of one run.
        units: "heads": attention heads only; "channels": everything but heads, and within heads
            their dimensions; "all": heads where there are any, and channels.
        frozen_nodes: Names of nodes (of the first output where a node has none) whose outputs
            stay as long as they are.

    Returns:
        The coupling, valid until the model is edited.
    """
    flipped: dict[str, int] = {}
    walk = _propagated(model, shapes, Choices(shapes, heads=units != "channels"), frozen_nodes)
    best = _resolved(walk, units)
    for _ in range(_MOST_FLIPS):
        more = _other_choices(walk, flipped)
        if not more:
            break
        flipped |= more
        choices = Choices(shapes, heads=units != "channels", flipped=flipped)
        walk = _propagated(model, shapes, choices, frozen_nodes)
        other = _resolved(walk, units)
        if _removable(other) <= _removable(best):
            break
        best = other
    return best


_MOST_FLIPS = 2
"""Times that splits of axes whose labels ended up frozen are tried along another axis."""


def _other_choices(walk: Propagation, flipped: Mapping[str, int]) -> dict[str, int]:
    """Return, for splits that led to nothing, the axis with the next most atoms."""
    found = {}
    for node, sizes, axis in walk.splits:
        output = node.outputs[0]
        labels = walk.values.get(output, (None,) * len(sizes))[axis]
        rest = [i for i, size in enumerate(sizes) if size > 1 and i != axis]
        useless = labels is None or walk.union.frozen(labels)
        if useless and rest and output.name and output.name not in flipped:
            found[output.name] = max(rest, key=lambda i: sizes[i])
    return found


def _removable(coupling: Coupling) -> int:
    """Return the multiply-accumulates that can go, one atom of each component left."""
    alive = coupling.all_alive()
    for component in coupling.components:
        alive[component.atoms[1:]] = False
    return coupling.macs() - coupling.macs(alive)


def _propagated(
    model: ir.Model,
    shapes: Mapping[str, tuple[int, ...]],
    choices: Choices,
    frozen_nodes: Collection[str],
) -> Propagation:
    walk = Propagation(model, shapes, choices)
    walk.run()
    freeze_ends(walk)
    _freeze_bodies(walk)
    names = frozenset(frozen_nodes)
    for node in model.graph if names else ():
        if (node.name or node.outputs[0].name) in names:
            for output in node.outputs:
                walk.freeze_all(walk.values.get(output, ()), node, "it is excluded")
    return walk


def _freeze_bodies(walk: Propagation) -> None:
    """Freeze values of the main graph that the bodies of If, Loop and Scan read."""
    for graph in g.graphs(walk.model):
        if graph is walk.model.graph:
            continue
        for node in graph:
            for value in node.inputs:
                if value in walk.values:
                    walk.freeze_all(walk.values[value], value.producer(), _BODY)
                elif value is not None:
                    walk.freeze_all(walk.shared(value), node, _BODY)
        for value in graph.outputs:
            walk.freeze_all(walk.values.get(value, ()), value.producer(), _BODY)


_BODY = "a body of If, Loop or Scan reads it"


def _resolved(walk: Propagation, units: Units) -> Coupling:
    found = Components(walk, units)
    return Coupling(
        size=found.size,
        components=found.components,
        frozen=found.frozen,
        shapes=walk.shapes,
        values=found.values,
        uses=found.uses,
        work=found.work,
        constants=found.constants,
        numbers=walk.sizes.vectors(),
        reasons=found.reasons(),
    )
