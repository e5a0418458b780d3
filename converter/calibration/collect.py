"""Run a model over the calibration samples once and gather statistics of its values.

The model runs in one child process with all of onnxruntime's optimisations; nothing but the
statistics is kept. A large tensor is reduced inside the graph (a few numbers come back instead of
the tensor), a small one is handed out and reduced here: each reduction is a node, and the runtime's
session creation grows faster than the number of nodes.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.calibration.augment import Probe, augment
from converter.calibration.kinds import STATISTICS
from converter.calibration.statistic import Request, Source, Statistic
from converter.core.observe import Progress, Silent
from converter.errors import DataError, LimitExceededError, ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, Dataset, RunSettings
    from converter.execution.session import Session

MOST_CHUNKS = 8
"""The batches are cut into at most this many runs of batches with statistics of their own."""
MOST_FETCHED = 256 << 20
"""Bytes of tensors that one run hands out, if there are several; more are fetched in more runs."""


def collect(
    model: ir.Model,
    requests: Iterable[Request],
    dataset: Dataset,
    *,
    settings: RunSettings,
    progress: Progress | None = None,
) -> dict[Request, Statistic]:
    """Run ``model`` over ``dataset`` and return one statistic per request.

    Args:
        model: Left as it is.
        requests: Values of the main graph and what to gather of them.
        dataset: Read once, batch by batch.
        settings: How the child process runs the model.
        progress: Told when the run starts and ends.

    Raises:
        DataError: A requested value does not exist, or the data set is empty.
        ConverterError: The model cannot be run on the samples.
    """
    import onnxruntime  # noqa: F401 - loaded once here, not again in every child process

    wanted = tuple(dict.fromkeys(requests))
    if not wanted:
        return {}
    progress = progress or Silent()
    return _collect(model, wanted, dataset, settings=settings, progress=progress)


def _collect(
    model: ir.Model,
    requests: Sequence[Request],
    dataset: Dataset,
    *,
    settings: RunSettings,
    progress: Progress,
    whole: bool = False,
) -> dict[Request, Statistic]:
    from converter.execution import sandbox
    from converter.io import formats

    with tempfile.TemporaryDirectory(
        prefix="calibration-", dir=settings.workspace, ignore_cleanup_errors=True
    ) as folder:
        first = next(iter(dataset), None)
        given = {} if first is None else {n: np.shape(a) for n, a in first.inputs.items()}
        augmented, probes = augment(model, requests, given=given, whole=whole)
        path = Path(folder) / "model.onnx"
        formats.save(augmented, path)
        del augmented
        progress.start("calibrating", len(dataset))
        try:
            states = sandbox.call(
                observe,
                path,
                probes,
                dataset,
                settings=settings,
                limits=settings.limits,
                on_progress=progress.advance,
                task="running the model on the calibration data",
            )
        except LimitExceededError:
            raise
        except ModelError:
            if not any(probe.reduced for probe in probes):
                raise
            states = None
        finally:
            progress.stop()
    if states is None:
        # A reduction may fail where the model does not: over no elements, or if a shape lied.
        return _collect(model, requests, dataset, settings=settings, progress=progress, whole=True)
    return {
        probe.request: STATISTICS[probe.request.kind].restore(state)
        for probe, state in zip(probes, states, strict=True)
    }


def observe(
    path: Path,
    probes: Sequence[Probe],
    dataset: Dataset,
    *,
    settings: RunSettings,
    progress: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Run the augmented model over all batches; called in the child process.

    Returns:
        The state of the statistic of each probe.

    Raises:
        DataError: The data set is empty.
    """
    from converter.execution.session import Session

    session = Session(path, threads=settings.threads, custom_op_library=settings.custom_op_library)
    progress(0)
    total: list[Statistic] = []
    groups = grouped(probes)
    for batches in chunks(dataset):
        found = begin(probes)
        for batch, source in batches:
            for group in groups:
                _take_in(session, batch, source, [(probes[i], found[i]) for i in group])
            progress(1)
        if total:
            merge(total, found)
        else:
            total = found
    if not total:
        raise DataError("the calibration data holds no sample", where=dataset.description)
    return [statistic.state() for statistic in total]


def begin(probes: Sequence[Probe]) -> list[Statistic]:
    """Make an empty statistic for every probe."""
    return [STATISTICS[probe.request.kind].begin(probe.request) for probe in probes]


def merge(total: Sequence[Statistic], found: Sequence[Statistic]) -> None:
    """Add the statistics of the next chunk to those of all chunks before it."""
    for statistic, other in zip(total, found, strict=True):
        statistic.merge(other)


def chunks(dataset: Dataset) -> Iterator[Iterator[tuple[Batch, Source]]]:
    """Cut the batches into runs that depend on their number alone, each to be read to its end."""
    length = -(-max(1, len(dataset)) // MOST_CHUNKS)

    def placed() -> Iterator[tuple[Batch, Source]]:
        first = 0
        for batch in dataset:
            yield batch, Source(first, batch.samples)
            first += batch.samples

    stream = placed()
    for head in stream:
        yield itertools.chain([head], itertools.islice(stream, length - 1))


def grouped(probes: Sequence[Probe]) -> list[list[int]]:
    """Cut the probes into groups, by position, that one run of the model serves."""
    fetched: dict[str, int] = {}
    groups: list[list[int]] = [[]]
    held = 0
    for i, probe in enumerate(probes):
        new = 0 if probe.outputs[0] in fetched else probe.nbytes
        if groups[-1] and held + new > MOST_FETCHED:
            groups.append([])
            fetched, new, held = {}, probe.nbytes, 0
        fetched[probe.outputs[0]] = new
        held += new
        groups[-1].append(i)
    return groups


def _take_in(
    session: Session,
    batch: Batch,
    source: Source,
    filled: Sequence[tuple[Probe, Statistic]],
) -> None:
    """Run once and fill the statistics of one group of probes."""
    wanted = {name for probe, _ in filled for name in probe.outputs}
    outputs = [node.name for node in session.outputs if node.name in wanted]
    arrays = {**batch.inputs, **(session.run(batch.inputs, outputs) if outputs else {})}
    for probe, statistic in filled:
        values = [arrays[name] for name in probe.outputs]
        if probe.reduced:
            statistic.update_reduced(*values, source=source)
        else:
            statistic.update(values[0], source)
