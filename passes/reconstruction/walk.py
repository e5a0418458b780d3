"""Original and changed model advance layer by layer; every layer is fitted to what it now gets.

At each layer the original says what it makes there, and the changed model what it reads, with all
layers before fitted already. Where the layer's output is added to a value that exists already, the
error of that value is made up for as well. The cost grows linearly with the depth.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from converter.core.contract import Skip
from converter.core.observe import Progress, Silent
from converter.core.select import Selection
from converter.errors import ConverterError
from converter.execution import sandbox
from converter.execution.blas import use_one_thread
from passes.allocation.trial import divisible, joined
from passes.reconstruction.fit import Choice, Recipe, fit
from passes.reconstruction.linear import Linear, install, linear_of
from passes.reconstruction.order import advanced, rearrange
from passes.reconstruction.pairs import Pair, pairs_of
from passes.reconstruction.recurrent import Recurrent, fit_recurrent, recurrent_of
from passes.reconstruction.repair import UNDONE, Fitted, Repair, notes_of
from passes.reconstruction.support import units
from passes.reconstruction.tail import Tail, tail_of
from passes.reconstruction.targets import Kept, Side, gather
from passes.tuning.distance import Distances
from passes.tuning.segments import Pieces
from passes.tuning.store import Budget

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, RunSettings

Array = np.ndarray[Any, Any]
_HELD = 8
"""Every so many samples one is not fitted on; fewer samples are all fitted on."""
_MOST_NUMBERS = 48_000_000
"""Numbers of the largest matrix of rows: 192 MB."""


_MOST_SECONDS = 3_600.0
_LATE = 0.8
"""Share of the user's time after which no layer is fitted any more; the cut is kept as it is."""


def reconstruct(  # noqa: PLR0913 - two models, the data and how
    teacher: ir.Model,
    student: ir.Model,
    kept: Kept,
    batches: Sequence[Batch],
    settings: RunSettings,
    *,
    recipe: Recipe | None = None,
    selection: Selection | None = None,
    progress: Progress | None = None,
) -> Repair:
    """Fit the layers of a changed model to the original, from the first to the last.

    Args:
        teacher: The original; left as it is.
        student: Changed in place: weights and biases of Conv, Gemm and MatMul.
        kept: What is left of the original's values by name; empty when shapes are the same.
        batches: Samples.
        settings: How models are run.
        recipe: How layers are fitted; None: as usual.
        selection: Which layers.
        progress: Told of every layer.

    Raises:
        ConverterError: A model cannot be run on the samples.
    """
    import onnxruntime  # noqa: F401 - imported here, the child has it

    recipe, progress = recipe or Recipe(), progress or Silent()
    pairs, skipped = pairs_of(teacher, student, selection or Selection((), ()))
    if not pairs or not batches:
        note = "no layer can be fitted" if not pairs else "there are no samples to fit on"
        return Repair(modified=False, skipped=tuple(skipped), notes=(note,))
    task = _Task(teacher, student, kept, pairs, recipe)
    progress.start("recovering layers", len(pairs))
    try:
        found: dict[str, Any] = sandbox.call(
            _run,
            task,
            batches,
            settings,
            limits=settings.limits.extended(_MOST_SECONDS),
            on_progress=progress.advance,
            task="recovering the layers",
        )
    finally:
        progress.stop()
    return _taken(student, pairs, skipped, found)


def _taken(
    student: ir.Model, pairs: Sequence[Pair], skipped: list[Skip], found: Mapping[str, Any]
) -> Repair:
    """Write what the child found, if it is better than nothing."""
    layers = tuple(Fitted(*row) for row in found["layers"])
    skipped = [*skipped, *(Skip(name, reason) for name, reason in found["skipped"])]
    skipped += [Skip(each.name, each.what, minor=True) for each in layers if not each.gained]
    before, after, measure = found["before"], found["after"], found["measure"]
    taken = after <= before and np.isfinite(after)
    edits = found["edits"] if taken else []
    if not taken:
        layers = tuple(replace(layer, after=layer.before, what=UNDONE) for layer in layers)
    for index, behind, position, array, name in edits:
        node = pairs[index].student
        install(student, _behind(node) if behind else node, position, array, name)
    notes = notes_of(layers, found, taken=bool(taken))
    return Repair(bool(edits), layers, tuple(skipped), before, after, measure, notes)


def _behind(node: ir.Node) -> ir.Node:
    layer = linear_of(node)
    assert isinstance(layer, Linear)
    assert layer.home is not None
    return layer.home.node


@dataclass(frozen=True, eq=False)
class _Task:
    teacher: ir.Model
    student: ir.Model
    kept: Kept
    pairs: Sequence[Pair]
    recipe: Recipe


def _run(
    task: _Task,
    batches: Sequence[Batch],
    settings: RunSettings,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Fit all layers; called in a child process, whose copy of the model is edited on the way."""
    use_one_thread()
    with tempfile.TemporaryDirectory(prefix="recovery-", dir=settings.workspace) as folder:
        walk = _started(task, batches, settings, Path(folder))
        for i in walk.order:
            walk.step(i)
            progress(1)
        return walk.result()


def _started(task: _Task, batches: Sequence[Batch], settings: RunSettings, folder: Path) -> _Walk:
    """Begin with batches put together where the model takes larger ones: they run faster."""
    larger = joined(batches) if divisible(task.teacher) else batches
    if len(larger) < len(batches):
        walk = _Walk(task, larger, settings, folder)
        try:
            walk.baseline()
        except ConverterError:  # an open size that is not open inside the model
            pass
        else:
            return walk
    walk = _Walk(task, batches, settings, folder)
    walk.baseline()
    return walk


@dataclass(eq=False)
class _Walk:
    task: _Task
    batches: Sequence[Batch]
    settings: RunSettings
    folder: Path
    edits: list[list[Any]] = field(default_factory=list)
    layers: list[list[Any]] = field(default_factory=list)
    skipped: list[list[str]] = field(default_factory=list)
    order: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._samples = sum(batch.samples for batch in self.batches)
        self._masks = _held(self.batches, self._samples)
        self.order = self._arranged()
        pairs = [self.task.pairs[i] for i in self.order]
        budget, every = Budget(), range(len(self.batches))
        self._teacher = self._pieces(self.task.teacher, [p.teacher for p in pairs], budget, every)
        self._student = self._pieces(self.task.student, [p.student for p in pairs], budget, every)
        self._plain: dict[str, list[Array]] = {}

    def _pieces(
        self, model: ir.Model, stops: Sequence[ir.Node], budget: Budget, chosen: Sequence[int]
    ) -> Pieces:
        own = Path(tempfile.mkdtemp(dir=self.folder))
        feeds = [self.batches[i].inputs for i in chosen]
        return Pieces(model, stops, feeds, self.settings, own, budget)

    def _arranged(self) -> list[int]:
        """Bring both models into a better order, if it is the same; return that of the layers."""
        task = self.task
        orders = [
            advanced(task.student, [pair.student for pair in task.pairs]),
            advanced(task.teacher, [pair.teacher for pair in task.pairs]),
        ]
        places = [{node: i for i, node in enumerate(order)} for order in orders]
        every = range(len(task.pairs))
        found = sorted(every, key=lambda i: places[0][task.pairs[i].student])
        if found != sorted(every, key=lambda i: places[1][task.pairs[i].teacher]):
            return list(every)
        rearrange(task.student, orders[0])
        rearrange(task.teacher, orders[1])
        return found

    @property
    def _apart(self) -> bool:
        return self._samples >= _HELD

    def _judges(self) -> list[int]:
        """Return the batches that hold samples to judge by."""
        if not self._apart:
            return list(range(len(self.batches)))
        return [i for i, mask in enumerate(self._masks) if mask.any()]

    def baseline(self) -> None:
        """Remember the outputs without recovery, of samples that are not fitted on."""
        pieces = self._pieces(self.task.student.clone(), [], Budget(), self._judges())
        pieces.finish()
        for value in self.task.student.graph.outputs:
            self._plain[value.name or ""] = list(pieces.values[value.name or ""])

    def step(self, index: int) -> None:
        """Advance to a layer and fit it."""
        self._teacher.advance()
        self._student.advance()
        pair = self.task.pairs[index]
        if self.settings.limits.late(_LATE):
            self.skipped.append([pair.name, "not fitted: the time limit came near (--time-limit)"])
            return
        if isinstance(recurrent_of(pair.student), Recurrent):
            self._recurrent(index, pair)
            return
        sides = self._sides(pair)
        if isinstance(sides, str):
            self.skipped.append([pair.name, sides])
            return
        layer = sides[0].layer
        rows = gather(*sides, self.task.kept, self._most(layer), self._masks)
        if isinstance(rows, str):
            self.skipped.append([pair.name, rows])
            return
        recipe = self.task.recipe
        if pair.shared:
            recipe = replace(recipe, method="bias", zeros={})
        found = fit(layer, sides[0].tail, rows, recipe, self._choice(recipe, *sides))
        few = len(rows.inputs) < 2 * (layer.depth + 1) and found.before > found.after
        self.layers.append([pair.name, found.before, found.after, found.what, few])
        self._take(index, layer, found.weight, found.bias)

    def _choice(self, recipe: Recipe, student: Side, teacher: Side) -> Choice | None:
        """Return what is to be chosen, where the zeros of a layer are not given."""
        zeros = recipe.zeros.get(student.layer.node.outputs[0].name or "")
        original = teacher.layer.weight
        if zeros is None or original.shape != student.layer.weight.shape:
            return None
        pattern = recipe.pattern
        if student.layer.stuffing is not None and pattern.kind != "unstructured":
            return None  # its kernel is turned round
        return Choice(units(zeros, pattern, original), original, teacher.layer.bias)

    def _recurrent(self, index: int, pair: Pair) -> None:
        """Fit the gates of a recurrent layer."""
        models = (self._student, self._teacher)
        found = fit_recurrent(
            (pair.student, pair.teacher), models, self.task.kept, self._masks, self.task.recipe
        )
        if isinstance(found, str):
            self.skipped.append([pair.name, found])
            return
        self.layers.append([pair.name, found.before, found.after, found.what])
        for position, array in (found.constants or {}).items():
            name = f"{pair.student.outputs[0].name or 'layer'}_{position}"
            self._edit(index, pair.student, position, array, name)

    def _sides(self, pair: Pair) -> tuple[Side, Side] | str:
        first, second = linear_of(pair.student), linear_of(pair.teacher)
        assert isinstance(first, Linear)
        assert isinstance(second, Linear)
        if first.geometry.kernel != second.geometry.kernel:
            return "its kernel has another size than the original's"
        tails = [tail_of(first), tail_of(second)]
        if not self._comparable(tails):
            tails = [Tail.empty(each) for each in (first, second)]
        return Side(first, tails[0], self._student), Side(second, tails[1], self._teacher)

    def _comparable(self, tails: Sequence[Tail]) -> bool:
        """Tell whether both tails do the same with values that both models have by now."""
        first, second = tails
        if first.path != second.path:
            return False
        if first.other is None or second.other is None:
            return first.other is None and second.other is None
        if first.other.name != second.other.name:
            return False
        return all(
            _lives(pieces, value)
            for pieces, value in ((self._student, first.other), (self._teacher, second.other))
        )

    def _most(self, layer: Linear) -> int:
        """Return how many positions of one sample are taken."""
        wanted = max(
            self.task.recipe.positions * self._samples, self.task.recipe.rows * layer.depth
        )
        width = max(layer.depth * len(layer.weight), 2 * layer.outputs)
        bound = _MOST_NUMBERS // max(1, width)
        return max(1, min(wanted, bound) // max(1, self._samples))

    def _take(self, index: int, layer: Linear, weight: Array | None, bias: Array | None) -> None:
        base = layer.node.outputs[0].name or "layer"
        if weight is not None:
            self._edit(index, layer.node, 1, layer.stored(weight), f"{base}_weight")
        home = layer.home
        if bias is None or home is None:
            return
        own = g.constant_array(layer.node.inputs[1])
        assert own is not None
        vector = bias.astype(own.dtype).reshape(home.shape or (layer.outputs,))
        self._edit(index, home.node, home.position, vector, f"{base}_bias")

    def _edit(self, index: int, node: ir.Node, position: int, array: Array, name: str) -> None:
        outside = node is not self.task.pairs[index].student
        self.edits.append([index, outside, position, array, name])
        install(self.task.student, node, position, array, name)

    def result(self) -> dict[str, Any]:
        """Run to the end and compare the outputs."""
        self._teacher.finish()
        self._student.finish()
        judges = self._judges()
        distances = [Distances(), Distances()]
        for value in self.task.teacher.graph.outputs:
            name = value.name or ""
            for at, i in enumerate(judges):
                mask = self._masks[i] if self._apart else np.ones_like(self._masks[i])
                mask = _numbers(self._teacher.values[name][i], mask)
                if not mask.any():
                    continue
                old = _rows_of(self._teacher.values[name][i], mask)
                new = [self._plain[name][at], self._student.values[name][i]]
                for meter, array in zip(distances, new, strict=True):
                    meter.update(name, old, _rows_of(array, mask))
        (before, measure), (after, _) = (meter.result() for meter in distances)
        held = sum(int(mask.sum()) for mask in self._masks) if self._apart else self._samples
        return {
            "edits": self.edits,
            "layers": self.layers,
            "skipped": self.skipped,
            "before": before,
            "after": after,
            "measure": measure,
            "held": held,
            "apart": self._apart,
        }


def _lives(pieces: Pieces, value: ir.Value) -> bool:
    maker = value.producer()
    if maker is not None and g.is_op(maker, "DequantizeLinear") and maker.inputs[0] is not None:
        value = maker.inputs[0]
    return (value.name or "") in pieces.values


def _held(batches: Sequence[Batch], samples: int) -> list[Array]:
    """Return by batch which samples are not fitted on."""
    masks, start = [], 0
    for batch in batches:
        index = np.arange(start, start + batch.samples)
        masks.append((index % _HELD == _HELD - 1) & (samples >= _HELD))
        start += batch.samples
    return masks


def _numbers(array: Array, mask: Array) -> Array:
    """Return a mask without samples of which a model makes what is no number."""
    if not array.ndim or len(array) != len(mask) or array.dtype.kind != "f":
        return mask
    found: Array = mask & np.isfinite(array.reshape(len(mask), -1)).all(axis=1)
    return found


def _rows_of(array: Array, mask: Array) -> Array:
    """Return the chosen samples of a batch; a batch without such an axis counts as a whole."""
    if mask.all() or not array.ndim or len(array) != len(mask):
        return array
    return np.ascontiguousarray(array[mask])
