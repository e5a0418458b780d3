"""What samples show about each term of a budget, with a margin for those that were not drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.measure.accuracy import ScoreMeter, Scores, as_scores
from converter.measure.difference import DifferenceMeter

if TYPE_CHECKING:
    from converter.core.context import Batch, Bound

Array = np.ndarray[Any, Any]
GROUPS = 8
"""Parts of the samples whose spread gives the standard error of sums over outputs."""
_MOST_ROWS = 512
"""Rows up to which leads are compared; of more, counting is as good."""
_SHARPER = 0.75
"""Margin of an estimate from leads over that of a count; 0.53 was measured."""
_FLOOR = 1e-12
_NO_SCORES = ("embed", "feature", "latent", "hidden", "state", "cache", "box")
_SUMS = ("signal", "other", "product", "noise", "elements", "unequal")


@dataclass(frozen=True)
class Figure:
    """One term of the budget on the samples.

    Attributes:
        measured: The figure itself, in the unit of the bound.
        cautious: The same moved towards the bad by the margin; it is held against the bound.
        excess: Error of the cautious figure over what is allowed: at most 1 when it holds.
    """

    measured: float
    cautious: float
    excess: float


@dataclass
class Evidence:
    """Differences between two models, gathered batch by batch in constant memory."""

    scores: dict[str, ScoreMeter] = field(default_factory=dict)
    margins: dict[str, list[Array]] = field(default_factory=dict)
    groups: list[dict[str, DifferenceMeter]] = field(default_factory=list)
    batches: int = 0
    samples: int = 0

    def update(self, expected: Mapping[str, Any], actual: Mapping[str, Any], batch: Batch) -> None:
        """Take in the outputs of one batch."""
        group = self.batches % GROUPS
        if group == len(self.groups):
            self.groups.append({})
        shapes = {getattr(array, "shape", None) for array in batch.inputs.values()}
        for name, old in expected.items():
            meters = self.groups[group]
            meters.setdefault(name, DifferenceMeter(name)).update(old, actual[name])
            scores = self.scores.setdefault(name, ScoreMeter(name))
            # the same outputs are no class scores as in the verification
            named = any(word in name.lower() for word in _NO_SCORES)
            if named or getattr(old, "shape", None) in shapes:
                scores.possible = False
            scores.update(old, actual[name], batch.targets, batch.samples)
            if scores.possible and scores.rows <= _MOST_ROWS:
                self.margins.setdefault(name, []).append(_margins(old, actual[name]))
        self.batches += 1
        self.samples += batch.samples

    @property
    def broken(self) -> str:
        """What is wrong with the outputs as such, or ""."""
        meters = [meter for group in self.groups for meter in group.values()]
        return next((f"output {m.name!r}: {m.broken[0]}" for m in meters if m.broken), "")

    def found_scores(self) -> list[Scores]:
        """Return the outputs that hold class scores."""
        return [found for meter in self.scores.values() if (found := meter.result()) is not None]

    def likely_agreement(self, output: str) -> float:
        """Estimate the share of rows with the same best class, of many rows like these.

        The lead of each row's best class over the next, times the slope of new over old leads, is
        held against what is left of the new lead in every row: n rows give n * n comparisons. Of
        a ResNet-20 with 5 % other classes, 32 images tell the share within 2.1 points so, and
        within 3.9 by counting.
        """
        old, new = np.concatenate(self.margins[output], axis=1)
        power = float(old @ old)
        expected = max(0.0, float(old @ new) / power) * old if power else old
        rest = new - expected
        if not rest.any():
            return 1.0
        return float(np.mean(expected[:, None] + rest[None, :] > 0))

    def outputs(self, without: int = -1) -> Iterable[DifferenceMeter]:
        """Yield one meter per output over all groups, or all but one."""
        kept = [group for i, group in enumerate(self.groups) if i != without]
        for name in dict.fromkeys(name for group in kept for name in group):
            yield _merged(name, [group[name] for group in kept if name in group])


def _merged(name: str, meters: Sequence[DifferenceMeter]) -> DifferenceMeter:
    given = {f.name: getattr(meters[0], f.name) for f in fields(DifferenceMeter)}
    given |= {key: sum(getattr(meter, key) for meter in meters) for key in _SUMS}
    given |= {key: max(getattr(m, key) for m in meters) for key in ("max_abs", "magnitude")}
    return DifferenceMeter(**{**given, "name": name})


def figure(evidence: Evidence, bound: Bound, margin: float) -> Figure | None:
    """Hold the samples against one term.

    Args:
        evidence: All samples.
        bound: The term.
        margin: In standard errors; 0: the figure itself decides.

    Returns:
        None when the term is about something else, or cannot be measured on these samples.
    """
    row = _ROWS.get(bound.metric)
    return None if row is None else row(evidence, bound, margin)


def measurable(bound: Bound) -> bool:
    """Tell whether the term is about results, and not about size or speed."""
    return bound.metric in _ROWS


def _share_of(errors: float, allowed: float) -> float:
    """Return errors over those that are allowed."""
    if errors <= 0:
        return 0.0
    return errors / allowed if allowed > 0 else math.inf


def _agreement(evidence: Evidence, bound: Bound, margin: float) -> Figure | None:
    found = evidence.found_scores()
    if not found:
        return None
    worst = min(found, key=lambda scores: scores.agreement)
    share, rows = worst.agreement, worst.samples
    wanted = 1.0 - bound.value if bound.metric == "flips" else bound.value
    cautious = _least(share, rows, margin, wanted)
    if margin and rows <= _MOST_ROWS:
        likely = evidence.likely_agreement(worst.output)
        cautious = min(share, likely - _SHARPER * margin * math.sqrt(likely * (1 - likely) / rows))
    if bound.metric == "flips":
        return Figure(1.0 - share, 1.0 - cautious, _share_of(1.0 - cautious, bound.value))
    return Figure(share, cautious, _share_of(1.0 - cautious, 1.0 - bound.value))


def _margins(old: Array, new: Array) -> Array:
    """Return the lead of each row's best class over the next, before and after: (2, rows)."""
    first, second = (_logarithms(as_scores(scores)) for scores in (old, new))
    order = np.argsort(-first, axis=1, kind="stable")[:, :2]
    leads = [np.take_along_axis(scores, order, axis=1) for scores in (first, second)]
    return np.stack([pair[:, 0] - pair[:, 1] for pair in leads])


def _logarithms(scores: Array | None) -> Array:
    """Return logits; probabilities, which are bounded, as their logarithms."""
    assert scores is not None
    wide = scores.astype(np.float64)
    if (wide >= 0).all() and np.allclose(wide.sum(axis=1), 1.0, atol=1e-3):
        wide = np.log(np.maximum(wide, _FLOOR))
    return wide


def _least(share: float, rows: int, margin: float, wanted: float) -> float:
    """Return the share that more samples would show at least: Wilson's bound (1927).

    Where the samples are so few that not even all of them would do, the plain standard error takes
    its place: then all of them must agree.
    """
    square = margin**2
    if rows / (rows + square) < wanted:
        return max(0.0, share - margin * math.sqrt(share * (1.0 - share) / rows))
    spread = margin * math.sqrt(share * (1.0 - share) / rows + square / (4 * rows**2))
    return (share + square / (2 * rows) - spread) / (1 + square / rows)


def _accuracy(evidence: Evidence, bound: Bound, margin: float) -> Figure | None:
    found = next((s for s in evidence.found_scores() if s.accuracy_original is not None), None)
    if found is None:
        return None
    assert found.accuracy_original is not None
    assert found.accuracy_converted is not None
    old, new = found.accuracy_original, found.accuracy_converted
    if not bound.ratio:
        cautious = new - margin * math.sqrt(new * (1.0 - new) / found.samples)
        return Figure(new, cautious, _share_of(old - cautious, old - bound.value))
    if not old:
        return Figure(1.0, 1.0, 0.0)
    assert found.lost is not None
    assert found.gained is not None
    lost, gained, rows = found.lost, found.gained, found.samples
    both, r = round(old * rows) - lost, bound.value
    mean = new - r * old
    square = (gained + both * (1.0 - r) ** 2 + lost * r**2) / rows
    error = math.sqrt(max(0.0, square - mean**2) / rows)
    cautious = (new - margin * error) / old
    return Figure(new / old, cautious, _share_of(1.0 - cautious, 1.0 - r))


def _spread(evidence: Evidence, of: Callable[[Iterable[DifferenceMeter]], float]) -> float:
    """Return the jackknife's standard error of a figure over all samples."""
    count = len(evidence.groups)
    if count < 2:
        return 0.0
    left = [of(evidence.outputs(without=i)) for i in range(count)]
    if not all(map(math.isfinite, left)):
        return 0.0
    middle = sum(left) / count
    return math.sqrt((count - 1) / count * sum((x - middle) ** 2 for x in left))


def _sqnr(evidence: Evidence, bound: Bound, margin: float) -> Figure | None:
    def worst(meters: Iterable[DifferenceMeter]) -> float:
        return min((meter.result().sqnr_db for meter in meters), default=math.inf)

    found = worst(evidence.outputs())
    cautious = found - margin * _spread(evidence, worst)
    return Figure(found, cautious, 10 ** min(30.0, (bound.value - cautious) / 10))


def _cosine(evidence: Evidence, bound: Bound, margin: float) -> Figure | None:
    def worst(meters: Iterable[DifferenceMeter]) -> float:
        return min((meter.result().cosine for meter in meters), default=1.0)

    found = worst(evidence.outputs())
    cautious = found - margin * _spread(evidence, worst)
    return Figure(found, cautious, _share_of(1.0 - cautious, 1.0 - bound.value))


def _largest(name: str) -> Callable[[Evidence, Bound, float], Figure | None]:
    def row(evidence: Evidence, bound: Bound, margin: float) -> Figure | None:
        del margin  # the largest of more samples follows from no standard error
        found = max((getattr(meter.result(), name) for meter in evidence.outputs()), default=0.0)
        return Figure(found, found, _share_of(found, bound.value))

    return row


_ROWS: dict[str, Callable[[Evidence, Bound, float], Figure | None]] = {
    "accuracy": _accuracy,
    "agreement": _agreement,
    "flips": _agreement,
    "sqnr": _sqnr,
    "cosine": _cosine,
    "max_error": _largest("max_abs"),
    "max_rel_error": _largest("max_rel"),
}
"""How each metric that is about results is read from the samples."""
