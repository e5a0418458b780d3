"""New numbers for one layer, and whether they are better on rows that were not fitted on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from passes.reconstruction.activation import Activation
from passes.reconstruction.least_squares import Map, Pull, System
from passes.reconstruction.linear import Linear
from passes.reconstruction.moments import matched, shifted
from passes.reconstruction.support import Keep, Support
from passes.reconstruction.tail import Tail
from passes.reconstruction.targets import Rows
from passes.rounding.gptq import MOST_COLUMNS
from passes.sparsity.patterns import UNSTRUCTURED, Pattern

Array = np.ndarray[Any, Any]
Method = Literal["least_squares", "obs", "moments", "bias"]
_EXACT = 1e-10
"""Share of the output's variance below which an error is rounding."""
_RELAXED = 0.6
"""How much further than to the solution a round goes that is not the last."""
_PLENTY = 4
"""Rows per input below which the ridge is larger, if nothing can be held out to choose it."""
_FEW = 2
"""Rows per input below which weights stay, if nothing can be held out to judge by."""
_CHOICES = 2
"""How often it is asked which weights stay, where an activation follows ..."""
_LARGE = 2e9
"""... and so many multiply-accumulates of one round are not exceeded."""
_RIDGES = (1.0, 10.0, 100.0, 1000.0, 10_000.0)


@dataclass(frozen=True)
class Recipe:
    """How layers are fitted.

    Attributes:
        method: "least_squares": weights and biases; "obs": also which weights are zero, as far as
            ``zeros`` says how many; "moments": mean and deviation of every
            channel; "bias": means alone.
        positions: Rows of one sample.
        rows: Least number of rows per input of a layer; more positions are taken for it.
        ridge: Weight of the present weights, relative to the mean of the diagonal of the Gram
            matrix.
        iterations: Rounds that take an activation into account; 0: none.
        depthwise: Also fit layers whose groups have one input channel.
        zeros: By the name of a layer's output, how many of its weights are zero: which ones is
            chosen anew for what the layer then reads ("obs"). Layers that are not named keep the
            zeros that they have.
        pattern: The units in which weights become zero.
    """

    method: Method = "least_squares"
    positions: int = 48
    rows: int = 8
    ridge: float = 1e-3
    iterations: int = 3
    depthwise: bool = True
    zeros: Mapping[str, int] = field(default_factory=dict)
    pattern: Pattern = UNSTRUCTURED

    @property
    def refits(self) -> bool:
        """Tell whether weights are fitted."""
        return self.method in ("least_squares", "obs")


@dataclass(frozen=True, eq=False)
class Found:
    """New numbers of a layer.

    Attributes:
        weight: float64 (groups, outputs of a group, inputs of a group); None: they stay.
        bias: float64 (outputs,); None: it stays.
        before: Power of the error as a share of the output's variance.
        after: The same with the new numbers.
        what: What was done, or why nothing was.
    """

    weight: Array | None
    bias: Array | None
    before: float
    after: float
    what: str


@dataclass(frozen=True, eq=False)
class Choice:
    """The question which weights of a layer stay.

    Attributes:
        keep: Answers it for scores (groups, inputs of a group, outputs of a group).
        original: The original's weight, which the new one is pulled to: float64 (groups, outputs of
            a group, inputs of a group).
        bias: The original's bias: float64 (outputs,).
    """

    keep: Keep
    original: Array
    bias: Array


def fit(
    layer: Linear, tail: Tail, rows: Rows, recipe: Recipe, choice: Choice | None = None
) -> Found:
    """Fit a layer to what the original makes; nothing is changed that does not gain by it.

    Args:
        layer: The changed layer.
        tail: What follows it.
        rows: What it reads and what it is to make.
        recipe: How it is fitted.
        choice: Which of the original's weights stay is asked again; None: its zeros are given.
    """
    problem = _Problem(layer, tail, rows, recipe)
    present = [Map(w, b) for w, b in problem.parts(layer.weight, layer.bias)]
    before = problem.error(present)
    if not before > _EXACT:
        return Found(None, None, before, before, "it is exact already" if before >= 0 else _NAN)
    best = _Best(present, before, problem.usual())
    if recipe.refits and problem.many_rows():
        found = choice is not None and problem.chosen(best, choice)
        if not found:
            problem.squares(best)
    if recipe.method == "moments":
        best.offer(problem, problem.simple(present, matched), "means and deviations")
    if layer.home is not None and (best.maps is present or recipe.method == "bias"):
        best.offer(problem, problem.simple(present, shifted), "the means")
    if best.maps is present:
        return Found(None, None, before, before, best.what)
    made = np.stack([m.weight for m in best.maps])
    weight = None if np.array_equal(made, layer.weight) else made
    bias = np.concatenate([m.bias for m in best.maps])
    return Found(weight, bias if layer.home is not None else None, before, best.error, best.what)


_NAN = "its values are not finite"


@dataclass(eq=False)
class _Best:
    """The best maps so far.

    Attributes:
        maps: One per group.
        error: Of these.
        what: How they were found.
    """

    maps: list[Map]
    error: float
    what: str

    def offer(self, problem: _Problem, maps: list[Map], what: str) -> bool:
        """Take other maps if they are better; tell whether they are."""
        error = problem.error(maps)
        if not error < self.error:
            return False
        self.maps, self.error, self.what = maps, error, what
        return True


class _Problem:
    """One layer with its rows, split into those to fit on and those to judge by."""

    def __init__(self, layer: Linear, tail: Tail, rows: Rows, recipe: Recipe) -> None:
        self.layer = layer
        self.recipe = recipe
        self.activation = tail.activation or Activation()
        self.bounded = tail.activation is not None
        gain = tail.gain.astype(np.float32)
        self._gain = gain
        self._divisor = np.where(gain == 0.0, np.float32(1.0), gain)
        rows = _finite(rows)
        self._held = bool(rows.held.any()) and not bool(rows.held.all())
        self._fit = _part(rows, ~rows.held) if self._held else rows
        self._judge = _part(rows, rows.held) if self._held else rows
        self._each = layer.weight.shape[1]

    def parts(self, weight: Array, bias: Array) -> Iterator[tuple[Array, Array]]:
        """Yield weight and bias of each group."""
        for i, matrix in enumerate(weight):
            yield matrix, bias[self._columns(i)]

    def _columns(self, group: int) -> slice:
        return slice(group * self._each, (group + 1) * self._each)

    def error(self, maps: list[Map]) -> float:
        """Return the power of the error on the rows to judge by, relative to the variance."""
        noise = signal = 0.0
        rows = self._judge
        for i, each in enumerate(maps):
            made = self.activation(self._made(each, rows, i))
            wanted = self.activation(rows.wanted[:, self._columns(i)])
            noise += float(np.square(made - wanted, dtype=np.float64).sum())
            centred = wanted - wanted.mean(axis=0)
            signal += float(np.square(centred, dtype=np.float64).sum())
        return noise / signal if signal > 0.0 else (0.0 if noise == 0.0 else np.inf)

    def _made(self, each: Map, rows: Rows, group: int) -> Array:
        """Return what a group makes before the activation."""
        columns = self._columns(group)
        made = each(rows.inputs[:, group])
        return made * self._gain[columns] + rows.rest[:, columns]

    def usual(self) -> str:
        """Say why nothing is done, where no fit is better."""
        if self.recipe.refits and self.layer.depth > MOST_COLUMNS:
            return f"it has more than {MOST_COLUMNS:,} inputs per output: only means were tried"
        if self.recipe.refits and not self.many_rows():
            return "too few samples to fit its weights: only means were tried"
        return "no fit is better on what was held out"

    def many_rows(self) -> bool:
        """Tell whether weights can be fitted at all."""
        if self.layer.geometry.groups > 1 and not self.recipe.depthwise and self._single():
            return False
        if self.layer.depth > MOST_COLUMNS:
            return False
        return self._held or len(self._fit.inputs) >= _FEW * (self.layer.depth + 1)

    def _single(self) -> bool:
        return self.layer.depth == int(np.prod(self.layer.geometry.kernel))

    def _ridges(self) -> tuple[float, ...]:
        """Return factors of the ridge to try: few samples need a stronger one."""
        if self._held:
            return _RIDGES
        plenty = len(self._fit.inputs) >= _PLENTY * (self.layer.depth + 1)
        return _RIDGES[:1] if plenty else _RIDGES[1:2]

    def chosen(self, best: _Best, choice: Choice) -> bool:
        """Fit with weights chosen anew; tell whether that is better than the present layer."""
        whole = [Map(w, b) for w, b in self.parts(choice.original, choice.bias)]
        systems = [self._system(each, i) for i, each in enumerate(whole)]
        gained, search = False, None
        for _ in range(self._choices()):
            pulls = [
                s.pull(self._follows(best.maps[i], i, fitted=gained)) for i, s in enumerate(systems)
            ]
            found = [s.normal(p, self.recipe.ridge) for s, p in zip(systems, pulls, strict=True)]
            try:
                search = search or Support(np.stack([gram for gram, _ in found]))
                right = np.stack([each for _, each in found]) * self._strength()
                stays = search.choose(right, choice.keep).swapaxes(1, 2)
            except np.linalg.LinAlgError:
                break
            given = [Map(w.weight * m, w.bias) for w, m in zip(whole, stays, strict=True)]
            if not self.squares(best, given, systems):
                break
            gained = True
        return gained

    def _choices(self) -> int:
        """Return how often it is asked which weights stay."""
        large = self.layer.depth * self.layer.weight.size > _LARGE
        return _CHOICES if self.bounded and self.recipe.iterations and not large else 1

    def _strength(self) -> Array:
        """Return what an output counts: (groups, 1, outputs of a group)."""
        strength: Array = np.abs(self._gain).reshape(-1, 1, self._each)
        return strength

    def _follows(self, found: Map, group: int, *, fitted: bool) -> Array:
        """Return what a group is to make, as far as the activation behind a fit shows it."""
        wanted = self._fit.wanted[:, self._columns(group)]
        if fitted:
            wanted = self.activation.targets(wanted, self._made(found, self._fit, group))
        return self._goal(wanted, group)

    def squares(
        self, best: _Best, prior: list[Map] | None = None, like: list[System] | None = None
    ) -> bool:
        """Fit by least squares: the ridge first, then what the activation changes.

        Returns:
            True when that is better than the best so far.

        Args:
            best: Takes what is better.
            prior: What the layer is pulled to, with its zeros; None: the present layer.
            like: Systems of the same rows; None: there are none yet.
        """
        present = best.maps if prior is None else prior
        error = best.error
        systems = [
            self._system(each, i) if like is None else like[i].given(each, _mask(each))
            for i, each in enumerate(present)
        ]
        wanted = [self._fit.wanted[:, self._columns(i)] for i in range(len(present))]
        pulls = [
            s.pull(self._goal(w, i)) for i, (s, w) in enumerate(zip(systems, wanted, strict=True))
        ]
        chosen = 0.0
        for factor in self._ridges():
            start = best.maps if chosen else present
            maps = self._solved(systems, pulls, (present, start), factor)
            if not maps or not best.offer(self, maps, _named(factor)):
                break
            chosen = factor
        if not chosen or not self.bounded or not self.recipe.iterations:
            return best.error < error
        start = best.maps
        for system in systems:
            system.factorise(self.recipe.ridge * chosen)
        found = [
            self._rounds(s, w, i, start[i])
            for i, (s, w) in enumerate(zip(systems, wanted, strict=True))
        ]
        found = [
            self._kept_dead(f, p, i) for i, (f, p) in enumerate(zip(found, present, strict=True))
        ]
        best.offer(self, found, f"{best.what}, activation")
        return best.error < error

    def _solved(
        self, systems: list[System], pulls: list[Pull], maps: tuple[list[Map], ...], factor: float
    ) -> list[Map]:
        """Solve with a ridge; nothing when the rows are not finite.

        Args:
            systems: One per group.
            pulls: What each is solved for.
            maps: The present layer, and where to start.
            factor: Of the ridge.
        """
        present, start = maps
        made = []
        for i, (system, pull) in enumerate(zip(systems, pulls, strict=True)):
            try:
                system.factorise(self.recipe.ridge * factor)
            except np.linalg.LinAlgError:
                return []
            made.append(self._kept_dead(system.solve(pull, start[i]), present[i], i))
        return made

    def _rounds(self, system: System, wanted: Array, group: int, found: Map) -> Map:
        """Fit to targets that follow from what the activation does with the present fit."""
        for i in range(self.recipe.iterations):
            made = self._made(found, self._fit, group)
            goal = self._goal(self.activation.targets(wanted, made), group)
            new = system.solve(system.pull(goal), found)
            found = new if i == self.recipe.iterations - 1 else _further(found, new)
        return found

    def _system(self, prior: Map, group: int) -> System:
        return System(
            np.ascontiguousarray(self._fit.inputs[:, group]),
            prior,
            bias=self.layer.home is not None,
            mask=_mask(prior),
        )

    def _goal(self, wanted: Array, group: int) -> Array:
        """Return what the layer itself is to make."""
        columns = self._columns(group)
        goal: Array = (wanted - self._fit.rest[:, columns]) / self._divisor[columns]
        return goal

    def _kept_dead(self, found: Map, prior: Map, group: int) -> Map:
        """Leave outputs alone that are multiplied with zero."""
        dead = self._gain[self._columns(group)] == 0.0
        if not dead.any():
            return found
        weight = np.where(dead[:, None], prior.weight, found.weight)
        return Map(weight, np.where(dead, prior.bias, found.bias))

    def simple(self, present: list[Map], method: Callable[[Map, Array, Array], Map]) -> list[Map]:
        made = []
        for i, each in enumerate(present):
            rows = self._fit.inputs[:, i]
            goal = self._goal(self._fit.wanted[:, self._columns(i)], i)
            found = method(each, each(rows), goal)
            if self.layer.home is None:
                found = Map(found.weight, each.bias)
            made.append(self._kept_dead(found, each, i))
        return made


def _mask(prior: Map) -> Array | None:
    """Return which weights may differ from zero; None: all."""
    mask: Array = prior.weight != 0.0
    return None if mask.all() else mask


def _named(factor: float) -> str:
    return "least squares" + (f", ridge times {factor:g}" if factor != 1.0 else "")


def _further(old: Map, new: Map) -> Map:
    """Go beyond the solution: what comes after it lies in the same direction mostly."""
    return Map(
        new.weight + _RELAXED * (new.weight - old.weight),
        new.bias + _RELAXED * (new.bias - old.bias),
    )


def _finite(rows: Rows) -> Rows:
    """Leave out rows of samples that overflow or hold what is no number."""
    axes = (rows.inputs.sum(axis=(1, 2)), rows.wanted.sum(axis=1), rows.rest.sum(axis=1))
    chosen = np.isfinite(np.sum(axes, axis=0))
    return rows if chosen.all() or not chosen.any() else _part(rows, chosen)


def _part(rows: Rows, chosen: Array) -> Rows:
    return Rows(rows.inputs[chosen], rows.wanted[chosen], rows.rest[chosen], rows.held[chosen])
