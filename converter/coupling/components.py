"""From labels to atoms, components and the list of what is frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from converter.coupling.balance import blocks_of
from converter.coupling.propagate import Propagation, name_of, weight_of
from converter.coupling.structure import Component, Freeze, Use, Work

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.ops.axes.site import Axes

Array = np.ndarray[Any, Any]
Atoms = tuple[Array | None, ...]
Place = tuple["ir.Node", int, int]
_UNITS = ("channel", "head", "hidden")
_WHOLE = "all of its indices can only go together"
_NO_WEIGHTS = ("INT64", "STRING", "BOOL", "UNDEFINED")


class Components:
    """Everything that a coupling holds.

    Args:
        walk: After its run; its labels are united further where blocks cannot be kept apart.
        units: Which components can be removed: "all", "channels" or "heads".
    """

    def __init__(self, walk: Propagation, units: str) -> None:
        self.walk = walk
        self._places = _Places(walk)
        while True:
            self._number(units)
            failing = self._balance()
            for blocks in failing:
                self._unite_rows(blocks)
            if not failing and not self._freeze_single():
                break
        self._translate()
        self.work = tuple(
            Work(work.node, work.factor, tuple(self._atoms(axis) for axis in work.axes))
            for work in walk.work_done
        )
        self.constants = self._constants()
        self.components = tuple(self._build())
        self.frozen = self._frozen()

    def _number(self, units: str) -> None:
        """Give every removable set of labels a number, and every number a component."""
        union, places = self.walk.union, self._places
        self._roots = union.find(places.labels)
        free = union.reason(places.labels) == 0
        made = np.zeros(len(union), bool)
        made[self._roots[places.constant & free]] = True
        seen = np.zeros(len(union), bool)
        seen[self._roots[~places.constant & free]] = True
        for sink in self.walk.sinks:
            labels = self.walk.uses[sink.node, sink.position][sink.axis]
            if labels is not None:
                seen[union.find(labels)] = True
        unit = np.zeros(len(union), np.int64)
        for labels, name in self.walk.marks:
            roots = union.find(labels)
            seen[roots] = True
            unit[roots] = np.maximum(unit[roots], _UNITS.index(name))
        wanted = _wanted(units)[unit]
        roots = np.flatnonzero(made & seen & wanted)
        roots = roots[union.reason(roots) == 0]
        self.size = len(roots)
        self._removable = roots
        self._atom = np.full(len(union), -1)
        self._atom[roots] = np.arange(self.size)
        self._unit = unit[roots]
        entries = self._atom[self._roots]
        inside = entries >= 0
        self._entries = entries
        signature = np.zeros((self.size, 2), np.uint64)
        np.add.at(signature, entries[inside], places.hashes[places.owner[inside]])
        kinds, member = np.unique(signature, axis=0, return_inverse=True)
        outside = inside & places.flowing
        first = np.full(self.size, len(places.keys))
        np.minimum.at(first, entries[outside], places.owner[outside])
        earliest = np.full(len(kinds), len(places.keys) * (self.size + 1) + self.size)
        rank_of = first * (self.size + 1) + np.arange(self.size)
        np.minimum.at(earliest, member.ravel(), rank_of)
        order = np.argsort(earliest, kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        self._component = rank[member.ravel()]
        self._members = [np.flatnonzero(self._component == i) for i in range(len(order))]

    def _freeze_single(self) -> bool:
        """Freeze components of which nothing would be left; return whether there were any."""
        found = False
        for index, atoms in enumerate(self._members):
            blocks = self._blocks.get(index)
            least = 1 if blocks is None else len(np.unique(blocks))
            if len(atoms) <= least:
                self.walk.union.freeze(self._removable[atoms], None, _WHOLE)
                found = True
        return found

    def _atoms(self, labels: Array) -> Array:
        found: Array = self._atom[self.walk.union.find(labels)]
        return found

    def _balance(self) -> list[Array]:
        """Return the constraints that no blocks of a component express."""
        self._blocks: dict[int, Array] = {}
        failing = []
        for labels in self.walk.balances:
            atoms = self._atoms(labels)
            if not blocks_of(atoms, self._component, self._members, self._blocks):
                failing.append(labels)
        return failing

    def _unite_rows(self, blocks: Array) -> None:
        union = self.walk.union
        first = np.tile(blocks[0], len(blocks) - 1)
        rest = blocks[1:].ravel()
        stays = (union.reason(blocks) > 0).any(axis=0)
        union.freeze(blocks[:, stays], None, "other groups of the same operator stay")
        union.unite(first, rest)

    def _translate(self) -> None:
        """Replace labels by atoms in values and uses."""
        cuts = np.split(self._entries, self._places.bounds)
        found: dict[tuple[Any, int], Array | None] = {}
        for key, atoms in zip(self._places.keys, cuts, strict=False):
            found[key] = atoms if (atoms >= 0).any() else None
        walk = self.walk
        self.values: dict[ir.Value, Atoms] = {
            value: tuple(found.get((value, axis)) for axis in range(len(axes)))
            for value, axes in walk.values.items()
        }
        self.uses: dict[Use, Atoms] = {}
        for node in walk.model.graph:
            for position, value in enumerate(node.inputs):
                if value is None:
                    continue
                use = (node, position)
                axes = walk.uses.get(use, ())
                if g.constant(value) is not None and axes:
                    self.uses[use] = tuple(found.get((use, i)) for i in range(len(axes)))
                elif value in self.values:
                    self.uses[use] = self.values[value]
                else:
                    self.uses[use] = (None,) * len(walk.size_of(value) or ())
            for value in node.outputs:
                self.values.setdefault(value, (None,) * len(walk.size_of(value) or ()))

    def _constants(self) -> tuple[tuple[Array, ...], ...]:
        first: dict[ir.Value, Use] = {}
        for node in self.walk.model.graph:
            for position, value in enumerate(node.inputs):
                if value is not None and g.constant(value) is not None:
                    first.setdefault(value, (node, position))
        stay: dict[int, Array] = {}
        found = []
        for value, use in first.items():
            tensor = g.constant(value)
            if tensor is None or tensor.dtype.name in _NO_WEIGHTS:
                continue
            axes = []
            for atoms, size in zip(self.uses[use], tensor.shape.numpy(), strict=True):
                if atoms is None and size not in stay:
                    stay[size] = np.full(size, -1)
                axes.append(stay[size] if atoms is None else atoms)
            found.append(tuple(axes))
        return tuple(found)

    def _build(self) -> list[Component]:
        macs = _shares([(w.factor, w.axes) for w in self.work], self._component, self._members)
        weights = _shares([(1, axes) for axes in self.constants], self._component, self._members)
        names, producers = self._names(), self._producers()
        sinks: dict[int, list[Any]] = {}
        for sink in self.walk.sinks:
            for index in self._touched(self.uses[sink.node, sink.position][sink.axis]):
                sinks.setdefault(index, []).append(sink)
        return [
            Component(
                index=index,
                name=names.get(index, ""),
                unit=_UNITS[int(self._unit[atoms].max())],
                atoms=atoms,
                blocks=self._blocks.get(index),
                producers=tuple(producers.get(index, ())),
                sinks=tuple(sinks.get(index, ())),
                macs=int(macs[index]),
                parameters=int(weights[index]),
            )
            for index, atoms in enumerate(self._members)
        ]

    def _touched(self, atoms: Array | None) -> list[int]:
        if atoms is None:
            return []
        return [int(i) for i in np.unique(self._component[atoms[atoms >= 0]])]

    def _names(self) -> dict[int, str]:
        """Name every component after the first layer that makes it, else the first node."""
        workers = {work.node for work in self.work}
        names: dict[int, tuple[bool, str]] = {}
        for node in self.walk.model.graph:
            works = node in workers
            for output in node.outputs:
                for atoms in self.values[output]:
                    for index in self._touched(atoms):
                        if index not in names or (works and not names[index][0]):
                            names[index] = (works, name_of(node))
        return {index: name for index, (_, name) in names.items()}

    def _producers(self) -> dict[int, list[Place]]:
        """Return the constants that make the atoms: kernels and matrices where there are any."""
        read = {(s.node, s.weight, s.weight_axis) for s in self.walk.sinks}
        large: dict[int, list[Place]] = {}
        small: dict[int, list[Place]] = {}
        for (node, position), axes in self.uses.items():
            value = node.inputs[position]
            if g.constant(value) is None or value is None:
                continue
            sizes = self.walk.size_of(value) or ()
            target = large if sum(size != 1 for size in sizes) > 1 else small
            for axis, atoms in enumerate(axes):
                if (node, position, axis) not in read:
                    for index in self._touched(atoms):
                        target.setdefault(index, []).append((node, position, axis))
        return {**small, **large}

    def _frozen(self) -> tuple[Freeze, ...]:
        """Return what is frozen at outputs of nodes, by the node that makes it and the reason."""
        places, union = self._places, self.walk.union
        reason = union.reason(places.labels)
        made = np.zeros(len(union), bool)
        made[self._roots[places.weights]] = True
        inside = (reason > 1) & places.flowing & made[self._roots]
        _, first = np.unique(self._roots[inside], return_index=True)
        owners, reasons = places.owner[inside][first], reason[inside][first]
        found: dict[tuple[str, str], int] = {}
        for owner, number in zip(owners.tolist(), reasons.tolist(), strict=True):
            value = places.keys[owner][0]
            key = (name_of(value.producer()), union.reasons[number][1])
            found[key] = found.get(key, 0) + 1
        return tuple(Freeze(subject, size, why) for (subject, why), size in found.items())

    def reasons(self) -> dict[ir.Value, tuple[tuple[int, int, str], ...]]:
        """Return why indices of outputs of nodes stay: axis, how many, reason."""
        places, union = self._places, self.walk.union
        numbers = union.reason(places.labels)
        inside = (numbers > 1) & places.flowing
        pairs, counts = np.unique(
            np.stack([places.owner[inside], numbers[inside]]), axis=1, return_counts=True
        )
        found: dict[ir.Value, tuple[tuple[int, int, str], ...]] = {}
        for (owner, number), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
            value, axis = places.keys[owner]
            found[value] = (*found.get(value, ()), (axis, count, union.reasons[number][1]))
        return found


class _Places:
    """Every labelled axis of values and of uses of constants, one after the other.

    Attributes:
        keys: (value or use, axis) of each.
        labels: Of all.
        bounds: Where each but the first starts.
        owner: Number of the axis to which each label belongs.
        constant: Whether each label belongs to a constant.
        weights: Whether it belongs to a constant of a layer: no mask, no table of positions.
        flowing: Whether it belongs to a value that depends on the inputs of the model.
        hashes: Two random numbers per axis.
    """

    def __init__(self, walk: Propagation) -> None:
        self.keys: list[tuple[Any, int]] = []
        arrays: list[Array] = []
        constant: list[bool] = []
        tables: list[tuple[Any, Axes, bool]] = [
            *((value, axes, False) for value, axes in walk.values.items()),
            *(
                (use, axes, True)
                for use, axes in walk.uses.items()
                if weight_of(use[0].inputs[use[1]]) is not None
            ),
        ]
        for key, axes, fixed in tables:
            for axis, labels in enumerate(axes):
                if labels is not None:
                    self.keys.append((key, axis))
                    arrays.append(labels)
                    constant.append(fixed)
        sizes = np.array([array.size for array in arrays], np.int64)
        self.labels: Array = np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
        self.bounds = np.cumsum(sizes)[:-1]
        self.owner = np.repeat(np.arange(len(sizes)), sizes)
        self.constant = np.repeat(np.array(constant, bool), sizes)
        computed = [
            not fixed and not walk.follows(key[0])
            for key, fixed in zip(self.keys, constant, strict=True)
        ]
        self.flowing = np.repeat(np.array(computed, bool), sizes)
        workers = {work.node for work in walk.work_done}
        layers = [
            fixed and (key[0][0] in workers or walk.follows(key[0][0].outputs[0]))
            for key, fixed in zip(self.keys, constant, strict=True)
        ]
        self.weights = np.repeat(np.array(layers, bool), sizes)
        rng = np.random.default_rng(0)
        self.hashes = rng.integers(1 << 63, size=(len(sizes), 2), dtype=np.uint64)


def _wanted(units: str) -> Array:
    """Return for every unit whether its components can be removed."""
    return {
        "all": np.array([True, True, True]),
        "channels": np.array([True, False, True]),
        "heads": np.array([False, True, False]),
    }[units]


def _shares(
    products: list[tuple[int, tuple[Array, ...]]], component: Array, members: list[Array]
) -> Array:
    """Return by component how much all products of sizes lose with one of its atoms."""
    lost = np.zeros(len(members), np.float64)
    counts = np.array([len(atoms) for atoms in members], np.int64)
    for factor, axes in products:
        full = factor
        per_axis = []
        for atoms in axes:
            full *= atoms.size
            inside = atoms[atoms >= 0]
            if inside.size:
                per_axis.append((atoms.size, np.bincount(component[inside], minlength=len(counts))))
        if not per_axis:
            continue
        touched = np.unique(np.concatenate([np.flatnonzero(n) for _, n in per_axis]))
        for index in touched:
            left = full
            for size, found in per_axis:
                left = left // size * (size - int(found[index]) // int(counts[index]))
            lost[index] += full - left
    return lost
