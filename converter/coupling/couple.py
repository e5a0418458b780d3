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
    choices = Choices(shapes, heads=units != "channels")
    return _resolved(_propagated(model, shapes, choices, frozen_nodes), units)


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
        reasons=found.reasons(),
    )
