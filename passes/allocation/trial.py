"""A clone of a model in which layers get other weights for a moment, and how far it is off then.

Only what lies behind the first changed layer is run: the values before it are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from converter.core.context import Batch
from converter.measure.damage import DamageMeter
from passes.importance.readers import Layer
from passes.tuning.segments import Pieces

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Arrays, RunSettings

Array = np.ndarray[Any, Any]
Change = tuple[Layer, Array]
"""A layer and its matrices (groups, outputs, K), with the bias last where it has one."""


class Trials:
    """The model with changed layers, evaluated on a few samples.

    Args:
        model: The original; left as it is.
        stops: Nodes of it, in its order: the first changed layer of what is tried later.
        batches: Samples to compare outputs on.
        settings: How models are run.
        folder: For files.
    """

    def __init__(
        self,
        model: ir.Model,
        stops: Sequence[ir.Node],
        batches: Sequence[Batch],
        settings: RunSettings,
        folder: Path,
    ) -> None:
        self._clone = model.clone()
        self._twin = dict(zip(model.graph, self._clone.graph, strict=True))
        self._names = g.Names(self._clone)
        self._batches = batches
        feeds: list[Arrays] = [batch.inputs for batch in batches]
        (folder / "trials").mkdir()
        twins = [self._twin[node] for node in stops]
        self._pieces = Pieces(self._clone, twins, feeds, settings, folder / "trials")
        self._all = range(len(batches))
        self._expected: dict[str, list[Array]] = {}

    def advance(self) -> None:
        """Go on to the next stop."""
        self._pieces.advance()

    def loss(self, changes: Sequence[Change]) -> float:
        """Return the damage that changed layers do; see :mod:`converter.measure.damage`."""
        if not self._expected:
            self._expected = self._pieces.outlook(self._all)
        with self._changed(changes):
            found = self._pieces.outlook(self._all)
        return damage(self._expected, found, self._batches)

    @contextmanager
    def _changed(self, changes: Sequence[Change]) -> Iterator[None]:
        """Give layers other weights, and the old ones back."""
        before = [list(self._inputs(layer)) for layer, _ in changes]
        for layer, matrices in changes:
            write(self._clone, self._twin, layer, matrices, self._names)
        try:
            yield
        finally:
            for inputs in before:
                for node, position, value in inputs:
                    new = node.inputs[position]
                    node.replace_input_with(position, value)
                    if new is not None and new is not value:
                        self._clone.graph.initializers.pop(new.name or "", None)

    def _inputs(self, layer: Layer) -> Iterator[tuple[ir.Node, int, ir.Value | None]]:
        node = self._twin[layer.node]
        yield node, layer.constant, node.inputs[layer.constant]
        if layer.bias is not None:
            follower, position = self._twin[layer.bias.node], layer.bias.position
            if len(follower.inputs) <= position:
                follower.resize_inputs(position + 1)
            yield follower, position, follower.inputs[position]


def write(
    model: ir.Model,
    twin: dict[ir.Node, ir.Node],
    layer: Layer,
    matrices: Array,
    names: g.Names,
) -> None:
    """Give a layer of ``model`` weights of its own.

    Args:
        model: Holds the twins.
        twin: Nodes of the model by the nodes that layers refer to.
        layer: Which.
        matrices: (groups, outputs, K), with the bias last where it has one.
        names: Hands out new names.
    """
    node = twin[layer.node]
    old = g.constant_array(layer.node.inputs[layer.constant])
    assert old is not None
    weight = matrices if layer.bias is None else matrices[:, :, :-1]
    _give(model, node, layer.constant, layer.backward(weight).astype(old.dtype), names)
    if layer.bias is not None:
        follower, position = twin[layer.bias.node], layer.bias.position
        if len(follower.inputs) <= position:
            follower.resize_inputs(position + 1)
        bias = np.ascontiguousarray(matrices[:, :, -1]).reshape(-1).astype(old.dtype)
        _give(model, follower, position, bias, names)


def _give(model: ir.Model, node: ir.Node, position: int, data: Array, names: g.Names) -> None:
    name = names.fresh("trial_weight")
    value = g.add_initializer(model.graph, name, np.ascontiguousarray(data))
    node.replace_input_with(position, value)


def damage(
    expected: dict[str, list[Array]], found: dict[str, list[Array]], batches: Sequence[Batch]
) -> float:
    """Return the loss of outputs, each a list by batch; broken outputs cost infinitely much."""
    meter = DamageMeter()
    for i, batch in enumerate(batches):
        old = {name: arrays[i] for name, arrays in expected.items()}
        new = {name: arrays[i] for name, arrays in found.items()}
        meter.update(old, new, None, batch.samples)
    loss = meter.result().loss
    return loss if math.isfinite(loss) else math.inf


def spread(batches: Sequence[Batch], count: int, *, divisible: bool) -> list[Batch]:
    """Return about ``count`` samples, spread over the data.

    Args:
        batches: The data.
        count: Samples wanted.
        divisible: The model takes batches of any size, so that samples can be taken out of one.
    """
    total = sum(batch.samples for batch in batches)
    if count >= total:
        return [part for batch in batches for part in _parts(batch, divisible=divisible)]
    if not divisible or not all(rows_count_samples(batch) for batch in batches):
        wanted = max(1, round(len(batches) * count / total))
        return [batches[(2 * i + 1) * len(batches) // (2 * wanted)] for i in range(wanted)]
    wanted_rows = [(2 * i + 1) * total // (2 * count) for i in range(count)]
    found, first = [], 0
    for batch in batches:
        rows = [i - first for i in wanted_rows if first <= i < first + batch.samples]
        if rows:
            found.append(
                Batch({k: np.asarray(v)[rows] for k, v in batch.inputs.items()}, None, len(rows))
            )
        first += batch.samples
    return [part for batch in joined(found) for part in _parts(batch, divisible=True)]


_LARGEST = 32


def joined(batches: Sequence[Batch]) -> list[Batch]:
    """Put small batches of one form together; they run faster."""
    found: list[list[Batch]] = []
    for batch in batches:
        last = found[-1] if found else None
        if last and _like(last[0], batch) and sum(b.samples for b in last) < _LARGEST:
            last.append(batch)
        else:
            found.append([batch])
    return [_join(group) for group in found]


def _join(group: Sequence[Batch]) -> Batch:
    if len(group) == 1:
        return group[0]
    inputs = {k: np.concatenate([np.asarray(b.inputs[k]) for b in group]) for k in group[0].inputs}
    return Batch(inputs, None, sum(b.samples for b in group))


def _like(first: Batch, second: Batch) -> bool:
    """Tell whether batches differ in their first sizes alone."""
    return all(
        np.asarray(a).shape[1:] == np.asarray(second.inputs[k]).shape[1:]
        for k, a in first.inputs.items()
    )


def rows_count_samples(batch: Batch) -> bool:
    """Tell whether the first axis of every input counts samples."""
    return all(np.ndim(a) and len(a) == batch.samples for a in batch.inputs.values())


def _parts(batch: Batch, *, divisible: bool) -> Iterator[Batch]:
    """Cut a batch that is larger than what runs well."""
    if not divisible or batch.samples <= _LARGEST or not rows_count_samples(batch):
        yield batch
        return
    for start in range(0, batch.samples, _LARGEST):
        inputs = {k: np.asarray(v)[start : start + _LARGEST] for k, v in batch.inputs.items()}
        yield Batch(inputs, None, min(_LARGEST, batch.samples - start))


def divisible(model: ir.Model) -> bool:
    """Tell whether the first axis of every input is open."""
    shapes = [value.shape for value in model.graph.inputs if not value.is_initializer()]
    return all(s is not None and len(s) > 0 and not isinstance(s[0], int) for s in shapes)
