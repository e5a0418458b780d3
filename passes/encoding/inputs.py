"""What the inputs of weights look like, in the float model and where weights are rounded already.

Both models run side by side over the calibration samples in one child process; nothing but sums is
kept. Rows are taken at sampled positions, the same ones in both models.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.calibration.patches import Geometry, patches
from converter.errors import DataError

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context, Dataset, RunSettings

Array = np.ndarray[Any, Any]

ROWS_PER_COLUMN = 6
FEWEST_ROWS, MOST_ROWS = 4096, 16384
"""About as many rows of every input are taken from all samples together."""
_DENSE = Geometry()
_COLUMNS = {"layer": -1, "states": -1, "channels": 1, "columns": -2}
"""Axis of a value that the weight's columns belong to."""
_LEAST = 8
"""Fewest rows of one sample."""
MOST_BATCHES = 128
"""Of more batches only some are used, at equal distances: every stage runs them again."""


@dataclass(frozen=True)
class Source:
    """Where the rows that a weight is multiplied with come from.

    Attributes:
        value_name: A value of the main graph.
        kind: "layer" (rows as of :mod:`converter.calibration.patches`), "channels" (axis 1),
            "columns" (the last but one axis) or "states" (of a recurrent operator, by direction).
        geometry: Of a layer.
        axis: Axis of the directions among states.
    """

    value_name: str
    kind: str = "layer"
    geometry: Geometry = _DENSE
    axis: int = 1

    def most(self, x: Array, samples: int) -> int:
        """Return how many rows to take of each of so many samples that look like ``x``."""
        if self.kind == "layer" and self.geometry.kernel:
            columns = x.shape[1] // self.geometry.groups * int(np.prod(self.geometry.kernel))
        else:
            columns = x.shape[_COLUMNS[self.kind]]
        wanted: int = min(max(ROWS_PER_COLUMN * columns, FEWEST_ROWS), MOST_ROWS)
        return max(_LEAST, -(-wanted // max(1, samples)))

    def rows(self, x: Array, most: int) -> Array:
        """Return (rows, groups, K)."""
        if self.kind == "layer":
            return patches(x, self.geometry, most, 0)
        if self.kind == "states":
            x = np.moveaxis(x, self.axis, -2)
            flat = x.reshape(-1, *x.shape[-2:])
            return flat[:: max(1, len(flat) // (most * 4))]
        axis = 1 if self.kind == "channels" else -2
        return patches(np.moveaxis(x, axis, -1), _DENSE, most, 0)


@dataclass
class Inputs:
    """Sums over rows of one source; float64.

    Attributes:
        count: Rows.
        gram: ``Xs^T Xs`` of the rounded model, (groups, K, K).
        cross: ``Xs^T Xf``.
        sums: Sum of the rows of the rounded model, (groups, K).
        expected: Sum of the rows of the float model.
    """

    count: int
    gram: Array
    cross: Array
    sums: Array
    expected: Array

    def centred(self) -> Inputs:
        """Return the same with the means taken off the products, per row."""
        count = max(1, self.count)
        seen, wanted = self.sums / count, self.expected / count
        return Inputs(
            self.count,
            self.gram / count - seen[:, :, None] * seen[:, None, :],
            self.cross / count - seen[:, :, None] * wanted[:, None, :],
            seen,
            wanted,
        )


def source(node: ir.Node, port: int, shape: Sequence[int]) -> Source | None:
    """Return where the rows for the weight at a port come from; None when it is not known."""
    plain = node.domain in {"", "ai.onnx"}
    x = node.inputs[1 - port if port < 2 and node.op_type in {"MatMul", "Gemm"} else 0]
    if not plain or x is None or x.name is None:
        return None
    if node.op_type in {"LSTM", "GRU", "RNN"}:
        return _recurrent(node, port, x.name)
    if node.op_type == "ConvTranspose":
        return Source(x.name, "channels") if node.attributes.get_int("group", 1) == 1 else None
    if node.op_type == "MatMul" and port == 0:
        return Source(x.name, "columns") if len(shape) == 2 else None
    return _layer(node, port, shape, x.name)


def _layer(node: ir.Node, port: int, shape: Sequence[int], name: str) -> Source | None:
    if node.op_type not in {"Conv", "Gemm", "MatMul"} or port != 1:
        return None
    if node.op_type == "MatMul" and len(shape) != 2:
        return None
    try:
        return Source(name, geometry=Geometry.of(node, shape))
    except ValueError:
        return None


def _recurrent(node: ir.Node, port: int, name: str) -> Source | None:
    if port == 1:
        return Source(name)
    states = node.outputs[0].name if node.outputs else None
    axis = 2 if node.attributes.get_int("layout", 0) else 1
    return Source(states, "states", axis=axis) if states else None


def collect(
    reference: ir.Model, student: ir.Model, sources: Sequence[Source], context: Context
) -> list[Inputs | None]:
    """Run both models over the calibration samples and return the sums of every source.

    Args:
        reference: The float model.
        student: The model with rounded weights; may be ``reference`` itself.
        sources: Values of both models.
        context: Has the samples.

    Returns:
        None for a source that is never computed, holds NaN or infinity, or no rows.

    Raises:
        DataError: There is no sample.
        ConverterError: A model cannot be run on the samples.
    """
    import onnxruntime  # noqa: F401 - loaded once here, not again in every child process

    from converter.execution import sandbox

    settings = context.settings
    assert context.dataset is not None
    names = tuple(dict.fromkeys(s.value_name for s in sources))
    with tempfile.TemporaryDirectory(
        prefix="grams-", dir=settings.workspace, ignore_cleanup_errors=True
    ) as folder:
        models = _distinct(reference, student)
        paths = [write_with_outputs(model, names, Path(folder)) for model in models]
        found: list[dict[str, Any] | None] = sandbox.call(
            observe,
            paths,
            tuple(sources),
            context.dataset,
            settings=settings,
            limits=settings.limits,
            on_progress=lambda _: None,
            task="running the model on the calibration data",
        )
    return [None if state is None else Inputs(**state) for state in found]


def observe(
    paths: Sequence[Path],
    sources: Sequence[Source],
    dataset: Dataset,
    *,
    settings: RunSettings,
    diagonal: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Any] | None]:
    """Gather the sums; called in the child process.

    Args:
        paths: Of the models, the float model first.
        sources: What to gather.
        dataset: The samples.
        settings: How models are run.
        diagonal: Only sums of squares instead of Gram matrices: (groups, K).
        progress: Told of every batch.

    Returns:
        The fields of :class:`Inputs` of every source, or None.

    Raises:
        DataError: The data set is empty.
    """
    from converter.execution.session import Session

    sessions = [
        Session(path, threads=settings.threads, custom_op_library=settings.custom_op_library)
        for path in paths
    ]
    names = list(dict.fromkeys(s.value_name for s in sources))
    sums: list[_Sums | None] = [None] * len(sources)
    stride = -(-len(dataset) // MOST_BATCHES)
    samples = max(1, dataset.samples // stride)
    seen = 0
    for index, batch in enumerate(dataset):
        if index % stride:
            continue
        runs = [_values(session, batch.inputs, names) for session in sessions]
        for at, each in enumerate(sources):
            arrays = [run[each.value_name].astype(np.float32) for run in runs]
            most = each.most(arrays[0], samples)
            rows = [each.rows(x, most) for x in arrays]
            found = sums[at]
            if found is None:
                make = _Squares if diagonal else _Sums
                found = sums[at] = make(*rows[0].shape[1:], same=len(runs) == 1)
            found.add(rows[-1], rows[0])
        seen += 1
        progress(1)
    if not seen:
        raise DataError("the calibration data holds no sample", where=dataset.description)
    totals = [None if found is None else found.total for found in sums]
    return [None if t is None or not _usable(t) else dict(vars(t)) for t in totals]


def _values(session: Any, feed: Any, names: Sequence[str]) -> dict[str, Array]:
    given = {name: np.asarray(feed[name]) for name in names if name in feed}
    wanted = [name for name in names if name not in given]
    return {**given, **(session.run(feed, wanted) if wanted else {})}


class _Sums:
    """Adds the rows of one source; nothing of the size of a Gram matrix is allocated twice.

    Args:
        groups: Of the rows.
        columns: Of a row.
        same: Both models are the same one.
    """

    def __init__(self, groups: int, columns: int, *, same: bool) -> None:
        square, flat = (groups, columns, columns), (groups, columns)
        gram = np.zeros(square)
        cross = gram if same else np.zeros(square)
        self.total = Inputs(0, gram, cross, np.zeros(flat), np.zeros(flat))
        self._product = np.empty(square, np.float32)

    def add(self, seen: Array, wanted: Array) -> None:
        """Add rows (n, groups, K) of one batch."""
        total = self.total
        turned = np.moveaxis(seen, 0, 1)
        back = np.swapaxes(turned, 1, 2)
        total.gram += np.matmul(back, turned, out=self._product)
        if total.cross is not total.gram:
            total.cross += np.matmul(back, np.moveaxis(wanted, 0, 1), out=self._product)
        total.sums += seen.sum(axis=0, dtype=np.float64)
        total.expected += wanted.sum(axis=0, dtype=np.float64)
        total.count += len(seen)


class _Squares(_Sums):
    """Adds squares alone: Gram matrices of which there is only the diagonal."""

    def __init__(self, groups: int, columns: int, *, same: bool) -> None:
        flat = (groups, columns)
        gram = np.zeros(flat)
        cross = gram if same else np.zeros(flat)
        self.total = Inputs(0, gram, cross, np.zeros(flat), np.zeros(flat))

    def add(self, seen: Array, wanted: Array) -> None:
        """Add rows (n, groups, K) of one batch."""
        total = self.total
        total.gram += np.square(seen, dtype=np.float64).sum(axis=0)
        if total.cross is not total.gram:
            total.cross += np.multiply(seen, wanted, dtype=np.float64).sum(axis=0)
        total.count += len(seen)


def _usable(total: Inputs) -> bool:
    return total.count > 0 and bool(
        np.isfinite(total.gram).all() and np.isfinite(total.cross).all()
    )


def _distinct(reference: ir.Model, student: ir.Model) -> tuple[ir.Model, ...]:
    return (reference,) if student is reference else (reference, student)


def write_with_outputs(model: ir.Model, names: Sequence[str], folder: Path) -> Path:
    """Write a copy of the model whose only outputs are the named values."""
    from converter.execution.runner import materialize

    copy = model.clone()
    inputs = {v.name for v in copy.graph.inputs}
    values = {v.name: v for node in copy.graph for v in node.outputs}
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in names if name not in inputs)
    if not copy.graph.outputs:  # every source is an input; a model has to have an output
        copy.graph.outputs.append(next(iter(values.values())))
    return materialize(copy, folder)
