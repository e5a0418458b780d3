"""Measuring what each changed layer costs, alone and all but it; runs in the child process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from converter.core.context import Batch, Dataset, RunSettings
from converter.errors import ConverterError, DataError
from converter.measure.damage import Damage, DamageMeter
from converter.search.blocks import Border, Shelf, Track, borders, step
from converter.search.grids import read_pair
from converter.search.pairs import Layer, Pair, changed_layers, pair_values
from converter.search.wiring import OTHER, Assembly, TangledError, Wiring, converting

FIRST_EFFORT = 8
"""Work of the first round over all layers, in runs of the model over all samples."""
FEWEST = 4


@dataclass(frozen=True)
class Work:
    """What the child does.

    Attributes:
        first, second: The model before and after compression, each with its weights beside it,
            both in one folder.
        settings: Threads, custom operators.
        samples: Use at most so many batches.
        refine: So many of the worst layers are measured again on all samples.
        deadline: ``time.monotonic()`` after which no measurement starts; None: none.
        both: Also measure all but each layer.
    """

    first: Path
    second: Path
    settings: RunSettings
    samples: int = 32
    refine: int = 10
    deadline: float | None = None
    both: bool = True


def measure(
    work: Work, dataset: Dataset, *, progress: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Measure every changed layer.

    Returns:
        Plain data: ``layers`` (facts, ``alone`` and ``but`` as fields of Damage or None,
        ``saved``),
        ``whole`` (damage of the compressed model), ``accuracy`` of the original or None,
        ``samples``, ``complete``.

    Raises:
        DataError: There are no samples.
        ModelError: A model cannot be run.
    """
    batches = list(islice(dataset, work.samples))
    if not batches:
        raise DataError("the data holds no samples", where=dataset.description)
    fed = set(batches[0].inputs)
    a, b = read_pair(work.first, work.second, fed)
    pairs = pair_values(a, b)
    layers = changed_layers(a, b, pairs)
    bench = _Bench(work, (a, b), pairs, layers, batches)
    bench.beat = lambda: progress(0)
    bench.prepare()
    found: dict[str, list[Damage | None]] = {}
    rounds = _rounds(work, len(layers), len(batches))
    todo = layers
    complete = True
    for samples in rounds:
        for layer in todo:
            if work.deadline is not None and time.monotonic() > work.deadline:
                complete = False
                break
            found[layer.pair.name] = [
                bench.try_layer(layer, samples, alone=True),
                bench.try_layer(layer, samples, alone=False) if work.both else None,
            ]
            progress(1)
        todo = _worst(layers, found, bench, work.refine)
    return {
        "layers": [
            _row(layer, found.get(layer.pair.name, [None, None]), bench) for layer in layers
        ],
        "whole": asdict(bench.whole),
        "accuracy": bench.accuracy,
        "samples": len(batches),
        "complete": complete,
    }


def rounds_of(layers: int, samples: int, refine: int) -> int:
    """Return how many measurements of a layer a run makes, for showing progress."""
    return layers + (min(layers, refine) if samples > FEWEST else 0)


def _rounds(work: Work, layers: int, samples: int) -> list[int]:
    """Few samples for all layers, then all samples for the worst."""
    first = max(FEWEST, math.ceil(FIRST_EFFORT * samples / max(1, layers)))
    if first >= samples or not work.refine:
        return [min(first, samples) if work.refine else samples]
    return [first, samples]


def _worst(
    layers: Sequence[Layer], found: dict[str, list[Damage | None]], bench: _Bench, most: int
) -> list[Layer]:
    def loss(layer: Layer, position: int) -> float:
        damage = found.get(layer.pair.name, [None, None])[position]
        saved = bench.saved(damage)
        if damage is None or saved is None:
            return -math.inf
        return saved if position else damage.loss

    alone = sorted(layers, key=lambda x: -loss(x, 0))[:most]
    saved = sorted(layers, key=lambda x: -loss(x, 1))[: most // 2]
    wanted = {layer.pair.name for layer in (*alone, *saved)}
    return [layer for layer in layers if layer.pair.name in wanted]


def _row(layer: Layer, damages: Sequence[Damage | None], bench: _Bench) -> dict[str, Any]:
    alone, but = damages
    return {
        "name": layer.name,
        "op_type": layer.op_type,
        "value": layer.pair.name,
        "parameters": layer.parameters,
        "alone": None if alone is None else asdict(alone),
        "but": None if but is None else asdict(but),
        "saved": bench.saved(but),
    }


class _Bench:
    """Both models, cut into blocks, with what is alive at every border for every sample."""

    def __init__(
        self,
        work: Work,
        graphs: tuple[Wiring, Wiring],
        pairs: dict[str, Pair],
        layers: Sequence[Layer],
        batches: Sequence[Batch],
    ) -> None:
        self.work = work
        self.graphs = graphs
        self.pairs = pairs
        self.layers = layers
        self.batches = batches
        self.feeds = [batch.inputs for batch in batches]
        # Inputs of the second model are those of the first.
        self.ports = {OTHER + name: name for name in graphs[0].inputs}
        self.whole = Damage(0.0, "KL", math.inf)
        self.accuracy: float | None = None
        self.borders: list[Border] = []
        self.rounding = {layer.pair.name for layer in layers}
        self.beat: Callable[[], None] = lambda: None  # a sign of life after every run
        self._losses: dict[int, float] = {}

    def prepare(self) -> None:
        """Run both models over all samples; without borders if what is alive there is no tensor."""
        self.borders = borders(self.graphs[0], self.pairs, self.layers)
        try:
            self._follow()
        except TypeError:
            self.borders = []
            self._follow()
        meter, reference = DamageMeter(), DamageMeter()
        for index, batch in enumerate(self.batches):
            expected = self.expected(index)
            actual = self._plain(self.second.live(len(self.borders) + 1, index))
            meter.update(expected, actual, batch.targets, batch.samples)
            reference.update(expected, expected, batch.targets, batch.samples)
            self._losses[index + 1] = meter.result().loss
        self.whole, self.accuracy = meter.result(), reference.result().accuracy

    def saved(self, but: Damage | None) -> float | None:
        """Return what leaving a layer out saves, on the samples that it was measured on."""
        return None if but is None else self._losses[but.samples] - but.loss

    def _follow(self) -> None:
        pairs = self.pairs
        firsts = [set(border.live) for border in self.borders]
        seconds = [
            {n for v in border.live for n in (pairs[v].entry, pairs[v].integers) if n}
            for border in self.borders
        ]
        # What a layer left in float reads need not be what the compressed one reads.
        kept = [
            {pairs[v].entry for v in border.live if v not in self.rounding}
            for border in self.borders
        ]
        plan = Assembly(self.graphs, ({}, self.ports), {})
        rest = {"settings": self.work.settings, "folder": self.work.first.parent}
        shelf = Shelf(self.work.first.parent)
        self.first = Track.of(plan, 0, (firsts, firsts), shelf=shelf, **rest)
        self.second = Track.of(plan, 1, (seconds, kept), shelf=shelf, **rest)
        for track in (self.first, self.second):
            track.follow(self.feeds, self.beat)

    def expected(self, index: int) -> dict[str, Any]:
        """Return the outputs of the first model for one sample."""
        return self.first.live(len(self.borders) + 1, index)

    def try_layer(self, layer: Layer, samples: int, *, alone: bool) -> Damage | None:
        """Measure one layer; None where it cannot be taken apart from its neighbours."""
        track = self.first if alone else self.second
        start, end = self._blocks(layer)
        try:
            piece = track.open(self._plan(layer, alone=alone), start, end)
        except (TangledError, ConverterError):
            return None
        meter = DamageMeter()
        last = len(self.borders) + 1
        for index in range(samples):
            batch = self.batches[index]
            live = step(piece, track.live(start, index), batch.inputs)
            if end == last:
                outputs = {name: live[name] for name in track.outputs}
            else:
                outputs = track.finish(end, live, index, batch.inputs)
            actual = self._plain(outputs)
            meter.update(self.expected(index), actual, batch.targets, batch.samples)
            self.beat()
        return meter.result()

    def _plan(self, layer: Layer, *, alone: bool) -> Assembly:
        pair = layer.pair
        if alone:
            instead = {p.entry: p.name for p in layer.inputs if p is not pair}
            return self._bridged({pair.name: pair.end}, {**self.ports, **instead})
        inner = {name for i in layer.first for name in self.graphs[0].reads[i]}
        floats = {name: self._float(self.pairs[name]) for name in inner if name in self.pairs}
        return self._bridged(floats, {**self.ports, pair.entry: pair.name})

    def _float(self, pair: Pair) -> str:
        """Return what a layer left in float reads: rounded only if its maker is compressed."""
        name = pair.end if pair.name in self.rounding else pair.entry
        return self.ports.get(name, name)

    def _bridged(self, first: dict[str, str], second: dict[str, str]) -> Assembly:
        """Let the graphs read each other, through Cast where the element types differ."""
        kinds = self.graphs[0].kinds | self.graphs[1].kinds
        casts: dict[str, tuple[str, int]] = {}
        for instead in (first, second):
            for name, other in instead.items():
                wanted, have = kinds.get(name), kinds.get(other)
                if wanted and have and wanted != have:
                    casts[f"cast/{name}"] = (other, wanted)
                    instead[name] = f"cast/{name}"
        return Assembly((*self.graphs, converting(casts)), (first, second, {}), {})

    def _blocks(self, layer: Layer) -> tuple[int, int]:
        """Return the borders before and after a layer."""
        real = [i for i in layer.first if self.graphs[0].nodes[i].op_type != "Constant"]
        start = sum(1 for border in self.borders if border.position <= min(real or layer.first))
        end = 1 + sum(1 for border in self.borders if border.position <= max(layer.first))
        return start, end

    @staticmethod
    def _plain(outputs: dict[str, Any]) -> dict[str, Any]:
        return {name.removeprefix(OTHER): array for name, array in outputs.items()}
