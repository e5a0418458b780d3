"""Depths that follow from curves: how many atoms of every component go for a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from converter.errors import ParameterError
from passes.allocation import choose, settle
from passes.allocation.blocks import FOUR, Padded, vector_channels
from passes.allocation.cost import Cost, Term, mac_terms, parameter_terms

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.coupling.structure import Component, Coupling
    from passes.allocation.curves import Curve

Array = np.ndarray[Any, Any]
Kind = Literal["flops", "params", "latency", "sparsity"]
Allocator = Literal["kl", "error", "uniform", "global", "dp"]
_LEAST_ROUNDED = (33, 64, 128, 256)  # sizes of components from which on counts are rounded
_PAYS = 1.08  # rounding may raise the predicted damage by so much
_FREE = ("kl", "error", "dp")  # allocations that may take more here and less there
_SLACK = 0.01  # and by so much more, below which differences do not matter
_CONVOLUTIONS = ("Conv", "FusedConv", "QLinearConv", "ConvTranspose")


@dataclass(frozen=True)
class Choice:
    """How to decide.

    Attributes:
        criterion: "obs", or a name of :data:`passes.importance.channels.CRITERIA`.
        allocation: How the depth is divided among components.
        compensate: What stays is re-fitted afterwards.
        keep: Least share of every component that stays.
        round_to: Counts of channels become multiples of it; "auto": of what the processor likes,
            where it costs little; 1: not at all.
    """

    criterion: str = "obs"
    allocation: Allocator = "kl"
    compensate: bool = True
    keep: float = 0.08
    round_to: int | Literal["auto"] = "auto"


@dataclass(frozen=True)
class Target:
    """What to reach.

    Attributes:
        kind: What is counted; "sparsity" is the share of atoms removed from every component.
        value: Share of the cost that may be left; of atoms removed for "sparsity".
        base: The cost that the share is of; None: of the model that the plan was made for.
    """

    kind: Kind
    value: float
    base: float | None = None


@dataclass(frozen=True, eq=False)
class Allocation:
    """What stays.

    Attributes:
        alive: bool (atoms,).
        share: Cost that is left, as a share of the base; for "sparsity" of multiply-accumulates.
        met: The target is met.
        loss: Predicted damage: the sum of what the components cost one by one.
        rounded: Multiple that counts were rounded to; 1: none.
        notes: What was decided, for the report.
    """

    alive: Array
    share: float
    met: bool
    loss: float
    rounded: int = 1
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Plan:
    """Curves of all components, from which any depth follows at once.

    Attributes:
        coupling: The atoms.
        components: Those that may be cut, in the order of the curves.
        curves: One per component.
        choice: How to decide.
        latency: Terms of the time of a run, for latency targets.
        notes: How the curves came about.
    """

    coupling: Coupling
    components: Sequence[Component]
    curves: Sequence[Curve]
    choice: Choice
    latency: Callable[[Sequence[Curve], int], Cost] | None = None
    notes: tuple[str, ...] = ()

    def at(self, target: Target) -> Allocation:
        """Return what stays for a target.

        Raises:
            ParameterError: A latency target without a table.
        """
        if target.kind == "sparsity":
            return self._even(target)
        cost = self._cost(target.kind)
        none = [0] * len(self.curves)
        base = target.base if target.base is not None else cost.total(none)
        goal = target.value * base
        found = self._choose(cost, goal, self._depthwise())
        if not self._meets(cost, found, goal):
            found = self._choose(cost, goal, [1] * len(self.curves))
        found, rounded = self._rounded(cost, goal, found)
        left = cost.total(found)
        met = left <= goal * (1 + 1e-9)
        notes: tuple[str, ...] = () if met else (self._limit(cost, target.kind, base),)
        if rounded > 1:
            notes += (self._blocks(rounded),)
        share = left / base if base else 1.0
        return Allocation(self.alive(found), share, met, self._loss(found), rounded, notes)

    def alive(self, rounds: Sequence[int]) -> Array:
        """Return bool (atoms,) after these rounds of every curve."""
        alive = self.coupling.all_alive()
        for curve, done in zip(self.curves, rounds, strict=True):
            alive[curve.order[: done * curve.unit]] = False
        return alive

    @cached_property
    def deepest(self) -> list[int]:
        """Rounds of every curve when as much goes as may."""
        return [curve.rounds for curve in self.curves]

    def _even(self, target: Target) -> Allocation:
        forced = self._roundings() if self.choice.round_to != "auto" else []
        quanta = forced[0] if forced else [1] * len(self.curves)
        rounds = []
        for curve, quantum in zip(self.curves, quanta, strict=True):
            stops = _options(curve, quantum, local=True).stops
            wanted = target.value * (len(curve.order) // curve.unit)
            rounds.append(int(stops[np.argmin(np.abs(stops - wanted))]))
        cost = self._cost("flops")
        base = cost.total([0] * len(rounds))
        short = [
            c.name
            for c, curve in zip(self.components, self.curves, strict=True)
            if round(target.value * (len(curve.order) // curve.unit)) > curve.rounds
        ]
        notes: tuple[str, ...] = ()
        if short:
            shown = ", ".join(short[:4]) + (" and others" if len(short) > 4 else "")
            notes = (
                f"at least {100 * self.choice.keep:g} % of a component stays (keep), so fewer "
                f"went than asked for of {shown}",
            )
        share = cost.total(rounds) / base if base else 1.0
        return Allocation(
            self.alive(rounds), share, not short, self._loss(rounds), max(quanta, default=1), notes
        )

    def _choose(self, cost: Cost, goal: float, quanta: Sequence[int]) -> list[int]:
        options = [
            choose.thinned(
                _options(curve, quantum, local=self.choice.allocation in ("error", "global"))
            )
            for curve, quantum in zip(self.curves, quanta, strict=True)
        ]
        how = self.choice.allocation
        if how == "uniform":
            rounds = [len(curve.order) // curve.unit for curve in self.curves]
            picks = choose.uniform(options, cost, goal, rounds)
        else:
            picks = _ALLOCATORS[how](options, cost, goal)
        return [int(o.stops[k]) for o, k in zip(options, picks, strict=True)]

    def _rounded(self, cost: Cost, goal: float, plain: list[int]) -> tuple[list[int], int]:
        """Round counts where that pays: less real work for hardly more damage."""
        roundings = self._roundings()
        if not roundings:
            return plain, 1
        if self.choice.round_to != "auto":
            tried = self._choose(cost, goal, roundings[0])
            return (tried, max(roundings[0])) if self._meets(cost, tried, goal) else (plain, 1)
        work = Padded(self.coupling, self.curves, vector_channels())
        most = _PAYS * self._loss(plain) + _SLACK
        terms = settle.Terms(cost, goal, work, _SLACK, most)

        def balance(rounds: Sequence[int]) -> float:
            return settle.balance(self._loss(rounds) + _SLACK, work.total(rounds))

        rounded = [self._choose(cost, goal, quanta) for quanta in roundings]
        every = [plain, *(each for each in rounded if self._fits(each, terms))]
        if self.choice.allocation in _FREE and self._meets(cost, plain, goal):
            begun = [plain, *sorted(every[1:], key=balance)[:1]]
            every += [self._settled(each, roundings[0], terms) for each in begun]
        best = min(every, key=balance)
        return best, 1 if best == plain else max(2, self._multiple(best))

    def _fits(self, rounds: Sequence[int], terms: settle.Terms) -> bool:
        return self._meets(terms.cost, rounds, terms.goal) and self._loss(rounds) <= terms.most

    def _settled(self, rounds: list[int], quanta: Sequence[int], terms: settle.Terms) -> list[int]:
        """Exchange channels between components, by fours."""
        options = [
            choose.including(
                choose.thinned(_options(curve, quantum, local=False)), done, curve.losses[done]
            )
            for curve, quantum, done in zip(self.curves, quanta, rounds, strict=True)
        ]
        at = [int(np.searchsorted(o.stops, done)) for o, done in zip(options, rounds, strict=True)]
        at = settle.settle(options, terms, at)
        return [int(o.stops[k]) for o, k in zip(options, at, strict=True)]

    def _multiple(self, rounds: Sequence[int]) -> int:
        """Return what the numbers that are left of components of convolutions have in common."""
        left = [
            len(curve.order) - done * curve.unit
            for curve, done, fours in zip(self.curves, rounds, self._roundings()[0], strict=True)
            if fours > 1
        ]
        return int(np.gcd.reduce(left)) if left else 1

    def _blocks(self, rounded: int) -> str:
        """Say how counts were rounded."""
        if self.choice.round_to != "auto":
            return f"numbers of channels of wide convolutions are multiples of {rounded}"
        return (
            "numbers of channels of convolutions were chosen for speed, too: the runtime works on "
            f"blocks of {vector_channels()} on this processor"
        )

    def _meets(self, cost: Cost, rounds: Sequence[int], goal: float) -> bool:
        return cost.total(rounds) <= goal * (1 + 1e-9)

    def _loss(self, rounds: Sequence[int]) -> float:
        return float(sum(c.losses[r] for c, r in zip(self.curves, rounds, strict=True)))

    def _roundings(self) -> list[list[int]]:
        """Return multiples by curve to try."""
        wanted = self.choice.round_to
        if wanted == 1:
            return []
        if wanted != "auto":
            return [self._quanta(int(wanted), 1, int(wanted) + 1)]
        block, always = vector_channels(), self._depthwise()
        found = [self._quanta(FOUR, FOUR, 2 * FOUR), self._quanta(FOUR, 1, block + 1)]
        found += [self._quanta(block, FOUR, least) for least in (block + 1, *_LEAST_ROUNDED)]
        found = [[max(pair) for pair in zip(each, always, strict=True)] for each in found]
        return [
            each
            for i, each in enumerate(found)
            if each not in found[:i] and max(each, default=1) > 1
        ]

    def _depthwise(self) -> list[int]:
        """Return multiples without which depthwise convolutions get slower than they were.

        Measured: 64 channels take 2.4 times as long once one is gone, and 60 take no longer;
        of 16, 8 take no longer and 12 do.
        """
        found = []
        for component, curve in zip(self.components, self.curves, strict=True):
            own = any(_is_depthwise(node) for node, _, _ in component.producers)
            multiple = vector_channels() // 2 if len(curve.order) == vector_channels() else FOUR
            found.append(multiple if own and self.choice.round_to == "auto" else 1)
        return found

    def _quanta(self, wide: int, narrow: int, least: int) -> list[int]:
        """Return multiples by curve: for components of so many atoms, and for those below."""
        found = []
        for component, curve in zip(self.components, self.curves, strict=True):
            size = len(curve.order)
            convolved = any(node.op_type in _CONVOLUTIONS for node, _, _ in component.producers)
            fitting = wide if size >= least else narrow if size >= 2 * FOUR else 1
            found.append(fitting if convolved else 1)
        return found

    def _cost(self, kind: Kind) -> Cost:
        if kind == "latency":
            if self.latency is None:
                raise ParameterError("there is no table of latencies to plan with")
            return self.latency(self.curves, self.coupling.size)
        terms: list[Term] = _TERMS[kind](self.coupling)
        return Cost(terms, self.curves, self.coupling.size)

    def _limit(self, cost: Cost, kind: Kind, base: float) -> str:
        """Say how far it can go, and what stands in the way."""
        floor = cost.total(self.deepest) / base if base else 1.0
        frozen = cost.fixed() / base if base else 1.0
        return (
            f"{_NAMES[kind]} can go down to {100 * floor:.1f} %, not further: "
            f"{100 * frozen:.1f} % are in layers of which nothing may be removed, and "
            f"{100 * self.choice.keep:g} % of every component stays (keep)"
        )


_TERMS: Mapping[str, Callable[[Coupling], list[Term]]] = {
    "flops": mac_terms,
    "params": parameter_terms,
}
_NAMES = {"flops": "multiply-accumulates", "params": "parameters", "latency": "the time of a run"}
_ALLOCATORS = {
    "kl": choose.best,
    "error": choose.best,
    "global": choose.by_threshold,
    "dp": choose.knapsack,
}


def _is_depthwise(node: ir.Node) -> bool:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type not in _CONVOLUTIONS or weight is None or weight.shape is None:
        return False
    groups = node.attributes.get_int("group", 1)
    return groups is not None and groups > 1 and weight.shape[0] == groups


def _options(curve: Curve, quantum: int, *, local: bool) -> choose.Options:
    """Return the stops of a curve at which the atoms left are a multiple of ``quantum``."""
    stops = np.arange(curve.rounds + 1)
    left = len(curve.order) - stops * curve.unit
    if quantum > 1 and (left[1:] % quantum == 0).any():
        stops = stops[(left % quantum == 0) | (stops == 0)]
    costs = curve.errors if local else curve.losses
    marginals = np.maximum.accumulate(np.diff(curve.errors, prepend=0.0) * len(curve.order))
    return choose.Options(stops, costs[stops], marginals[stops])
