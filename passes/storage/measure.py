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

_SECONDS = (0.4, 0.8, 1.5, 2.0, 2.0, 2.0)
"""How long is measured; again, with the models opened anew, only when it showed too much."""
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
        noise: Ratio, at least 1, of the plain model opened twice: where in memory the weights of a
            model come to lie can make a tenth of its run time.
    """

    ratio: float
    difference: float
    runs: int
    noise: float = 1.0

    def beyond(self, limit: float) -> bool:
        """Tell whether the ratio is above a limit by more than noise."""
        return self.ratio > limit * self.noise and self.difference > _NOISE


def run_time(plain: ir.Model, packed: ir.Model, limit: float, context: Context) -> RunTime | None:
    """Measure both models in the child process; None when there is nothing to run them on.

    Args:
        plain: The model with ordinary constants.
        packed: The same with decoders.
        limit: Ratio above which it is measured again; the models run the same operators, so what
            is not there every time is not theirs.
        context: Has the samples; made-up ones are used where it has none.
    """
    from converter.execution.runner import materialize

    found: RunTime | None = None
    with tempfile.TemporaryDirectory(
        prefix="latency-", dir=context.settings.workspace, ignore_cleanup_errors=True
    ) as folder:
        try:
            data = context.dataset or _made_up(plain, context)
            paths = [materialize(model.clone(), Path(folder)) for model in (plain, packed)]
            for seconds in _SECONDS:
                found = _measured([*paths, paths[0]], data, seconds, context)
                if not found.beyond(limit):
                    break
        except ConverterError:
            return None
    return found


def _measured(paths: list[Path], data: Dataset, seconds: float, context: Context) -> RunTime:
    """Measure the plain model, the packed one, and the plain one a second time."""
    from converter.measure.latency import bench

    first, second, twin = bench(paths, data, settings=context.settings, seconds=seconds).models
    return RunTime(
        ratio=min(second.ratio, second.ratio_fastest),
        difference=second.median - first.median,
        runs=second.runs,
        noise=max(twin.ratio, 1 / max(twin.ratio, 1e-9)),
    )


def _made_up(model: ir.Model, context: Context) -> Dataset:
    from converter.data.sources import open_data

    return open_data("synthetic", model, seed=context.seed)
