"""What importance needs of the data: Gram matrices of layers, and energies at other readers.

The model runs once over the samples, from reader to reader; only what a later one reads is kept.
Matrices beyond a bound lie in files, and are read one component at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.calibration.patches import Geometry, patches
from converter.core import graph as g
from passes.importance.obs import Reader, invert, relative_power, ridge_for
from passes.importance.readers import Layer, layer_of
from passes.tuning.segments import Pieces

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, RunSettings
    from converter.coupling.structure import Component, Coupling, Sink

Array = np.ndarray[Any, Any]
Key = tuple[str, Geometry, int]

ROWS = 48
"""Rows that a sample gives at most, unless a layer has more columns than that allows for."""
_MOST_ROWS = 256
_BLOCK = 1024  # rows multiplied at once, at least
_HELD = 192 << 20  # bytes of matrices in memory
_READERS = 768 << 20  # bytes of matrices of one component


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean products of the rows of a layer, with a last column of ones.

    Attributes:
        products: float64 (groups, K + 1, K + 1).
        rows: Rows that they are the mean of.
    """

    products: Array
    rows: int


@dataclass
class Grams:
    """Gram matrices by what decides them.

    Args:
        folder: For files.
    """

    folder: Path
    _held: dict[Key, Moments] = field(default_factory=dict)
    _filed: dict[Key, tuple[Path, tuple[int, ...], int]] = field(default_factory=dict)
    _bytes: int = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._held or key in self._filed

    def add(self, key: Key, moments: Moments) -> None:
        """Keep matrices, in a file when there are many."""
        if self._bytes + moments.products.nbytes <= _HELD:
            self._bytes += moments.products.nbytes
            self._held[key] = moments
            return
        path = self.folder / f"gram-{len(self._filed)}"
        moments.products.tofile(path)
        self._filed[key] = path, moments.products.shape, moments.rows

    def read(self, key: Key) -> Moments:
        """Return matrices; they must not be changed."""
        if key in self._held:
            return self._held[key]
        path, shape, rows = self._filed[key]
        return Moments(np.fromfile(path, np.float64).reshape(shape), rows)


@dataclass(frozen=True, eq=False)
class Observed:
    """What was seen.

    Attributes:
        grams: Of the layers.
        energies: By value name and axis: mean and mean square of every index.
    """

    grams: Grams
    energies: Mapping[tuple[str, int], tuple[Array, Array]]


def observe(
    model: ir.Model,
    components: Sequence[Component],
    batches: Sequence[Batch],
    *,
    settings: RunSettings,
    folder: Path,
    progress: Callable[[int], None] = lambda _: None,
) -> Observed:
    """Run the model once and collect; called in a child process."""
    layers, others = _wanted(components)
    position = {node: i for i, node in enumerate(model.graph)}
    stops = sorted({*layers, *others}, key=position.__getitem__)
    (folder / "observe").mkdir()
    feeds = [batch.inputs for batch in batches]
    pieces = Pieces(model, stops, feeds, settings, folder / "observe")
    grams = Grams(folder)
    energies: dict[tuple[str, int], tuple[Array, Array]] = {}
    counts = [batch.samples for batch in batches]
    for stop in stops:
        pieces.advance()
        for layer in layers.get(stop, ()):
            lives = layer.states or _lives(pieces, stop.inputs[layer.position])
            if layer.key not in grams and lives:
                grams.add(layer.key, _moments(pieces, layer, counts))
        for value, axis in others.get(stop, ()):
            key = value.name or "", axis
            if key not in energies and _lives(pieces, value):
                energies[key] = _energy(pieces, value, axis)
        progress(1)
    return Observed(grams, energies)


def work(components: Sequence[Component]) -> int:
    """Return how many steps :func:`observe` reports."""
    layers, others = _wanted(components)
    return len({*layers, *others})


@dataclass(frozen=True, eq=False)
class Part:
    """The part of a layer that one group of its weights makes.

    Attributes:
        layer: The layer.
        group: Which of its groups.
        reader: As the removal sees it.
    """

    layer: Layer
    group: int
    reader: Reader


def parts(
    component: Component,
    coupling: Coupling,
    grams: Grams,
    *,
    compensate: bool,
    inverted: bool = True,
) -> tuple[list[Part], list[Sink]]:
    """Return the readers of a component that can be re-fitted, and the sinks that cannot.

    Args:
        component: The component.
        coupling: Its model's.
        grams: What was seen.
        compensate: See :class:`passes.importance.obs.Reader`.
        inverted: Also compute the inverses.
    """
    found: list[Part] = []
    rest: list[Sink] = []
    local = np.full(coupling.size + 1, -1)
    local[component.atoms] = np.arange(len(component.atoms))
    inverses: dict[tuple[Key, int, bool], Array] | None = {} if compensate and inverted else None
    seen: set[tuple[ir.Node, int]] = set()
    for sink in component.sinks:
        if sink.kind == "heads":  # nothing is summed there
            continue
        layer = layer_of(sink)
        if layer is None or layer.key not in grams or not _affordable(component, layer):
            rest.append(sink)
            continue
        if (sink.node, sink.position) in seen:
            continue
        seen.add((sink.node, sink.position))
        owners = layer.owners(coupling)
        if owners is not None:
            moments = grams.read(layer.key)
            found += _parts(layer, moments, local[owners], inverses, compensate)
    return found, rest


def _parts(
    layer: Layer,
    moments: Moments,
    owners: Array,
    inverses: dict[tuple[Key, int, bool], Array] | None,
    compensate: bool,  # noqa: FBT001
) -> list[Part]:
    matrices = layer.matrices()
    biased = layer.bias is not None
    columns = matrices.shape[2]
    found = []
    ridge = ridge_for(moments.rows, columns)
    powers = [
        relative_power(moments.products[k][:columns, :columns], matrices[k], bias=biased)
        for k in range(len(matrices))
    ]
    total = sum(powers)
    for k, weight in enumerate(matrices):
        owner = np.append(owners[k], -1) if biased else owners[k]
        if not (owner >= 0).any():
            continue
        gram = moments.products[k][:columns, :columns]
        inverse = None
        if inverses is not None:
            key = (layer.key, k, biased)
            if key not in inverses:
                inverses[key] = invert(gram, ridge)
            inverse = inverses[key]
        reader = Reader(gram, weight, owner, total, compensate, inverse, ridge)
        found.append(Part(layer, k, reader))
    return found


def extra(
    sinks: Sequence[Sink], component: Component, coupling: Coupling, observed: Observed
) -> Array:
    """Return what every atom costs where nothing can be re-fitted: its share of the energy.

    At layers it is the energy of its contributions (Wanda), elsewhere its variance.

    Returns:
        float64 (atoms of the component,).
    """
    local = np.full(coupling.size + 1, -1)
    local[component.atoms] = np.arange(len(component.atoms))
    total = np.zeros(len(component.atoms))
    for sink in sinks:
        atoms = coupling.uses[sink.node, sink.position][sink.axis]
        share = None if atoms is None else _share(sink, len(atoms), observed)
        if share is not None and atoms is not None:
            own = local[atoms]
            np.add.at(total, own[own >= 0], share[own >= 0])
    return total


def _share(sink: Sink, size: int, observed: Observed) -> Array | None:
    value, axis, _ = _watched(sink)
    seen = None if value is None else observed.energies.get((value.name or "", axis))
    energy = np.ones(size)
    if seen is not None and len(seen[0]) == size:
        mean, square = seen
        energy = square if sink.weight is not None else np.maximum(square - mean**2, 0.0)
    if sink.weight is not None and sink.weight_axis is not None:
        weight = g.constant_array(sink.node.inputs[sink.weight])
        if weight is not None and weight.shape[sink.weight_axis] == size:
            axes = tuple(i for i in range(weight.ndim) if i != sink.weight_axis)
            energy = energy * np.sum(np.asarray(weight, np.float64) ** 2, axis=axes)
    power = float(energy.sum())
    return energy / power if power > 0 and math.isfinite(power) else None


def _wanted(
    components: Sequence[Component],
) -> tuple[dict[ir.Node, list[Layer]], dict[ir.Node, list[tuple[ir.Value, int]]]]:
    """Return layers, and other values with an axis, by the node before which they live."""
    layers: dict[ir.Node, list[Layer]] = {}
    others: dict[ir.Node, list[tuple[ir.Value, int]]] = {}
    for component in components:
        for sink in component.sinks:
            if sink.kind == "heads":
                continue
            layer = layer_of(sink)
            if layer is not None:
                layers.setdefault(sink.node, []).append(layer)
                if _affordable(component, layer):
                    continue
            value, axis, node = _watched(sink)
            if value is not None:
                others.setdefault(node, []).append((value, axis))
    return layers, others


def _watched(sink: Sink) -> tuple[ir.Value | None, int, ir.Node]:
    """Return the value whose energy counts, its axis, and a node before which it lives.

    Hidden units are summed up inside a recurrent layer; what it puts out shows their energy.
    """
    if sink.kind != "recurrent":
        return sink.node.inputs[sink.position], sink.axis, sink.node
    for value in sink.node.outputs[:2]:
        users = [use.node for use in value.uses() if use.node.graph is sink.node.graph]
        if users:
            return value, -1, users[0]
    return None, 0, sink.node


def _affordable(component: Component, layer: Layer) -> bool:
    """Tell whether the matrices of a component fit in memory with all its readers."""
    shape = layer.node.inputs[layer.constant]
    assert shape is not None
    weight = g.constant_array(shape)
    assert weight is not None
    columns = layer.forward(weight).shape[2]
    readers = sum(sink.kind == "weights" for sink in component.sinks)
    return bool(columns**2 * layer.geometry.groups * 8 * readers <= _READERS)


def _lives(pieces: Pieces, value: ir.Value | None) -> bool:
    """Tell whether a value is among those at the present stop."""
    if value is None or value.is_initializer():
        return False
    if g.is_op(value.producer(), "DequantizeLinear"):
        return True
    held: bool = (value.name or "") in pieces.values
    return held


def _moments(pieces: Pieces, layer: Layer, counts: Sequence[int]) -> Moments:
    value = layer.node.inputs[layer.position]
    weight = layer.node.inputs[layer.constant]
    assert value is not None
    constant = g.constant_array(weight)
    assert constant is not None
    columns = layer.forward(constant).shape[2]
    most = min(_MOST_ROWS, max(ROWS, math.ceil(4 * columns / max(1, sum(counts)))))
    gram = _Sums(layer.geometry.groups, columns)
    first = 0
    arrays = pieces.arrays(value)
    if layer.states:
        arrays = ((array, 1.0, 0) for array in pieces.ahead(layer.node))
    for (array, scale, zero), count in zip(arrays, counts, strict=True):
        plain = array if array.dtype.kind == "f" else (array.astype(np.float32) - zero) * scale
        if plain.size:
            gram.add(patches(layer.rows_of(plain), layer.geometry, most, first))
        first += count
    return gram.finish()


class _Sums:
    """Adds up products of rows, many rows at once: a large matrix costs most where it is added."""

    def __init__(self, groups: int, columns: int) -> None:
        self._products = np.zeros((groups, columns + 1, columns + 1))
        self._waiting: list[Array] = []
        self._rows = 0
        self._done = 0

    def add(self, rows: Array) -> None:
        """Take in rows (N, groups, K); those that are not finite are left out."""
        rows = rows.astype(np.float32, copy=False)
        usable = np.isfinite(rows).all(axis=(1, 2))
        self._waiting.append(rows if usable.all() else rows[usable])
        self._rows += len(self._waiting[-1])
        if self._rows >= max(_BLOCK, self._products.shape[1] // 2):
            self._flush()

    def finish(self) -> Moments:
        """Return mean products; of no rows at all, those of independent columns."""
        self._flush()
        products = self._products
        if self._done:
            products /= self._done
        else:
            diagonal = np.arange(products.shape[1])
            products[:, diagonal, diagonal] = 1.0
        return Moments(products, self._done)

    def _flush(self) -> None:
        if self._rows:
            rows = np.concatenate(self._waiting).swapaxes(0, 1)
            ones = np.ones((*rows.shape[:2], 1), np.float32)
            rows = np.concatenate([rows, ones], axis=2)
            self._products += np.matmul(rows.swapaxes(1, 2), rows)
        self._done += self._rows
        self._waiting, self._rows = [], 0


def _energy(pieces: Pieces, value: ir.Value, axis: int) -> tuple[Array, Array]:
    sums: list[Array] = []
    squares: list[Array] = []
    count = 0
    for array, scale, zero in pieces.arrays(value):
        if array.ndim <= axis or not array.size:
            continue
        plain = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis]).astype(np.float64)
        plain = np.nan_to_num((plain - zero) * scale, posinf=0.0, neginf=0.0)
        sums.append(plain.sum(axis=0))
        squares.append((plain**2).sum(axis=0))
        count += len(plain)
    if not count or len({len(each) for each in sums}) > 1:
        return np.zeros(0), np.zeros(0)
    return np.sum(sums, axis=0) / count, np.sum(squares, axis=0) / count
