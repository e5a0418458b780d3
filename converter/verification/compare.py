"""Running two models over the same samples and gathering what is measured; runs in the child."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.errors import (
    ConverterError,
    DataError,
    ModelError,
    UnsupportedOperatorError,
    VerificationError,
)
from converter.execution.session import Session
from converter.io import suffixes
from converter.measure.accuracy import ScoreMeter
from converter.measure.difference import DifferenceMeter
from converter.measure.latency import interleave
from converter.verification.precision import Adapter, comparable
from converter.verification.randomness import random_outputs

if TYPE_CHECKING:
    from converter.core.context import Batch, RunSettings

NOT_REPEATABLE = 1e-3
"""Two runs of one model further apart than this, relative to the output, are random."""
_NO_SCORES = ("embed", "feature", "latent", "hidden", "state", "cache", "box")


@dataclass(frozen=True)
class Work:
    """What the child does.

    Attributes:
        original, converted: The models.
        settings: Threads and custom operators.
        optimize: Let onnxruntime optimize, as it does in production.
        most_batches: Compare at most so many; None: all.
        latency_seconds: Time for measuring latency; 0: none.
        macs: Count multiply-accumulates, too.
    """

    original: Path
    converted: Path
    settings: RunSettings
    optimize: bool = True
    most_batches: int | None = None
    latency_seconds: float = 0.0
    macs: bool = False


def compare(
    work: Work, batches: Iterable[Batch], *, progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Run both models over the samples.

    Returns:
        Plain data: ``outputs`` and ``scores`` (fields of their classes), ``random`` (names with
        the reason), ``samples``, ``runs``, ``times`` (seconds per model) or None, ``macs`` (of one
        sample, per model) or None.

    Raises:
        VerificationError: The interfaces differ, or only the converted model fails.
        ModelError: The original cannot be opened or run.
        DataError: There are no samples.
    """
    beat = progress or (lambda _: None)  # each run is a sign of life, each batch one of progress
    first, second = open_pair(work)
    beat(0)
    names = check_interfaces(first, second)
    adapter = Adapter(first, second)
    random = random_outputs(work.original)
    if work.converted.suffix != suffixes.ORT:  # made of the original, and no protobuf
        random |= random_outputs(work.converted)
    meters = _Meters(names, random)
    taken: Batch | None = None
    for batch in islice(batches, work.most_batches):
        expected = _run_original(first, batch)
        beat(0)
        if taken is None:
            taken = batch
            meters.repeat(expected, _run_original(first, batch))
            beat(0)
        meters.update(batch, expected, _run_converted(second, batch, adapter))
        beat(1)
    if taken is None:
        raise DataError("the data holds no samples")
    times = None
    if work.latency_seconds:
        runs = [_runner(first, taken.inputs), _runner(second, adapter.feed(taken.inputs))]
        times = interleave(runs, seconds=work.latency_seconds, warm_up=1)
    found = {**meters.result(), "times": times, "batch": taken.samples}
    return {**found, "macs": _macs(work, taken, adapter) if work.macs else None}


def _macs(work: Work, batch: Batch, adapter: Adapter) -> list[float] | None:
    """Count the multiply-accumulates of one sample in both models; None: not countable."""
    from converter.measure.macs import count_macs

    if suffixes.ORT in {work.original.suffix, work.converted.suffix}:
        return None
    found = []
    for path, feed in ((work.original, batch.inputs), (work.converted, adapter.feed(batch.inputs))):
        count = count_macs(path, feed, work.settings)
        if count is None:
            return None
        found.append(count / max(1, batch.samples))
    return found


class _Meters:
    """All measurements of all outputs."""

    def __init__(self, names: Iterable[str], random: Mapping[str, str]) -> None:
        self.random = dict(random)
        self.differences = {n: DifferenceMeter(n, random=n in random) for n in names}
        self.scores = {n: ScoreMeter(n) for n in self.differences if n not in random}
        self.samples = self.runs = 0

    def repeat(self, once: Mapping[str, Any], again: Mapping[str, Any]) -> None:
        """Find outputs that differ between two runs of one model on one batch."""
        for name, meter in self.differences.items():
            if meter.random:
                continue
            probe = DifferenceMeter(name)
            probe.update(once[name], again[name])
            found = probe.result()
            exact = found.kind == "exact" and found.unequal
            if exact or found.broken or found.max_rel > NOT_REPEATABLE:
                self.random[name] = "two runs of the original on the same input differ"
                meter.random = True
                self.scores.pop(name)

    def update(self, batch: Batch, expected: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
        """Take in one batch."""
        shapes = {getattr(a, "shape", None) for a in batch.inputs.values()}
        for name, meter in self.differences.items():
            meter.update(expected[name], actual[name])
        for name, scores in self.scores.items():
            if getattr(expected[name], "shape", None) in shapes:
                scores.possible = False  # a reconstruction of the input
            if any(word in name.lower() for word in _NO_SCORES):
                scores.possible = False
            scores.update(expected[name], actual[name], batch.targets, batch.samples)
        self.samples += batch.samples
        self.runs += 1

    def result(self) -> dict[str, Any]:
        """Return plain data."""
        scores = [meter.result() for meter in self.scores.values()]
        return {
            "outputs": [asdict(meter.result()) for meter in self.differences.values()],
            "scores": [asdict(found) for found in scores if found is not None],
            "random": self.random,
            "samples": self.samples,
            "runs": self.runs,
        }


def open_pair(work: Work) -> tuple[Session, Session]:
    """Open both models; without optimization where that is asked for and possible."""
    return _open(work.original, work, "original"), _open(work.converted, work, "converted")


def _open(path: Path, work: Work, role: str) -> Session:
    options: dict[str, Any] = {
        "threads": work.settings.threads,
        "custom_op_library": work.settings.custom_op_library,
    }
    try:
        try:
            return Session(path, optimize=work.optimize, **options)
        except UnsupportedOperatorError:
            if work.optimize:
                raise
            # some operators have no kernel of their own and run only when they are fused
            return Session(path, optimize=True, **options)
    except ModelError as error:
        error.where = f"{role} model {error.where}".strip()
        raise


def check_interfaces(first: Session, second: Session) -> list[str]:
    """Return the names of the outputs, which both models must share.

    Raises:
        VerificationError: Inputs or outputs have other names, or inputs another type that is not
            a floating-point type of another width.
    """
    gaps = []
    for what, old, new in (
        ("input", first.inputs, second.inputs),
        ("output", first.outputs, second.outputs),
    ):
        before, after = {n.name: n.type for n in old}, {n.name: n.type for n in new}
        gaps += [f"{what} {name!r} is only in the original" for name in before.keys() - after]
        gaps += [f"{what} {name!r} is only in the other" for name in after.keys() - before]
        if what == "input":
            gaps += [
                f"input {name!r} is {before[name]} in the original and {after[name]} in the other"
                for name in before.keys() & after
                if not comparable(before[name], after[name])
            ]
    if gaps:
        raise VerificationError(
            "the models cannot be compared: " + "; ".join(sorted(gaps)[:6]),
            allowed="two models with the same names and types of inputs and outputs",
        )
    return [node.name for node in first.outputs]


def _run_original(session: Session, batch: Batch) -> dict[str, Any]:
    try:
        return session.run(batch.inputs)
    except ModelError as error:
        error.where = f"original model {error.where}".strip()
        raise


def _run_converted(session: Session, batch: Batch, adapter: Adapter) -> dict[str, Any]:
    try:
        return adapter.outputs(session.run(adapter.feed(batch.inputs)))
    except ConverterError as error:
        raise VerificationError(
            f"the original runs on the samples and the converted model does not: {error.what}",
            where=f"converted model {error.where}",
        ) from error


def _runner(session: Session, feed: Mapping[str, Any]) -> Callable[[], object]:
    return lambda: session.run(feed)
