"""Samples to measure and fit on: those of the user, or smooth noise where there are none."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

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
_MADE_ELEMENTS = 2e7
"""Elements of all samples that are made up: noise of large pictures takes its time."""
_BATCH = 16
_ENOUGH = 64
_FEW = 8
"""Fewer different samples than this say too little to fit on them alone."""


def samples_for(model: ir.Model, context: Context, macs: float) -> tuple[Sequence[Batch], str]:
    """Return samples and a sentence about them.

    Args:
        model: Whose inputs they fit.
        context: Holds the user's samples, or none.
        macs: Multiply-accumulates of one sample, to choose how many are made up.
    """
    if context.dataset is None:
        size = max(1, _elements(model))
        most = min(MOST, _MADE_WORK / max(1, macs), _MADE_ELEMENTS / size)
        count = int(max(_LEAST_MADE, most))
        made = make_smooth(model, batch=_BATCH, samples=count, seed=context.seed)
        said = f"no samples were given: {made.description}; real ones keep more of the accuracy"
        return list(made), said
    total = context.dataset.samples
    every = max(1, math.ceil(total / MOST))
    batches = list(islice(iter(context.dataset), None, None, every))
    used = sum(batch.samples for batch in batches)
    said = f"measured and fitted on {used} of {total} samples"
    different = _different(batches)
    if different < min(used, _ENOUGH):
        said += f", {different} of them different" if different > 1 else ", all equal"
    if different < _ENOUGH:
        said += "; these are few: 64 to 512 unlabelled ones keep more of the accuracy"
    return batches, said


def _elements(model: ir.Model) -> int:
    """Return the elements of one made-up sample."""
    batch = next(iter(make_smooth(model, batch=1, samples=1)))
    return sum(int(np.size(array)) for array in batch.inputs.values())


def made_besides(model: ir.Model, samples: Sequence[Batch], seed: int) -> tuple[list[Batch], str]:
    """Make up samples to fit on besides real ones that say too little by themselves.

    A fit on a handful of samples, or on copies of one, is perfect there and useless elsewhere.

    Args:
        model: Whose inputs they fit.
        samples: The real ones.
        seed: Of the noise.

    Returns:
        What was made up, and a sentence about it; nothing where there are enough real ones.
    """
    if _different(samples) >= _FEW:
        return [], ""
    made = make_smooth(model, batch=_BATCH, samples=_LEAST_MADE, seed=seed)
    return list(made), f"fewer than {_FEW} different samples; fitted on {made.description}, too"


def _different(batches: Sequence[Batch]) -> int:
    """Return how many samples differ from all before them; stops counting where it is enough."""
    seen: set[bytes] = set()
    for batch in batches:
        arrays = [np.asarray(array) for _, array in sorted(batch.inputs.items())]
        split = all(a.ndim and len(a) == batch.samples for a in arrays)
        for i in range(batch.samples if split else 1):
            digest = hashlib.blake2b(digest_size=16)
            for array in arrays:
                digest.update((array[i] if split else array).tobytes())
            seen.add(digest.digest())
        if len(seen) >= _ENOUGH:
            break
    return len(seen)


def per_run(context: Context) -> int:
    """Return how many samples the run has whose sizes were observed: the first batch."""
    first = None if context.dataset is None else next(iter(context.dataset), None)
    return 1 if first is None else max(1, first.samples)
