"""Recurrent layers: their gates are fitted as if the state before each step were the original's.

What the units that are gone added to a gate is predicted from the input and from the units that are
left, by least squares. As long as the states stay close to the original's, each step makes what the
original makes; layers behind are fitted to the states that really arise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from passes.reconstruction.least_squares import Map, System

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.reconstruction.fit import Recipe
    from passes.reconstruction.targets import Kept
    from passes.tuning.segments import Pieces

Array = np.ndarray[Any, Any]
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_W, _R, _BIAS, _LENGTHS, _STATE = 1, 2, 3, 4, 5
_FEW = 2
"""Rows per input below which weights stay."""
_RIDGES = (1.0, 10.0, 100.0, 1000.0)
_EXACT = 1e-10
"""Share of the variance of the gates below which an error is rounding."""
_MOST_NUMBERS = 48_000_000
"""Numbers of all rows of a layer."""


@dataclass(frozen=True, eq=False)
class Recurrent:
    """LSTM, GRU or RNN with constant weights.

    Attributes:
        node: The layer.
        gates: 4, 3 or 1.
        w: float64 (directions, gates, hidden, inputs).
        r: float64 (directions, gates, hidden, hidden).
        bias: float64 (directions, 2, gates, hidden): that of W, and that of R.
        reverse: By direction, whether it goes from the last step to the first.
        inside: GRU multiplies with the reset gate what the weights make, not what they read.
        started: It starts from a state that is not zero.
    """

    node: ir.Node
    gates: int
    w: Array
    r: Array
    bias: Array
    reverse: tuple[bool, ...]
    inside: bool
    started: bool

    @property
    def hidden(self) -> int:
        """Units of one direction."""
        return int(self.w.shape[2])

    def stored(self, w: Array, r: Array, bias: Array) -> dict[int, Array]:
        """Return new constants by position of the input."""
        sides = len(self.w)
        made = {
            _W: w.reshape(sides, -1, w.shape[-1]),
            _R: r.reshape(sides, -1, r.shape[-1]),
            _BIAS: bias.reshape(sides, -1),
        }
        old = g.constant_array(self.node.inputs[_W])
        assert old is not None
        return {place: np.ascontiguousarray(array, old.dtype) for place, array in made.items()}


def recurrent_of(node: ir.Node) -> Recurrent | str | None:
    """Describe a node; the reason why its weights cannot be fitted; None: it is none."""
    if not g.is_op(node, *_GATES):
        return None
    arrays = [g.constant_array(node.inputs[i]) for i in (_W, _R)]
    if any(array is None for array in arrays):
        return "its weights are not constant"
    reason = _obstacle(node)
    if reason:
        return reason
    w, r = (np.asarray(array, np.float64) for array in arrays)
    gates, sides, hidden = _GATES[node.op_type], len(w), r.shape[2]
    value = node.inputs[_BIAS] if len(node.inputs) > _BIAS else None
    given = g.constant_array(value)
    if value is not None and given is None:
        return "its bias is not constant"
    bias = np.zeros((sides, 2, gates, hidden)) if given is None else np.asarray(given, np.float64)
    direction = node.attributes.get_string("direction", "forward")
    return Recurrent(
        node,
        gates,
        w.reshape(sides, gates, hidden, -1),
        r.reshape(sides, gates, hidden, hidden),
        bias.reshape(sides, 2, gates, hidden),
        {"forward": (False,), "reverse": (True,)}.get(direction, (False, True)),
        bool(node.attributes.get_int("linear_before_reset", 0)),
        len(node.inputs) > _STATE and node.inputs[_STATE] is not None,
    )


def _obstacle(node: ir.Node) -> str:
    """Say why a layer is left alone."""
    if len(node.inputs) > _LENGTHS and node.inputs[_LENGTHS] is not None:
        return "its sequences have lengths of their own"
    if node.attributes.get_int("layout", 0):
        return "its batch comes before its time"
    if node.op_type == "GRU" and "activations" in node.attributes:
        return "its activations are named"
    return ""


@dataclass(frozen=True, eq=False)
class Sequences:
    """What a layer reads and makes for one batch: arrays of float32.

    Attributes:
        own: What the changed layer reads: (steps, samples, inputs).
        given: What the original reads.
        states: States of the original: (steps, directions, samples, hidden).
        held: bool (samples,): not to be fitted on.
        every: Of so many rows one is taken.
    """

    own: Array
    given: Array
    states: Array
    held: Array
    every: int = 1


@dataclass(frozen=True, eq=False)
class Refit:
    """New weights of a layer; None: they stay.

    Attributes:
        constants: By position of the input.
        before: Power of the error of the gates as a share of their variance.
        after: The same with the new weights.
    """

    constants: dict[int, Array] | None
    before: float
    after: float

    @property
    def what(self) -> str:
        """What was done, for people."""
        if self.constants is None:
            return "it is exact already" if not self.before > _EXACT else "no fit is better"
        return "least squares of the gates"


def fit_recurrent(
    nodes: tuple[ir.Node, ir.Node],
    models: tuple[Pieces, Pieces],
    kept: Kept,
    masks: Sequence[Array],
    recipe: Recipe,
) -> Refit | str:
    """Fit a recurrent layer at which both models stand.

    Args:
        nodes: The layer in the changed model and in the original.
        models: Both.
        kept: What is left of the original, by value.
        masks: By batch, bool (samples,): not to be fitted on.
        recipe: How.

    Returns:
        New weights, or why there are none.
    """
    if not recipe.refits:
        return "recurrent layers are fitted by least squares alone"
    student, teacher = (recurrent_of(node) for node in nodes)
    assert isinstance(student, Recurrent)
    assert isinstance(teacher, Recurrent)
    left = _left(nodes[1], kept, teacher)
    if len(left) != student.hidden or len(student.w) != len(teacher.w):
        return "its output is not a part of the original's"
    batches = list(_batches(nodes, models, masks))
    if any(seen.own.shape[:2] != seen.given.shape[:2] for seen in batches):
        return "its input has another shape than the original's"
    every = _every(student, batches, recipe)
    return refit(student, teacher, left, [replace(b, every=every) for b in batches], recipe.ridge)


def _every(layer: Recurrent, batches: Sequence[Sequences], recipe: Recipe) -> int:
    """Return of how many rows one is taken: enough for the weights, and what memory allows."""
    rows = sum(seen.own.shape[0] * seen.own.shape[1] for seen in batches)
    depth = int(layer.w.shape[-1]) + layer.hidden
    samples = sum(len(seen.held) for seen in batches)
    wanted = max(recipe.positions * samples, 8 * recipe.rows * depth)
    bound = _MOST_NUMBERS // (layer.gates * layer.hidden + depth)
    return max(1, int(rows // max(1, min(wanted, bound))))


def _left(node: ir.Node, kept: Kept, teacher: Recurrent) -> Array:
    """Return the units of the original that are left."""
    for value in node.outputs:
        axes = kept.get(value.name or "")
        if axes is not None and axes[-1] is not None:
            return axes[-1]
    return np.arange(teacher.hidden)


def _batches(
    nodes: tuple[ir.Node, ir.Node], models: tuple[Pieces, Pieces], masks: Sequence[Array]
) -> Iterator[Sequences]:
    teacher = nodes[1]
    states = teacher.outputs[0]
    if not states.name:
        states.name = f"{next(v.name for v in teacher.outputs if v.name)}_states"
    inputs = [node.inputs[0] for node in nodes]
    assert inputs[0] is not None
    assert inputs[1] is not None
    made = models[1].ahead(teacher)
    sides = zip(models[0].arrays(inputs[0]), models[1].arrays(inputs[1]), made, strict=True)
    for ((own, *_), (given, *_), after), mask in zip(sides, masks, strict=True):
        samples = own.shape[1]
        whole = samples % len(mask)
        held = np.zeros(samples, bool) if whole else np.repeat(mask, samples // len(mask))
        yield Sequences(own, given, after, held)


def refit(
    student: Recurrent, teacher: Recurrent, left: Array, seen: Sequence[Sequences], ridge: float
) -> Refit:
    """Fit all gates of a layer.

    Args:
        student: The changed layer.
        teacher: The original.
        left: Units of the original that are left.
        seen: Both run over the samples, batch by batch.
        ridge: Weight of the present weights, relative to the mean square of what is read.
    """
    w, r, bias = student.w.copy(), student.r.copy(), student.bias.copy()
    before = after = total = 0.0
    for side in range(len(w)):
        for part in _parts(
            student, teacher, left, [_steps(teacher, batch, side) for batch in seen]
        ):
            errors = part.fit(w[side], r[side], bias[side], ridge)
            before, after, total = (
                a + b for a, b in zip((before, after, total), errors, strict=True)
            )
    before, after = (each / total if total > 0.0 else 0.0 for each in (before, after))
    if not after < before:
        return Refit(None, before, before)
    return Refit(student.stored(w, r, bias), before, after)


@dataclass(frozen=True, eq=False)
class _Part:
    """Gates that read the same.

    Attributes:
        gates: Which.
        inputs: float32 (rows, inputs that x gives), or nothing of it.
        states: float32 (rows, hidden), or nothing of it.
        wanted: float32 (rows, gates * hidden).
        held: bool (rows,).
    """

    gates: slice
    inputs: Array
    states: Array
    wanted: Array
    held: Array

    def fit(self, w: Array, r: Array, bias: Array, ridge: float) -> tuple[float, float, float]:
        """Write new numbers where they are better; return errors before and after, and variance.

        Args:
            w: Of one direction: (gates, hidden, inputs).
            r: Likewise: (gates, hidden, hidden).
            bias: Likewise: (2, gates, hidden).
            ridge: See :func:`refit`.
        """
        present = self._present(w, r, bias)
        rows = np.concatenate([self.inputs, self.states], axis=1)
        judge = self.held if self.held.any() and not self.held.all() else np.ones_like(self.held)
        fitted = ~self.held if not judge.all() else judge
        wanted = self.wanted[judge]
        signal = _power(wanted - wanted.mean(axis=0))
        before = best = _power(present(rows[judge]) - wanted)
        if np.count_nonzero(fitted) < _FEW * (rows.shape[1] + 1):
            return before, before, signal
        mask = present.weight != 0.0  # zeros of an earlier pass stay zeros
        whole = bool(mask.all())
        system = System(np.ascontiguousarray(rows[fitted]), present, mask=None if whole else mask)
        pull = system.pull(self.wanted[fitted])
        for factor in _RIDGES:
            try:
                system.factorise(ridge * factor)
            except np.linalg.LinAlgError:
                break
            found = system.solve(pull)
            error = _power(found(rows[judge]) - wanted)
            if not error < best:
                break
            best = error
            self._write(found, w, r, bias)
        return before, best, signal

    def _present(self, w: Array, r: Array, bias: Array) -> Map:
        parts = [self._reads(w, self.inputs), self._reads(r, self.states)]
        both = bias[0, self.gates] * bool(self._reads_any(self.inputs))
        both = both + bias[1, self.gates] * bool(self._reads_any(self.states))
        return Map(np.concatenate(parts, axis=1), both.reshape(-1))

    def _reads(self, weights: Array, rows: Array) -> Array:
        chosen = weights[self.gates].reshape(-1, weights.shape[-1])
        return chosen if self._reads_any(rows) else chosen[:, :0]

    @staticmethod
    def _reads_any(rows: Array) -> bool:
        return bool(rows.shape[1])

    def _write(self, found: Map, w: Array, r: Array, bias: Array) -> None:
        middle = self.inputs.shape[1]
        shape = w[self.gates].shape[:2]
        if middle:
            w[self.gates] = found.weight[:, :middle].reshape(*shape, -1)
        if self.states.shape[1]:
            r[self.gates] = found.weight[:, middle:].reshape(*shape, -1)
        new = found.bias.reshape(shape)
        if not middle:
            bias[1, self.gates] = new
            return
        if self.states.shape[1]:
            new = new - bias[1, self.gates]
        bias[0, self.gates] = new


@dataclass(frozen=True, eq=False)
class _Steps:
    """Rows of one direction: one for each step of each sample that is taken.

    Attributes:
        own: What the changed layer reads: (rows, inputs).
        given: What the original reads.
        before: The state of the original before the step: (rows, hidden).
        held: bool (rows,).
        side: The direction.
    """

    own: Array
    given: Array
    before: Array
    held: Array
    side: int


def _steps(teacher: Recurrent, seen: Sequences, side: int) -> _Steps:
    """Return both inputs and the state before each step."""
    order = slice(None, None, -1) if teacher.reverse[side] else slice(None)
    states = seen.states[order, side]
    first = int(teacher.started)  # the state before the first step is not known
    before = np.concatenate([np.zeros_like(states[:1]), states[:-1]])
    held = np.tile(seen.held, len(states) - first)
    parts = [
        np.ascontiguousarray(each[first:].reshape(-1, each.shape[-1])[:: seen.every], np.float32)
        for each in (seen.own[order], seen.given[order], before)
    ]
    return _Steps(parts[0], parts[1], parts[2], held[:: seen.every], side)


def _parts(
    student: Recurrent, teacher: Recurrent, left: Array, batches: Sequence[_Steps]
) -> Iterator[_Part]:
    """Yield gates of one direction with what they read and what they should make."""
    side = batches[0].side
    own, given, before, held = (
        np.concatenate([getattr(batch, name) for batch in batches])
        for name in ("own", "given", "before", "held")
    )
    states = np.ascontiguousarray(before[:, left])
    from_x = [given @ _of(teacher.w, side, k) + teacher.bias[side, 0, k] for k in _all(teacher)]
    from_h = [before @ _of(teacher.r, side, k) + teacher.bias[side, 1, k] for k in _all(teacher)]

    def joined(arrays: Sequence[Array]) -> Array:
        return np.concatenate([a[:, left] for a in arrays], axis=1).astype(np.float32)

    plain = 2 if teacher.node.op_type == "GRU" else teacher.gates
    both = joined([from_x[k] + from_h[k] for k in range(plain)])
    yield _Part(slice(0, plain), own, states, both, held)
    if plain == teacher.gates:
        return
    if student.inside:
        yield _Part(slice(2, 3), own, states[:, :0], joined([from_x[2]]), held)
        yield _Part(slice(2, 3), own[:, :0], states, joined([from_h[2]]), held)
        return
    reset = 1.0 / (1.0 + np.exp(-(from_x[1] + from_h[1])))
    gated = (reset * before).astype(np.float32)
    candidate = gated @ _of(teacher.r, side, 2) + teacher.bias[side, 1, 2]
    read = np.ascontiguousarray(gated[:, left])
    yield _Part(slice(2, 3), own, read, joined([from_x[2] + candidate]), held)


def _all(layer: Recurrent) -> range:
    return range(layer.gates)


def _of(weights: Array, side: int, gate: int) -> Array:
    """Return the transposed weights of one gate."""
    return np.ascontiguousarray(weights[side, gate].T, np.float32)


def _power(array: Array) -> float:
    return float(np.square(array, dtype=np.float64).sum())
