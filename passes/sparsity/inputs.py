"""What the inputs of layers look like: the mean square of every column, or how they correlate.

The model runs over the samples in a child process; nothing but sums is kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from converter.core.contract import Skip
from passes.encoding.inputs import Source, observe, source, write_with_outputs
from passes.sparsity.layers import uses_of
from passes.sparsity.matrix import matrix_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context, Dataset, RunSettings
    from passes.sparsity.layers import Layer

Array = np.ndarray[Any, Any]
MOST_COLUMNS = 6_144
"""Of layers with more columns only mean squares are measured."""
_BYTES = 512 << 20  # of Gram matrices at once; for more the model runs again
_DAMPING = 1e-2  # added to the diagonal of a Gram matrix, times its mean
_UNKNOWN = "its inputs cannot be measured, its weights are ordered by their size"
_UNUSABLE = "its inputs are not finite, or there are none: its weights are ordered by their size"
_WIDE = f"more than {MOST_COLUMNS} inputs: their correlation is left out of account"


@dataclass(frozen=True)
class _Wish:
    """A source, and what is wanted of it: mean squares, or what obs divides by."""

    source: Source
    columns: int
    groups: int
    full: bool

    @property
    def nbytes(self) -> int:
        """Of its sums while the model runs."""
        each = self.columns**2 * 12 if self.full else self.columns * 8
        return self.groups * each


def measured(
    criterion: Literal["wanda", "obs"],
    layers: Sequence[Layer],
    model: ir.Model,
    context: Context,
) -> tuple[dict[int, Array], tuple[Skip, ...]]:
    """Return what a squared weight is multiplied with, by layer, for groups of rows and columns.

    wanda: the mean square of the column. obs: 1 / inv(H)_jj. Of a tensor that several nodes read
    the figures are added up.

    Returns:
        By index of a layer: float64 (groups, columns); and layers without, with the reason.

    Raises:
        ConverterError: The model cannot be run on the samples.
    """
    wishes: list[_Wish] = []
    places: dict[int, list[int]] = {}
    skipped: list[Skip] = []
    for index, layer in enumerate(layers):
        for wish in _wishes(layer, model, full=criterion == "obs"):
            if wish not in wishes:
                wishes.append(wish)
            places.setdefault(index, []).append(wishes.index(wish))
        if index not in places:
            skipped.append(Skip(layer.name, _UNKNOWN))
        elif criterion == "obs" and matrix_of(layer).columns > MOST_COLUMNS:
            skipped.append(Skip(layer.name, _WIDE))
    found = _run(model, wishes, context) if wishes else []
    factors: dict[int, Array] = {}
    for index, at in places.items():
        known = [each for each in (found[i] for i in at) if each is not None]
        if known:
            factors[index] = np.sum(known, axis=0)
        else:
            skipped.append(Skip(layers[index].name, _UNUSABLE))
    return factors, tuple(skipped)


def _wishes(layer: Layer, model: ir.Model, *, full: bool) -> Iterator[_Wish]:
    """Yield what to measure for the nodes that multiply with a layer in the same way."""
    matrix = matrix_of(layer)
    for node, port in uses_of(layer):
        if node.graph is not model.graph:
            continue
        each = source(node, port, matrix.seen)
        if each is None:
            continue
        groups = each.geometry.groups
        if each.kind == "states":
            groups = matrix.seen[0]
        if matrix.rows % groups == 0:
            wide = matrix.columns > MOST_COLUMNS
            yield _Wish(each, matrix.columns, groups, full and not wide)


def _run(model: ir.Model, wishes: Sequence[_Wish], context: Context) -> list[Array | None]:
    import onnxruntime  # noqa: F401 - loaded once here, not again in every child process

    from converter.execution import sandbox

    settings = context.settings
    assert context.dataset is not None
    names = tuple(dict.fromkeys(wish.source.value_name for wish in wishes))
    with tempfile.TemporaryDirectory(
        prefix="inputs-", dir=settings.workspace, ignore_cleanup_errors=True
    ) as folder:
        path = write_with_outputs(model, names, Path(folder))
        found: list[Array | None] = sandbox.call(
            _measure,
            path,
            tuple(wishes),
            context.dataset,
            settings=settings,
            limits=settings.limits,
            on_progress=lambda _: None,
            task="measuring the inputs of layers",
        )
    return [
        found[i] if each is not None and each.shape == (wish.groups, wish.columns) else None
        for i, (wish, each) in enumerate(zip(wishes, found, strict=True))
    ]


def _measure(
    path: Path,
    wishes: Sequence[_Wish],
    dataset: Dataset,
    *,
    settings: RunSettings,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Array | None]:
    """Return the factors of every wish; called in the child process."""
    from converter.execution.blas import use_one_thread

    use_one_thread()
    found: list[Array | None] = [None] * len(wishes)
    for part in _portions(wishes):
        full = wishes[part[0]].full
        sources = [wishes[i].source for i in part]
        sums = observe(
            [path], sources, dataset, settings=settings, diagonal=not full, progress=progress
        )
        for i, each in zip(part, sums, strict=True):
            if each is None or not each["count"]:
                continue
            mean = np.asarray(each["gram"], np.float64) / each["count"]
            found[i] = _remaining(mean) if full else mean
    return found


def _portions(wishes: Sequence[_Wish]) -> Iterator[list[int]]:
    """Cut the wishes into parts that are of one kind and fit into memory."""
    for full in (False, True):
        part: list[int] = []
        size = 0
        for i, wish in enumerate(wishes):
            if wish.full != full:
                continue
            if part and size + wish.nbytes > _BYTES:
                yield part
                part, size = [], 0
            part.append(i)
            size += wish.nbytes
        if part:
            yield part


def _remaining(grams: Array) -> Array:
    """Return 1 / diag(inv(H)) of damped Gram matrices: what the others cannot explain of a column.

    Columns that are always zero get 0: without cost they go first.
    """
    result = np.zeros(grams.shape[:2])
    for group, gram in enumerate(grams):
        alive = np.flatnonzero(np.diag(gram) > 0)
        if len(alive):
            square = gram[np.ix_(alive, alive)]
            square[np.diag_indices(len(alive))] += _DAMPING * float(np.diag(square).mean())
            result[group, alive] = 1.0 / np.diag(np.linalg.inv(square))
    return result
