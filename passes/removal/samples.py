"""Samples to measure and fit on: those of the user, or smooth noise where there are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from converter.core.context import Batch
from converter.data.smooth import make_smooth

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context

MOST = 512
"""Samples that are fitted on, spread over the data: more change the result little."""
_LEAST_MADE = 64
_MADE_WORK = 5e11
"""Multiply-accumulates of one run over all samples that are made up."""
_BATCH = 16
_ENOUGH = 64


def samples_for(model: ir.Model, context: Context, macs: float) -> tuple[Sequence[Batch], str]:
    """Return samples and a sentence about them.

    Args:
        model: Whose inputs they fit.
        context: Holds the user's samples, or none.
        macs: Multiply-accumulates of one sample, to choose how many are made up.
    """
    if context.dataset is None:
        count = int(min(MOST, max(_LEAST_MADE, _MADE_WORK / max(1, macs))))
        made = make_smooth(model, batch=_BATCH, samples=count, seed=context.seed)
        said = f"no samples were given: {made.description}; real ones keep more of the accuracy"
        return list(made), said
    total = context.dataset.samples
    every = max(1, math.ceil(total / MOST))
    batches = list(islice(iter(context.dataset), None, None, every))
    used = sum(batch.samples for batch in batches)
    said = f"measured and fitted on {used} of {total} samples"
    if used < _ENOUGH:
        said += ", which is few: 64 to 512 unlabelled ones keep more of the accuracy"
    return batches, said


def per_run(context: Context) -> int:
    """Return how many samples the run has whose sizes were observed: the first batch."""
    first = None if context.dataset is None else next(iter(context.dataset), None)
    return 1 if first is None else max(1, first.samples)
