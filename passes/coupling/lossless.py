"""Remove what changes nothing: atoms that nobody reads, that are constant, or that exist twice.

This comes before any lossy removal. Constants go into the biases of the layers that read them, and
the columns of an equal atom are added to those of the one that stays. Every edit leaves the model
computing the same, also while the atoms are still there, because the columns of what is to go
become zero: nothing depends on the cut that follows.

An atom can go when at each of its sinks it is zero, or the sink does not look at it, or it is a
constant that the sink's bias can take over. That is not the case behind the zero padding of a Conv,
and never where the number of atoms counts (means, norms).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.graph import Names, constant_array
from converter.coupling.structure import Component, Coupling, Sink
from passes.coupling.constancy import Constancy, Known
from passes.coupling.equality import Equality
from passes.coupling.layers import can_shift, replace_constant, shift
from passes.importance.weights import weight_of

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
_ROUNDS = 32
_COUNTS = frozenset(
    {"mean", "greatest", "least", "layer_norm", "rms_norm", "group_norm", "instance_norm"}
)
"""Kinds of sinks at which even a zero counts."""
_OPAQUE = frozenset({"recurrent", "heads"})
"""Kinds of sinks that do more than multiply with a weight: their values are not followed."""


@dataclass(frozen=True, eq=False)
class Exact:
    """What can go without any change of the outputs.

    Attributes:
        coupling: Of the model as it is now: it may have been edited.
        alive: bool (atoms,): what is left.
        unread: Atoms whose values nobody looks at.
        constant: Atoms that are the same for every sample.
        equal: Atoms that equal another one.
    """

    coupling: Coupling
    alive: Array
    unread: int = 0
    constant: int = 0
    equal: int = 0

    @property
    def removed(self) -> int:
        """Number of atoms that can go."""
        return int(self.alive.size - np.count_nonzero(self.alive))

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what goes, for the report."""
        parts = (
            (self.unread, "that nothing reads"),
            (self.constant, "that are constant"),
            (self.equal, "that equal another one"),
        )
        said = ", ".join(f"{count} {what}" for count, what in parts if count)
        return (f"removed exactly, without any change of the outputs: {said}",) if said else ()


def find_exact(
    model: ir.Model,
    coupled: Callable[[ir.Model], Coupling],
    allowed: Callable[[Component], bool] | None = None,
) -> Exact:
    """Find all atoms that can go without any change of the outputs, up to rounding.

    Args:
        model: Weights and biases are edited in place, such that its outputs stay the same; its
            nodes and values keep their names.
        coupled: Couples the model; called again after every edit.
        allowed: Tells whether a component may lose atoms; None: all may.

    Returns:
        What to cut, in the coupling of the edited model.
    """
    coupling = coupled(model)
    equal = constant = 0
    for _ in range(_ROUNDS):
        chosen = [c for c in coupling.components if allowed is None or allowed(c)]
        search = _Search(model, coupling, [c for c in chosen if c.sinks])
        search.run()
        absorbed = search.absorb()
        merged = 0 if absorbed else search.merge()
        constant, equal = constant + absorbed, equal + merged
        if not absorbed and not merged:
            break
        coupling = coupled(model)
    unread = search.gone - search.zeros - constant - equal
    return Exact(coupling, search.alive, max(unread, 0), constant + search.zeros, equal)


class _Search:
    """One round over a model that is not edited in between.

    Attributes:
        components: Those that may lose atoms; each has a sink.
        alive: bool (atoms,): without those that are found to go.
        zeros: Atoms that go because they are zero.
    """

    def __init__(
        self, model: ir.Model, coupling: Coupling, components: Sequence[Component]
    ) -> None:
        self.coupling = coupling
        self.components = components
        self.alive = coupling.all_alive()
        self.zeros = 0
        self._names = Names(model)
        self._constancy = Constancy(model, coupling)
        self._equality = Equality(model, coupling, self._constancy.layers)

    @property
    def gone(self) -> int:
        """Number of atoms found."""
        return int(self.alive.size - np.count_nonzero(self.alive))

    def run(self) -> None:
        """Find atoms that can go as the model is, until there are no more."""
        before = -1
        while self.gone != before:
            before = self.gone
            for component in self.components:
                self._plain(component)

    def _plain(self, component: Component) -> None:
        """Mark the atoms of a component that are zero or unread at all of its sinks."""
        atoms = component.atoms
        if not self.alive[atoms].any():
            return
        free, zero_somewhere = self.alive[atoms].copy(), np.zeros(atoms.size, bool)
        for sink in component.sinks:
            if sink.kind in _COUNTS or not free.any():
                return
            unread = ~self._read(sink, atoms)
            zero = self._zero(sink, atoms)
            zero_somewhere |= zero & ~unread
            free &= unread | zero
        taken = self._leave_some(component, free)
        self.zeros += int(np.count_nonzero(taken & zero_somewhere))
        self.alive[atoms[taken]] = False

    def _leave_some(self, component: Component, free: Array) -> Array:
        """Keep one atom of every block, and the same number in all blocks."""
        left = self.alive[component.atoms]
        taken = np.zeros(free.size, bool)
        blocks = np.zeros(free.size, int) if component.blocks is None else component.blocks
        rows = [np.flatnonzero((blocks == b) & left) for b in np.unique(blocks)]
        count = min((min(int(free[r].sum()), r.size - 1) for r in rows), default=0)
        for row in rows:
            taken[row[free[row]][::-1][: max(count, 0)]] = True
        return taken

    # --- what sinks see ---------------------------------------------------------------------------

    def _labels(self, node: ir.Node, position: int, axis: int) -> Array | None:
        axes = self.coupling.uses.get((node, position), ())
        return axes[axis] if axis < len(axes) else None

    def _read(self, sink: Sink, atoms: Array) -> Array:
        """Return which atoms meet a weight that is not zero: bool (atoms,).

        Rows of the weight that make atoms found to go do not count.
        """
        everything = np.ones(atoms.size, bool)
        if sink.weight is None or sink.weight_axis is None or sink.kind in _OPAQUE:
            return everything
        weight = weight_of(sink.node.inputs[sink.weight])
        axes = self.coupling.uses.get((sink.node, sink.weight), ())
        labels = self._labels(sink.node, sink.weight, sink.weight_axis)
        if weight is None or labels is None or labels.size != weight.shape[sink.weight_axis]:
            return everything
        for axis, rows in enumerate(axes):
            if axis == sink.weight_axis or rows is None or rows.size != weight.shape[axis]:
                continue
            kept = np.append(self.alive, True)[rows]
            if not kept.all():
                weight = np.compress(kept, weight, axis)
        others = tuple(a for a in range(weight.ndim) if a != sink.weight_axis)
        columns = (weight != 0).any(axis=others)
        return np.isin(atoms, labels[columns]) | ~np.isin(atoms, labels)

    def _zero(self, sink: Sink, atoms: Array) -> Array:
        """Return which atoms are zero where the sink reads them: bool (atoms,)."""
        if sink.kind in _OPAQUE:
            return np.zeros(atoms.size, bool)
        known = [self._constancy.at(sink.node.inputs[sink.position])]
        if sink.kind == "product":
            known += [self._constancy.at(v) for v in sink.node.inputs[:2]]
        return np.array([any(k.get(a) == 0 for k in known) for a in atoms.tolist()], bool)

    # --- constants into biases --------------------------------------------------------------------

    def absorb(self) -> int:
        """Move constants into the biases of all layers that read them; return how many atoms."""
        done = 0
        edited: set[ir.Node] = set()
        for component in self.components:
            places = [self._place(sink) for sink in component.sinks]
            if any(p is None for p in places):
                continue
            found = self.alive[component.atoms].copy()
            for sink, known in zip(component.sinks, places, strict=True):
                assert known is not None
                can = self._can_absorb(sink)
                allowed = np.array(
                    [a in known and (can or known[a] == 0) for a in component.atoms.tolist()], bool
                )
                found &= allowed | ~self._read(sink, component.atoms)
            atoms = component.atoms[self._leave_some(component, found)]
            nodes = {sink.node for sink in component.sinks}
            if not atoms.size or nodes & edited:
                continue
            edited |= nodes
            for sink, known in zip(component.sinks, places, strict=True):
                assert known is not None
                self._take_over(sink, known, atoms)
            done += int(atoms.size)
        return done

    def _place(self, sink: Sink) -> Known | None:
        """Return the constants at a sink, or None where nothing can be taken over."""
        if sink.kind in _COUNTS or sink.kind in _OPAQUE:
            return None
        return self._constancy.at(sink.node.inputs[sink.position])

    def _can_absorb(self, sink: Sink) -> bool:
        layer = self._constancy.layers.get(sink.node)
        if layer is None or sink.position != 0 or sink.weight != 1 or layer.uneven:
            return False
        labels = self._labels(sink.node, 0, sink.axis)
        return (
            sink.axis == layer.axis
            and labels is not None
            and labels.size == layer.columns
            and can_shift(layer)
            and _own(sink.node.inputs[1])
        )

    def _take_over(self, sink: Sink, known: Known, atoms: Array) -> None:
        """Add what constant atoms contribute to a sink to its bias, and clear their columns."""
        labels = self._labels(sink.node, sink.position, sink.axis)
        numbers = {a: known[a] for a in atoms.tolist() if known.get(a)}
        if not numbers or labels is None:
            return
        layer = self._constancy.layers[sink.node]
        inputs = np.zeros(labels.size)
        for atom, number in numbers.items():
            inputs[labels == atom] = number
        groups, rows, columns, _ = layer.weight.shape
        amount = (layer.sums() * inputs.reshape(groups, 1, columns)).sum(axis=2)
        shift(layer, amount.reshape(groups * rows), self._names)
        self._move_columns(sink, dict.fromkeys(numbers))

    # --- equal atoms ------------------------------------------------------------------------------

    def merge(self) -> int:
        """Add the columns of equal atoms to those of the first one; return how many atoms."""
        done = 0
        edited: set[ir.Node] = set()
        for component in self.components:
            nodes = {sink.node for sink in component.sinks}
            if nodes & edited or not all(map(self._can_merge, component.sinks)):
                continue
            target = self._targets(component)
            found = np.array([a in target for a in component.atoms.tolist()], bool)
            atoms = component.atoms[self._leave_some(component, found)].tolist()
            if not atoms:
                continue
            for sink in component.sinks:
                self._move_columns(sink, {a: target[a] for a in atoms})
            edited |= nodes
            done += len(atoms)
        return done

    def _can_merge(self, sink: Sink) -> bool:
        if sink.kind != "weights" or sink.weight is None or sink.weight_axis is None:
            return False
        return _own(sink.node.inputs[sink.weight])

    def _targets(self, component: Component) -> dict[int, int]:
        """Return for every atom that equals an earlier one that one."""
        values = dict.fromkeys(s.node.inputs[s.position] for s in component.sinks)
        classes = [self._equality.at(value) for value in values]
        first: dict[Hashable, int] = {}
        found: dict[int, int] = {}
        for atom in component.atoms[self.alive[component.atoms]].tolist():
            if all(atom in c for c in classes):
                key = tuple(c[atom] for c in classes)
                if key in first:
                    found[atom] = first[key]
                first.setdefault(key, atom)
        return found

    def _move_columns(self, sink: Sink, target: Mapping[int, int | None]) -> None:
        """Add columns of a sink's weight to others (None: to none), and set them to zero."""
        assert sink.weight is not None
        assert sink.weight_axis is not None
        old = constant_array(sink.node.inputs[sink.weight])
        labels = self._labels(sink.node, sink.weight, sink.weight_axis)
        assert old is not None
        assert labels is not None
        columns = np.moveaxis(old.copy(), sink.weight_axis, 0)
        for atom, other in target.items():
            source = np.flatnonzero(labels == atom)
            if other is not None:
                columns[np.flatnonzero(labels == other)] += columns[source]
            columns[source] = 0
        new = np.ascontiguousarray(np.moveaxis(columns, 0, sink.weight_axis))
        replace_constant(sink.node, sink.weight, new, self._names)


def _own(value: ir.Value | None) -> bool:
    """Tell whether a weight is a plain constant that nothing else reads."""
    if value is None or constant_array(value) is None:
        return False
    return len(list(value.uses())) == 1 and not value.is_graph_output()
