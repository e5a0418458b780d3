"""Run time of a packed model beside the plain one."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converter.errors import ConverterError

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context, Dataset

_SECONDS = (0.4, 2.0, 4.0)
"""How long is measured; longer ones only when the one before showed too much."""
_NOISE = 50e-6
"""Seconds that are no difference."""


@dataclass(frozen=True)
class RunTime:
    """How long a packed model runs, measured in turn with the plain one.

    Attributes:
        ratio: Median of the ratios to the plain model, or the ratio of the fastest runs if that is
            smaller.
        difference: Seconds between the medians.
        runs: Runs of each model.
    """

    ratio: float
    difference: float
    runs: int

    def beyond(self, limit: float) -> bool:
        """Tell whether the ratio is above a limit by more than noise."""
        return self.ratio > limit and self.difference > _NOISE


def run_time(plain: ir.Model, packed: ir.Model, limit: float, context: Context) -> RunTime | None:
    """Measure both models in the child process; None when there is nothing to run them on.

    Args:
        plain: The model with ordinary constants.
        packed: The same with decoders.
        limit: Ratio above which it is measured again, for longer.
        context: Has the samples; made-up ones are used where it has none.
    """
    from converter.execution.runner import materialize
    from converter.measure.latency import bench

    found: RunTime | None = None
    with tempfile.TemporaryDirectory(
        prefix="latency-", dir=context.settings.workspace, ignore_cleanup_errors=True
    ) as folder:
        try:
            data = context.dataset or _made_up(plain, context)
            paths = [materialize(model.clone(), Path(folder)) for model in (plain, packed)]
            for seconds in _SECONDS:
                pair = bench(paths, data, settings=context.settings, seconds=seconds).models
                ratio = min(pair[1].ratio, pair[1].ratio_fastest)
                found = RunTime(ratio, pair[1].median - pair[0].median, pair[1].runs)
                if not found.beyond(limit):
                    break
        except ConverterError:
            return None
    return found


def _made_up(model: ir.Model, context: Context) -> Dataset:
    from converter.data.sources import open_data

    return open_data("synthetic", model, seed=context.seed)
