"""Which samples weights are fitted on, and which allocations are judged by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.core.context import Batch
from passes.allocation.trial import joined, rows_count_samples, spread

Array = np.ndarray[Any, Any]
_FEW = 16
_JUDGED = 4
"""One of so many samples is judged by, the others are fitted on ..."""
_LEAST_JUDGED = 32
"""... where there are at least so many; all serve for both otherwise."""
_HELD = 4
"""One of so many samples that are judged by takes no part in the search."""


@dataclass(frozen=True, eq=False)
class Samples:
    """What the samples are used for.

    Attributes:
        fit: To work out weights.
        trial: To compare allocations.
        few: Some of these.
        held: To compare the best of all in the end.
        wide: All that are judged by and some that are fitted on, to compare what was fitted for
            itself: of few samples the least certain ones decide, and fits to thousands of rows say
            nearly the same of all.
    """

    fit: Sequence[Batch]
    trial: Sequence[Batch]
    few: Sequence[Batch]
    held: Sequence[Batch]
    wide: Sequence[Batch]


def chosen(batches: Sequence[Batch], counts: tuple[int, int], *, free: bool) -> Samples:
    """Share out samples.

    Args:
        batches: All of them.
        counts: Most samples of a trial, and most that are fitted on; where that is none, all can
            judge.
        free: The model takes batches of any size.
    """
    count, fitted = counts
    fit, judged = split(batches, free=free) if fitted else (batches, batches)
    apart = sum(b.samples for b in fit) < sum(b.samples for b in batches)
    judged = spread(judged, count + count // (_HELD - 1), divisible=free)
    trial, held = _parted(judged, _HELD, free=free)
    fit = spread(fit, max(1, fitted), divisible=free)
    few = spread(trial, _FEW, divisible=free)
    wide = [*trial, *held]
    if apart:
        wide += spread(fit, count, divisible=free)
    if free:
        fit, trial, held, few, wide = map(joined, (fit, trial, held, few, wide))
    return Samples(fit, trial, few, held, wide)


def split(batches: Sequence[Batch], *, free: bool) -> tuple[list[Batch], list[Batch]]:
    """Return what to fit on and what to judge by: the same where there are few samples.

    Args:
        batches: All samples.
        free: The model takes batches of any size.
    """
    free = free and all(rows_count_samples(batch) for batch in batches)
    units = sum(batch.samples for batch in batches) if free else len(batches)
    if units < _LEAST_JUDGED:
        return list(batches), list(batches)
    return _parted(batches, _JUDGED, free=free)


def _parted(batches: Sequence[Batch], every: int, *, free: bool) -> tuple[list[Batch], list[Batch]]:
    """Return most of the samples, and the last of every so many; all twice where that is none."""
    free = free and all(rows_count_samples(batch) for batch in batches)
    first: list[Batch] = []
    second: list[Batch] = []
    start = 0
    for i, batch in enumerate(batches):
        if not free:
            (second if i % every == every - 1 else first).append(batch)
            continue
        chosen = (np.arange(start, start + batch.samples) % every) == every - 1
        start += batch.samples
        for found, rows in ((first, ~chosen), (second, chosen)):
            found.extend(_rows(batch, rows))
    return (first, second) if first and second else (list(batches), list(batches))


def _rows(batch: Batch, rows: Array) -> Iterator[Batch]:
    if rows.any():
        inputs = {name: np.asarray(array)[rows] for name, array in batch.inputs.items()}
        yield Batch(inputs, None, int(rows.sum()))
