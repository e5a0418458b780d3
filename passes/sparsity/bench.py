"""A model whose layers can be given any number of zeros, and how far its outputs are off then.

The layers are worked out once, one after the other, around an allocation: each is fitted to what
the original makes there from what it reads in the pruned model, at several numbers of zeros. After
that an allocation costs one run over few samples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from converter.core import graph as g
from converter.data.smooth import make_smooth
from converter.errors import ConverterError
from converter.execution import sandbox
from converter.execution.blas import use_one_thread
from converter.measure.macs import inferred_sizes, sum_macs
from passes.allocation.trial import damage, divisible
from passes.reconstruction.linear import Linear, install, linear_of
from passes.reconstruction.order import advanced, rearrange
from passes.removal.samples import samples_for
from passes.rounding.gptq import MOST_COLUMNS
from passes.sparsity.levels import levels_of, points_around, points_towards
from passes.sparsity.prepared import Fits, Prepared, ranks_in_units
from passes.sparsity.room import Room
from passes.sparsity.samples import Samples, chosen
from passes.sparsity.settle import Settling
from passes.tuning.segments import Pieces
from passes.tuning.store import Budget, Store

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Arrays, Batch, RunSettings
    from passes.sparsity.problem import Problem

Array = np.ndarray[Any, Any]
T = TypeVar("T")
Part = Literal["trial", "few", "held", "wide"]
_PARTS: tuple[Part, ...] = ("trial", "few", "held", "wide")

_MOST_BYTES = 256 << 20
"""Worked out weights that are held in memory; more lie in files."""
_TRIALS, _LEAST_TRIALS = 128, 16
_WORK = 2.5e10
"""Multiply-accumulates of one run: half a second on one core."""
_FIT, _LEAST_FIT = 384, 32
_FIT_WORK = 7.5e11
"""Multiply-accumulates of one run over all samples that are fitted on."""
_LATE = 0.5
"""Share of the user's time after which nothing is tried any more; recovery and verification take
the rest."""
_MOST_SECONDS = 3_600.0


def measured(problem: Problem, task: Callable[[Bench], T], *, samples: int = _TRIALS) -> T:
    """Call a task with a bench, in a child process.

    Args:
        problem: What to distribute zeros over.
        task: Sees everything as it is now and changes nothing here; its result is made of the types
            that :mod:`converter.execution.codec` knows: numbers, texts, arrays, lists, dicts.
        samples: Most samples of one trial; a large model takes fewer.

    Returns:
        What the task returned.

    Raises:
        ConverterError: The model cannot be run on the samples.
    """
    import onnxruntime  # noqa: F401 - imported here, the child has it

    context = problem.context
    macs = _macs(problem)
    batches, note = samples_for(problem.model, context, macs)
    context.progress.start("trying numbers of zeros", None)
    try:
        found: T = sandbox.call(
            _run,
            problem,
            list(batches),
            partial(_with, task=task, samples=samples, macs=macs, note=note),
            context.settings,
            limits=context.settings.limits.extended(_MOST_SECONDS),
            on_progress=context.progress.advance,
            task="trying numbers of zeros",
        )
    finally:
        context.progress.stop()
    return found


def _macs(problem: Problem) -> float:
    """Return about how many multiply-accumulates one sample takes."""
    data = problem.context.dataset
    if data is None:
        data = make_smooth(problem.model, batch=1, samples=1)
    batch = next(iter(data), None)
    if batch is None:
        return 0.0
    total, _ = sum_macs(problem.model, inferred_sizes(problem.model, batch.inputs))
    return float(total) / max(1, batch.samples)


def _run(
    problem: Problem,
    batches: Sequence[Batch],
    within: Callable[[Bench], T],
    settings: RunSettings,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> T:
    use_one_thread()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=settings.workspace) as name:
        return within(Bench(problem, batches, Path(name), progress))


def _with(bench: Bench, *, task: Callable[[Bench], T], samples: int, macs: float, note: str) -> T:
    bench.start(samples, macs, note)
    return task(bench)


class Bench:
    """Tries allocations; lives in a child process, whose copy of the model it changes.

    Args:
        problem: What to distribute zeros over.
        batches: All samples.
        folder: For files.
        progress: Told of every layer and trial.

    Attributes:
        problem: What to distribute zeros over.
        room: Bounds on the zeros of every layer and their sum.
        levels: Densities that every layer is prepared at: float64, falling from 1.0.
        samples: What is compared on what.
        note: About the samples.
        runs: Of the model on samples, so far.
    """

    def __init__(
        self,
        problem: Problem,
        batches: Sequence[Batch],
        folder: Path,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.problem = problem
        self.room = Room.of(problem)
        self.levels = levels_of(self.room)
        self.note = ""
        self.runs = 0
        self.samples = Samples(*[batches] * 5)
        self._batches = batches
        self._folder = folder
        self._progress = progress
        self._settings = problem.context.settings
        self._teacher = problem.model.clone()
        self._student = problem.model
        self._fits = problem.recover != "none"
        self._chooses = problem.recover == "obs" and problem.pattern.kind == "unstructured"
        self._prepared: list[Prepared] = []
        self._expected: dict[Part, dict[str, list[Array]]] = {}
        self._whole: dict[Part, Pieces] = {}
        self._store = Store(folder, Budget(_MOST_BYTES))

    def start(self, samples: int, macs: float, note: str) -> None:
        """Choose samples, run the original on them, and get the layers ready."""
        self.note = note
        count = int(np.clip(_WORK / max(1.0, macs), _LEAST_TRIALS, samples))
        fitted = int(np.clip(_FIT_WORK / max(1.0, macs), _LEAST_FIT, _FIT))
        fitted = fitted if self._fits else 0
        try:
            self.samples = chosen(self._batches, (count, fitted), free=divisible(self._teacher))
            self._expect()
        except ConverterError:  # an open size that is not open inside the model
            self.samples = chosen(self._batches, (count, fitted), free=False)
            self._expect()
        self._get_ready()

    def settle(self, zeros: Array | None = None) -> None:
        """Work out the weights of all layers around an allocation.

        What is tried afterwards is fitted to what layers read there, so that allocations nearby
        look better than others. Nothing happens when the problem's recovery is none.

        Args:
            zeros: By layer: int64 (layers,); None: around the original.
        """
        if not self._fits:
            return
        zeros = self.room.low if zeros is None else zeros
        for i, prepared in enumerate(self._prepared):
            if prepared.fits is not None:
                prepared.fits.drop()
            key, points = f"worked-{i}", points_around(prepared, int(zeros[i]), self.levels)
            prepared.fits = Fits(points, self._store, key) if prepared.node else None
        self._walk(zeros, self.samples.fit)

    def own(self, zeros: Array, parts: Sequence[Part] = ("trial",)) -> list[float]:
        """Return the damage of an allocation whose layers are fitted for it alone.

        Near to what will come out, and as dear as a tenth or more of :meth:`settle`, whose fits
        stay as they are.

        Args:
            zeros: By layer: int64 (layers,).
            parts: Of the samples.
        """
        kept = [prepared.fits for prepared in self._prepared]
        store = Store(Path(tempfile.mkdtemp(dir=self._folder)), Budget(_MOST_BYTES))
        if self._fits:
            for i, prepared in enumerate(self._prepared):
                points = self._way(prepared, int(zeros[i]))
                prepared.fits = Fits(points, store, str(i)) if prepared.node else None
            self._walk(zeros, self.samples.fit)
        losses = [self.loss(zeros, part) for part in parts]
        for prepared, fits in zip(self._prepared, kept, strict=True):
            if prepared.fits is not None:
                prepared.fits.drop()
            prepared.fits, prepared.now = fits, -1
        return losses

    def points(self, layer: int) -> Array:
        """Return the numbers of zeros that a layer was worked out for: int64, ascending."""
        prepared = self._prepared[layer]
        if prepared.fits is None:
            return points_around(prepared, 0, self.levels)
        return prepared.fits.points

    def errors(self, layer: int) -> Array:
        """Return what is left of the error of a layer's output at its points: float64, rising.

        Relative to the variance of the output; of layers that are not fitted the share of the
        weights' energy that goes.
        """
        prepared = self._prepared[layer]
        if prepared.fits is not None and prepared.fits.errors:
            return np.maximum.accumulate(np.asarray(prepared.fits.errors, np.float64))
        return prepared.energies(self.points(layer))

    def _walk(self, zeros: Array, batches: Sequence[Batch]) -> None:
        """Fit layer after layer; what is behind a layer reads it at the given zeros."""
        settling = Settling(
            (self._teacher, self._student),
            batches,
            self._settings,
            Path(tempfile.mkdtemp(dir=self._folder)),
            scaling=self.problem.recover == "moments",
            choosing=self._chooses,
        )
        place = {p.node: i for i, p in enumerate(self._prepared) if p.node is not None}
        for prepared, count in zip(self._prepared, zeros, strict=True):
            prepared.now = -1
            prepared.put(int(count))
        held = sum(self._prepared[i].size for i in place.values()) * 4 * (len(self.levels) + 1)
        kind = np.float16 if held > _MOST_BYTES else np.float32
        for node in settling.stops(place):
            prepared = self._prepared[place[node]]
            assert prepared.fits is not None
            settling.step(prepared, prepared.fits, kind)
            prepared.now = -1
            prepared.put(int(zeros[place[node]]))
            self._progress(1)

    def loss(self, zeros: Array, part: Part = "trial") -> float:
        """Return the damage at the outputs (:mod:`converter.measure.damage`): 0 for none.

        Args:
            zeros: By layer: int64 (layers,); masks are exact, weights blended.
            part: Of the samples.
        """
        self._put(zeros)
        return self._damage(self._whole[part], part)

    def around(
        self, zeros: Array, tried: Sequence[Sequence[int]], part: Part = "trial"
    ) -> list[list[float]]:
        """Return the damage when one layer alone has another number of zeros.

        Args:
            zeros: Of all the others: int64 (layers,).
            tried: By layer, the numbers to try.
            part: Of the samples.

        Returns:
            By layer, the damage for each of these numbers. Layers that time did not suffice for
            have none.
        """
        self._put(zeros)
        order = sorted(range(len(self._prepared)), key=lambda i: self._prepared[i].first)
        nodes = list(self._student.graph)
        stops = [nodes[self._prepared[i].first] for i in order]
        pieces = self._pieces(self._student, self._of(part), stops)
        found: list[list[float]] = [[] for _ in order]
        for i in order:
            pieces.advance()
            if self.expired():
                continue
            for count in tried[i]:
                self._prepared[i].put(count)
                found[i].append(self._damage(pieces, part))
            self._prepared[i].put(int(zeros[i]))
        return found

    def expired(self) -> bool:
        """Tell whether the user's time limit asks to stop and use the best so far."""
        return self._settings.limits.late(_LATE)

    def _damage(self, pieces: Pieces, part: Part) -> float:
        batches = self._of(part)
        found = pieces.outlook(range(len(batches)))
        self.runs += 1
        self._progress(1)
        return damage(self._expected[part], found, batches)

    def _put(self, zeros: Array) -> None:
        for prepared, count in zip(self._prepared, zeros, strict=True):
            prepared.put(int(count))

    def _of(self, part: Part) -> Sequence[Batch]:
        found: Sequence[Batch] = getattr(self.samples, part)
        return found

    def _way(self, prepared: Prepared, here: int) -> Array:
        """Return the numbers of zeros that a layer is fitted at; one where masks are given."""
        if self._chooses:
            return points_towards(prepared, here)
        return np.asarray([max(here, prepared.least)], np.int64)

    def _expect(self) -> None:
        for part in _PARTS:
            batches = self._of(part)
            whole = self._pieces(self._teacher, batches, ())
            self._expected[part] = whole.outlook(range(len(batches)))

    def _pieces(
        self, model: ir.Model, batches: Sequence[Batch], stops: Sequence[ir.Node]
    ) -> Pieces:
        feeds: list[Arrays] = [batch.inputs for batch in batches]
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        return Pieces(model, stops, feeds, self._settings, folder)

    def _get_ready(self) -> None:
        """Rank weights, find what can be fitted, and give those layers a bias of their own."""
        nodes = self._fitted_nodes() if self._fits else {}
        for i, node in nodes.items():
            linear = linear_of(node)
            assert isinstance(linear, Linear)
            if linear.home is not None:
                home, kind = linear.home, self.problem.layers[i].tensor.dtype.numpy()
                shape = home.shape or (linear.outputs,)
                bias = linear.bias.astype(kind).reshape(shape)
                install(self._student, home.node, home.position, bias, "trial_bias")
        self._teacher = self._student.clone()  # node for node the same, and still the original
        self._arrange(list(nodes.values()))
        first = _firsts(self._student)
        for i, layer in enumerate(self.problem.layers):
            scores = np.asarray(self.problem.scores(i)).reshape(-1)
            ranks = ranks_in_units(layer, scores, self.problem.pattern)
            place = min((first.get(node, 0) for node in layer.nodes), default=0)
            prepared = Prepared(layer, ranks, int(self.room.low[i]), place, nodes.get(i))
            self._prepared.append(prepared)
        for part in _PARTS:
            self._whole[part] = self._pieces(self._student, self._of(part), ())

    def _fitted_nodes(self) -> dict[int, ir.Node]:
        """Return, by layer, the one node that can be fitted."""
        inside = set(self._student.graph)
        found = {}
        for i, layer in enumerate(self.problem.layers):
            node = layer.nodes[0]
            if len(layer.nodes) > 1 or node not in inside or len(node.inputs) < 2:
                continue
            linear = linear_of(node)
            direct = isinstance(linear, Linear) and node.inputs[1] is layer.value
            if isinstance(linear, Linear) and direct and linear.depth <= MOST_COLUMNS:
                found[i] = node
        return found

    def _arrange(self, layers: Sequence[ir.Node]) -> None:
        """Bring both models into an order in which what is added to a layer comes before it."""
        places = {node: i for i, node in enumerate(self._student.graph)}
        theirs = list(self._teacher.graph)
        order = advanced(self._student, layers)
        rearrange(self._student, order)
        rearrange(self._teacher, [theirs[places[node]] for node in order])


def _firsts(model: ir.Model) -> dict[ir.Node, int]:
    """Return by node, also of sub-graphs, the position of the node of the main graph it is in."""
    found = {}
    for i, node in enumerate(model.graph):
        found[node] = i
        for graph in g.subgraphs(node):
            found.update(dict.fromkeys(_within(graph), i))
    return found


def _within(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        yield node
        for inner in g.subgraphs(node):
            yield from _within(inner)
