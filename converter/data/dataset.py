"""Data sets: batches that fit one model, checked when they are opened, read lazily, picklable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np

from converter.core.context import Batch
from converter.data import ports as p
from converter.data.ports import Array, Port
from converter.errors import BatchError, ConverterError, DataError

_SCAN_BYTES = 8 << 20
MOST_FEEDS = 100_000
"""Feeds that a callable may give; more is taken for an endless generator."""


class Column(Protocol):
    """An array whose rows (axis 0) are read in blocks."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""

    def blocks(self, rows: int, limit: int) -> Iterator[Array]:
        """Yield blocks of ``rows`` rows of the first ``limit`` rows."""

    def whole(self) -> Array:
        """Return the complete array."""


@dataclass(frozen=True, eq=False)
class ArrayColumn:
    """An array in memory."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        dtype: np.dtype[Any] = self.array.dtype
        return dtype

    def blocks(self, rows: int, limit: int) -> Iterator[Array]:
        """Yield blocks of ``rows`` rows of the first ``limit`` rows."""
        for start in range(0, min(limit, self.array.shape[0]), rows):
            yield self.array[start : min(start + rows, limit)]

    def whole(self) -> Array:
        """Return the complete array."""
        return self.array


@dataclass(frozen=True, eq=False)
class Cut:
    """How one column is turned into feeds.

    Attributes:
        column: The array.
        port: The input it feeds.
        rows: Rows of the column per unit; 0: the complete array goes into every feed.
        elements: Rows are complete inputs, so axis 0 goes when a feed takes one of them.
    """

    column: Column
    port: Port
    rows: int
    elements: bool = False

    @property
    def units(self) -> int:
        """Number of units in the column."""
        return self.column.shape[0] // self.rows

    def shape(self, units: int) -> tuple[int, ...]:
        """Shape of a feed of so many units."""
        whole = self.column.shape
        if not self.rows:
            return whole
        if not self.elements:
            return (units * self.rows, *whole[1:])
        return whole[1:] if units == 1 else (units * whole[1], *whole[2:])

    def feeds(self, units: int, limit: int) -> Iterator[Array]:
        """Yield arrays of ``units`` units each, of the first ``limit`` units."""
        if not self.rows:
            array = self.column.whole()
            while True:
                yield array
        for block in self.column.blocks(units * self.rows, limit * self.rows):
            yield block.reshape(self.shape(block.shape[0] // self.rows))


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of equally many units, cut into batches; a :class:`Dataset`.

    Attributes:
        cuts: One per input.
        units: Units in one iteration.
        batch: Units per feed.
        labels: Column of labels, or None.
        labels_per_unit: Rows of the labels per unit.
        weight: Samples per unit.
        where: For messages.
        description: For the report.
    """

    cuts: tuple[Cut, ...]
    units: int
    batch: int = 1
    labels: Column | None = None
    labels_per_unit: int = 1
    weight: int = 1
    where: str = ""
    description: str = ""
    synthetic: bool = False

    @property
    def samples(self) -> int:
        """Number of samples in one iteration."""
        return self.units * self.weight

    @property
    def labelled(self) -> bool:
        """True when the batches carry labels."""
        return self.labels is not None

    def __len__(self) -> int:
        return math.ceil(self.units / self.batch)

    def __iter__(self) -> Iterator[Batch]:
        streams = [c.feeds(self.batch, self.units) for c in self.cuts]
        if self.labels is not None:
            step = self.batch * self.labels_per_unit
            targets = self.labels.blocks(step, self.units * self.labels_per_unit)
        for index in range(len(self)):
            count = min(self.batch, self.units - index * self.batch)
            inputs = {
                cut.port.name: p.fit(next(stream), cut.port, self.where)
                for cut, stream in zip(self.cuts, streams, strict=True)
            }
            found = next(targets) if self.labels is not None else None
            yield Batch(inputs, found, count * self.weight)

    def first(self, samples: int | None) -> Table:
        """Return the first samples of this table."""
        if samples is None or samples >= self.samples:
            return self
        return replace(self, units=max(1, samples // self.weight))

    def check(self) -> Table:
        """Check shapes and every value that an iteration gives.

        Raises:
            BatchError: Something does not fit the model.
        """
        ports = {c.port.name: c.port for c in self.cuts}
        for units in {min(self.batch, self.units), self.units % self.batch or self.batch}:
            p.check_shapes({c.port.name: c.shape(units) for c in self.cuts}, ports, self.where)
        for cut in self.cuts:
            p.check_dtype(cut.column.dtype, cut.port, self.where)
            if not cut.rows:
                p.fit(cut.column.whole(), cut.port, self.where)
                continue
            row = max(1, int(np.prod(cut.column.shape[1:])) * cut.column.dtype.itemsize)
            for block in cut.column.blocks(max(1, _SCAN_BYTES // row), self.units * cut.rows):
                p.fit(block, cut.port, self.where)
        return self


def make_table(
    columns: Mapping[str, Column],
    ports: Mapping[str, Port],
    *,
    batch: int = 1,
    labels: Column | None = None,
    where: str = "",
) -> Table:
    """Decide how each array is cut into feeds of the model.

    Args:
        columns: Arrays by input name.
        ports: The model's inputs.
        batch: Units per feed.
        labels: Labels of the samples.
        where: For messages.

    Raises:
        BatchError: Names, ranks or sample counts do not fit.
    """
    p.check_names(columns, ports, where)
    cuts = tuple(_cut(columns[name], ports[name], where) for name in columns)
    counted = [c for c in cuts if c.rows]
    units = {c.units for c in counted} or {1}
    if len(units) > 1:
        counts = ", ".join(f"{c.port.name!r}: {c.units}" for c in counted)
        raise BatchError(
            f"the arrays hold different numbers of samples ({counts})",
            where=where,
            allowed="the same number for every input",
        )
    count = units.pop()
    if not count:
        raise DataError("the data holds no samples", where=where)
    if batch > 1:
        _check_merging(counted, batch, where)
    rows = {c.rows for c in counted if not c.elements}
    table = Table(
        cuts,
        count,
        batch,
        weight=rows.pop() if len(rows) == 1 and len(counted) == 1 else 1,
        where=where,
    )
    return table if labels is None else with_labels(table, labels)


def _cut(column: Column, port: Port, where: str) -> Cut:
    rank, given = port.rank, len(column.shape)
    if rank is not None and given == rank + 1:
        return Cut(column, port, rows=1, elements=True)
    if given == 0 and rank in {0, None}:
        return Cut(column, port, rows=0)
    if rank is not None and given != rank:
        raise BatchError(
            f"array {port.name!r} has {given} axes (shape {column.shape})",
            where=where,
            allowed=f"{rank} axes like the input ({port}), cut along axis 0, or {rank + 1}: "
            "complete inputs as elements",
        )
    rows = port.fixed or 1
    if column.shape[0] % rows:
        raise BatchError(
            f"array {port.name!r} has {column.shape[0]} rows, which cannot be cut into groups of "
            f"{rows}, the size that the model fixes",
            where=where,
            allowed=f"a multiple of {rows} rows, or complete inputs as elements: "
            f"{rank + 1 if rank is not None else '?'} axes",
        )
    return Cut(column, port, rows=rows)


def _check_merging(cuts: Iterable[Cut], batch: int, where: str) -> None:
    for cut in cuts:
        if cut.port.fixed is not None or cut.port.rank == 0:
            raise BatchError(
                f"{batch} samples per run do not fit input {cut.port.name!r}",
                where=where,
                allowed=f"{cut.port}",
                hint="leave --batch out",
            )


def with_labels(table: Table, labels: Column) -> Table:
    """Attach labels, one per sample (or per row of a complete input).

    Raises:
        BatchError: The labels are no integers, or their number does not fit.
    """
    if p.kind_of(labels.dtype) not in {"int", "bool"}:
        raise BatchError(
            f"the labels have elements of type {labels.dtype}",
            where=table.where,
            allowed="integers: the index of the right class per sample",
            hint="turn one-hot labels into indices with .argmax(-1)",
        )
    count = labels.shape[0] if labels.shape else 0
    per_unit, rest = divmod(count, table.units)
    if rest or not per_unit or per_unit not in {1, *_rows_per_unit(table)}:
        raise BatchError(
            f"there are {count} labels for {table.units} samples",
            where=table.where,
            allowed="one label per sample",
        )
    return replace(table, labels=labels, labels_per_unit=per_unit)


def _rows_per_unit(table: Table) -> set[int]:
    return {
        c.column.shape[1] if c.elements else c.rows
        for c in table.cuts
        if c.rows and (not c.elements or len(c.column.shape) > 1)
    }


@dataclass(frozen=True, eq=False)
class Chain:
    """Tables one after the other, such as the files of a folder."""

    parts: Sequence[Table]
    description: str = ""
    synthetic: bool = False

    @property
    def samples(self) -> int:
        """Number of samples in one iteration."""
        return sum(part.samples for part in self.parts)

    @property
    def labelled(self) -> bool:
        """True when every batch carries labels."""
        return all(part.labelled for part in self.parts)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __iter__(self) -> Iterator[Batch]:
        for part in self.parts:
            yield from part


@dataclass(frozen=True, eq=False)
class Feeds:
    """Complete feeds from a function that is called anew for every iteration.

    Attributes:
        source: Gives feeds: mappings by input name, or bare arrays for a model with one input.
        ports: The model's inputs.
        labels: Key of a feed that holds its labels.
        limit: Use at most so many feeds.
        count: Feeds per iteration, known after :meth:`check`.
        description: For the report.
        labelled: Every feed carries labels, known after :meth:`check`.
    """

    source: Callable[[], Iterable[Any]]
    ports: Mapping[str, Port]
    labels: str | None = None
    limit: int | None = None
    count: int = 0
    description: str = ""
    labelled: bool = False
    synthetic: bool = field(default=False)

    @property
    def samples(self) -> int:
        """Number of samples in one iteration."""
        return self.count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        given = 0
        for index, item in enumerate(islice(self._items(), self.limit)):
            yield self._batch(item, index)
            given += 1
        if given < self.count:
            raise DataError(
                f"the data gave {self.count} feeds at first and {given} now",
                where=self.description,
                allowed="the same feeds for every iteration",
                hint="return a list, or a new generator on every call",
            )

    def check(self) -> Feeds:
        """Go through all feeds once, check each and count them.

        Raises:
            DataError: There is none, or one does not fit.
        """
        count, labelled = 0, True
        for index, item in enumerate(islice(self._items(), self.limit)):
            if index >= MOST_FEEDS:
                raise DataError(
                    f"the data gives more than {MOST_FEEDS} feeds",
                    where=self.description,
                    hint="set --samples",
                )
            labelled &= self._batch(item, index).targets is not None
            count += 1
        if not count:
            raise DataError("the data holds no samples", where=self.description)
        return replace(self, count=count, labelled=labelled)

    def _items(self) -> Iterator[Any]:
        try:
            yield from self.source()
        except ConverterError:
            raise
        except Exception as error:
            # code of the user's own: whatever it raises is a matter of the data
            raise DataError(
                f"the data cannot be read: {type(error).__name__}: {error}",
                where=self.description,
                allowed="an iterable of dicts of arrays, or of arrays for a model with one input",
            ) from error

    def _batch(self, item: Any, index: int) -> Batch:
        where = f"{self.description}, feed {index}"
        targets = None
        if isinstance(item, Mapping):
            feed = {str(k): v for k, v in item.items()}
            if self.labels is not None and self.labels in feed:
                targets = np.atleast_1d(np.asarray(feed.pop(self.labels)))
        else:
            feed = {only_input(self.ports, where): item}
        arrays = {n: _add_axis(v, self.ports.get(n), where) for n, v in feed.items()}
        return Batch(p.fit_feed(arrays, self.ports, where), targets, 1)


def _add_axis(value: Any, port: Port | None, where: str) -> Array:
    """Give a bare sample its batch axis when the input has one axis more and can be of size 1."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise BatchError(f"a value is no array: {error}", where=where) from error
    if port is not None and port.rank == array.ndim + 1 and port.fixed in {None, 1}:
        return array[None]
    return array


def only_input(ports: Mapping[str, Port], where: str) -> str:
    """Return the name of the only input that must be fed.

    Raises:
        BatchError: There is none, or more than one.
    """
    names = [port.name for port in ports.values() if not port.optional]
    if len(names) != 1:
        raise BatchError(
            f"a bare array was given and the model has {len(names)} inputs",
            where=where,
            allowed=f"a dict of arrays by input name: {', '.join(names)}",
        )
    return names[0]
