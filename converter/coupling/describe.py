"""A coupling in words and figures, for people: what can be removed, what cannot, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from converter.core.contract import Event

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from converter.core.select import Selection
    from converter.coupling.structure import Component, Coupling

Array = np.ndarray[Any, Any]
_RULE = "coupling"
_MOST = 8
_PLURAL = {"channel": "channels", "head": "heads", "hidden": "hidden units"}
_SUMMED = {
    "weights": "multiplied by weights",
    "product": "multiplied by another activation",
    "sum": "summed up",
    "mean": "averaged",
    "greatest": "compared, the greatest is taken",
    "least": "compared, the least is taken",
    "layer_norm": "normalized over",
    "rms_norm": "normalized over",
    "group_norm": "normalized over in groups",
    "instance_norm": "normalized over",
    "recurrent": "fed back",
    "heads": "worked on head by head",
}


@dataclass(frozen=True)
class ComponentRow:
    """One component.

    Attributes:
        name: First node that makes it.
        unit: "channel", "head" or "hidden".
        atoms: How many there are, each of which can be removed alone.
        blocks: Equal numbers must be left in so many blocks; 1: no such rule.
        macs: Share of the multiply-accumulates that goes when all but one are removed.
        parameters: Share of the weights, likewise.
        made_by: Nodes whose weights make it.
        read_by: Nodes that sum over it.
    """

    name: str
    unit: str
    atoms: int
    blocks: int
    macs: float
    parameters: float
    made_by: tuple[str, ...]
    read_by: tuple[str, ...]


@dataclass(frozen=True)
class FrozenRow:
    """Indices that cannot be removed: the node that makes them, how many, why."""

    subject: str
    size: int
    reason: str


@dataclass(frozen=True)
class Description:
    """All components of a model, in the order of the graph, and what is frozen.

    Attributes:
        macs: Multiply-accumulates of the whole model.
        parameters: Weights of the whole model.
        components: What can be removed.
        frozen: What cannot, the largest first.
        answers: What was asked of single nodes.
    """

    macs: int
    parameters: int
    components: tuple[ComponentRow, ...]
    frozen: tuple[FrozenRow, ...]
    answers: tuple[Event, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return asdict(self)


def describe(model: ir.Model, coupling: Coupling, asked: Selection | None = None) -> Description:
    """Return what ``convert inspect --coupling`` shows.

    Args:
        model: The model that was coupled.
        coupling: Its coupling.
        asked: Nodes to give account of.
    """
    macs, parameters = coupling.macs(), coupling.parameters()
    rows = []
    for component in coupling.components:
        alive = coupling.all_alive()
        alive[component.atoms[1:]] = False
        rows.append(
            ComponentRow(
                name=component.name,
                unit=component.unit,
                atoms=len(component.atoms),
                blocks=_blocks(component),
                macs=1 - coupling.macs(alive) / max(macs, 1),
                parameters=1 - coupling.parameters(alive) / max(parameters, 1),
                made_by=_names(node for node, _, _ in component.producers),
                read_by=_names(sink.node for sink in component.sinks),
            )
        )
    frozen = sorted(coupling.frozen, key=lambda row: -row.size)
    return Description(
        macs,
        parameters,
        tuple(rows),
        tuple(FrozenRow(row.subject, row.size, row.reason) for row in frozen),
        () if asked is None else (*_unmatched(model, asked), *explain(model, coupling, asked)),
    )


def _unmatched(model: ir.Model, asked: Selection) -> Iterator[Event]:
    for pattern in asked.unmatched(list(model.graph)):
        yield Event(pattern, _RULE, "matches no node")


def explain(model: ir.Model, coupling: Coupling, asked: Selection) -> tuple[Event, ...]:
    """Say of each node that was asked for what it makes and reads, and what of it stays, why.

    Args:
        model: The model that was coupled.
        coupling: Its coupling.
        asked: The nodes.
    """
    owner = np.full(coupling.size + 1, -1)
    for component in coupling.components:
        owner[component.atoms] = component.index
    events = []
    for node in model.graph:
        if node in asked and not g.is_op(node, "Constant"):
            said = [*_made(node, coupling, owner), *_read(node, coupling, owner)]
            events += [Event(g.label(node), _RULE, what) for what in said or [_NOTHING]]
    return tuple(events)


_NOTHING = "nothing that could be removed goes through it"


def _made(node: ir.Node, coupling: Coupling, owner: Array) -> Iterator[str]:
    for output in node.outputs:
        for axis, atoms in enumerate(coupling.values.get(output, ())):
            for index in _owners(atoms, owner):
                part = coupling.components[index]
                count = int(np.isin(_inside(atoms), part.atoms).sum())
                yield f"axis {axis} of {output.name}: {count} indices belong to {_title(part)}"
        for axis, count, reason in coupling.reasons.get(output, ()):
            yield f"axis {axis} of {output.name}: {count} indices stay: {reason}"


def _read(node: ir.Node, coupling: Coupling, owner: Array) -> Iterator[str]:
    for component in coupling.components:
        for sink in component.sinks:
            if sink.node is node:
                atoms = coupling.uses[node, sink.position][sink.axis]
                count = sum(index == component.index for index in owner[_inside(atoms)].tolist())
                yield (
                    f"input {sink.position}, axis {sink.axis}: {count} indices of "
                    f"{_title(component)} are {_SUMMED[sink.kind]} here"
                )


def _inside(atoms: Array | None) -> Array:
    return np.zeros(0, np.int64) if atoms is None else atoms[atoms >= 0]


def _owners(atoms: Array | None, owner: Array) -> list[int]:
    return [int(index) for index in np.unique(owner[_inside(atoms)])]


def _title(component: Component) -> str:
    blocks = _blocks(component)
    rule = f", equal numbers in {blocks} blocks" if blocks > 1 else ""
    units = _PLURAL[component.unit]
    return f"{component.name} ({len(component.atoms)} {units} to choose from{rule})"


def _blocks(component: Component) -> int:
    return 1 if component.blocks is None else len(np.unique(component.blocks))


def _names(nodes: Iterator[ir.Node]) -> tuple[str, ...]:
    found = list(dict.fromkeys(g.label(node) for node in nodes))
    more = len(found) - _MOST
    return (*found[:_MOST], f"and {more} more") if more > 0 else tuple(found)
