"""Latency of models, run in turn in one process so that noise of the machine hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.core.observe import Progress, Silent
from converter.errors import DataError, UsageError
from converter.execution import sandbox
from converter.execution.session import Session

if TYPE_CHECKING:
    from converter.core.context import Batch, Dataset, RunSettings

WARM_UP, FEWEST = 2, 3
MOST = 1000


@dataclass(frozen=True)
class Latency:
    """Wall time of one model on one batch, in seconds.

    Attributes:
        name: File name of the model.
        median, fastest: Over all runs.
        ratio: Median of the ratios to the first model, each taken between neighbouring runs.
        ratio_fastest: Ratio of the fastest runs, which noise disturbs least.
        runs: Number of timed runs.
    """

    name: str
    median: float
    fastest: float
    ratio: float
    ratio_fastest: float
    runs: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data, times in milliseconds."""
        return {
            "model": self.name,
            "median_ms": self.median * 1e3,
            "min_ms": self.fastest * 1e3,
            "ratio": self.ratio,
            "ratio_of_min": self.ratio_fastest,
            "runs": self.runs,
        }


@dataclass(frozen=True)
class LatencyComparison:
    """Latencies measured side by side; ratios are to the first model.

    Attributes:
        models: One entry per model.
        batch: Samples in the batch that was run.
        threads: Threads that onnxruntime was allowed to use.
        synthetic: The inputs were made up.
        data: Where the inputs come from.
    """

    models: tuple[Latency, ...]
    batch: int = 1
    threads: int = 1
    synthetic: bool = False
    data: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return {
            "models": [model.to_dict() for model in self.models],
            "samples_per_run": self.batch,
            "threads": self.threads,
            "synthetic": self.synthetic,
            "data": self.data,
        }


def interleave(
    runs: Sequence[Callable[[], object]],
    *,
    seconds: float,
    repeat: int | None = None,
    warm_up: int = WARM_UP,
    tick: Callable[[], None] | None = None,
) -> list[list[float]]:
    """Time functions in turn (A B B A A B ...) and return the seconds of each run of each.

    Args:
        runs: What to time.
        seconds: Stop after so much time; at least three rounds are made.
        repeat: Make exactly so many rounds instead.
        warm_up: Rounds before that are not timed.
        tick: Called after every round.
    """
    for _ in range(warm_up):
        for run in runs:
            run()
    times: list[list[float]] = [[] for _ in runs]
    order = list(range(len(runs)))
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < (repeat or MOST):
        for index in order:
            start = time.perf_counter()
            runs[index]()
            times[index].append(time.perf_counter() - start)
        order.reverse()
        rounds += 1
        if tick is not None:
            tick()
        if repeat is None and rounds >= FEWEST and time.perf_counter() >= end:
            break
    return times


def summarize(names: Sequence[str], times: Sequence[Sequence[float]]) -> tuple[Latency, ...]:
    """Turn the times of :func:`interleave` into one :class:`Latency` per model."""
    made = []
    for name, own in zip(names, times, strict=True):
        pairs = [mine / max(first, 1e-9) for mine, first in zip(own, times[0], strict=True)]
        made.append(
            Latency(
                name=name,
                median=statistics.median(own),
                fastest=min(own),
                ratio=statistics.median(pairs),
                ratio_fastest=min(own) / max(min(times[0]), 1e-9),
                runs=len(own),
            )
        )
    return tuple(made)


def bench(
    paths: Sequence[Path],
    dataset: Dataset,
    *,
    settings: RunSettings,
    repeat: int | None = None,
    seconds: float = 5.0,
    progress: Progress | None = None,
) -> LatencyComparison:
    """Measure models side by side on the first batch of a data set, in one child process.

    Args:
        paths: The models; ratios are to the first.
        dataset: Its first batch is run.
        settings: Limits, threads, custom operators.
        repeat: Timed rounds; None: as many as fit into ``seconds``.
        seconds: Time to measure, without opening the models and warming up.
        progress: Receives one step per round.

    Raises:
        UsageError: There is no model, or a number is out of range.
        DataError: The data set is empty.
        ModelError: A model cannot be opened or run.
    """
    import onnxruntime  # noqa: F401 - imported here, every child has it

    if not paths or seconds <= 0 or (repeat is not None and repeat < 1):
        raise UsageError("nothing to measure", allowed="one or more models, seconds above 0")
    batch = next(iter(dataset), None)
    if batch is None:
        raise DataError("the data holds no samples", where=dataset.description)
    progress = progress or Silent()
    progress.start("measuring", repeat)
    try:
        times = sandbox.call(
            _time,
            list(paths),
            batch,
            limits=settings.limits,
            on_progress=progress.advance,
            task="measuring latency",
            settings=settings,
            repeat=repeat,
            seconds=seconds,
        )
    finally:
        progress.stop()
    return LatencyComparison(
        summarize([path.name for path in paths], times),
        batch=batch.samples,
        threads=settings.threads,
        synthetic=dataset.synthetic,
        data=dataset.description,
    )


def _time(
    paths: Sequence[Path],
    batch: Batch,
    *,
    settings: RunSettings,
    repeat: int | None,
    seconds: float,
    progress: Callable[[int], None],
) -> list[list[float]]:
    sessions = [
        Session(path, threads=settings.threads, custom_op_library=settings.custom_op_library)
        for path in paths
    ]
    runs = [_runner(session, batch) for session in sessions]
    return interleave(runs, seconds=seconds, repeat=repeat, tick=lambda: progress(1))


def _runner(session: Session, batch: Batch) -> Callable[[], object]:
    return lambda: session.run(batch.inputs)
