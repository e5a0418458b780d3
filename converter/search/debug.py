"""Where two models part: every value they share, compared over the samples; runs in the child.

Accumulated: both models run from the inputs. Local: the second model's piece behind the nearest
shared values is fed with the first model's values, so what came before does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from converter.core.context import Dataset, RunSettings
from converter.errors import ConverterError, DataError, VerificationError
from converter.execution.session import Session
from converter.measure.difference import DifferenceMeter
from converter.search.grids import read_pair
from converter.search.pairs import DEQUANTIZE, Layer, Pair, changed_layers, pair_values
from converter.search.wiring import (
    OTHER,
    Assembly,
    TangledError,
    Wiring,
    assemble,
    converting,
)

Array = np.ndarray[Any, Any]
_LARGEST_RUN = 400
"""Values that one session hands out; more would all be alive at once."""


@dataclass(frozen=True)
class Comparison:
    """What the child does.

    Attributes:
        first, second: The models, each with its weights beside it.
        settings: Threads, custom operators.
        samples: Use at most so many batches; None: all.
    """

    first: Path
    second: Path
    settings: RunSettings
    samples: int | None = None


@dataclass
class _Gap:
    """What is added up for one value."""

    pair: Pair
    accumulated: DifferenceMeter
    local: DifferenceMeter | None = None
    grid: tuple[float, float] | None = None
    beyond: int = 0
    peaks: list[Array | None] = field(default_factory=lambda: [None, None])

    def update(self, expected: Any, actual: Any) -> None:
        """Take in the value of both models for one sample."""
        if not isinstance(expected, np.ndarray) or not isinstance(actual, np.ndarray):
            return
        if actual.dtype != expected.dtype and actual.dtype.kind == expected.dtype.kind == "f":
            actual = actual.astype(expected.dtype)  # 16-bit floats stand for others
        self.accumulated.update(expected, actual)
        if self.grid is not None:
            low, high = self.grid
            self.beyond += int(np.count_nonzero((expected < low) | (expected > high)))
        for position, array in enumerate((expected, actual)):
            self._peak(position, array)

    def _peak(self, position: int, array: Array) -> None:
        if array.ndim < 2 or not array.size or array.dtype.kind != "f":
            return
        axis = 1 if array.ndim > 3 else array.ndim - 1
        others = tuple(i for i in range(array.ndim) if i != axis)
        peak, known = np.abs(array).max(axis=others), self.peaks[position]
        if known is not None and known.shape != peak.shape:
            return  # the axis is a length, not channels
        self.peaks[position] = peak if known is None else np.maximum(known, peak)

    def dead(self) -> tuple[int, int, int]:
        """Return channels that are always zero: in both, only in the second, and of how many."""
        before, after = self.peaks
        if before is None or after is None or before.shape != after.shape:
            return 0, 0, 0
        gone = after == 0
        return int((gone & (before == 0)).sum()), int((gone & (before != 0)).sum()), gone.size


def compare_values(
    work: Comparison, dataset: Dataset, *, progress: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Compare all shared values.

    Returns:
        Plain data: ``values`` in the order of the first model, ``only_first``, ``only_second``
        (numbers of values without a partner), ``samples``.

    Raises:
        DataError: There are no samples.
        VerificationError: The models have other inputs, or share no value.
        ModelError: A model cannot be run.
    """
    batches = dataset if work.samples is None else _first(dataset, work.samples)
    fed = set(next(iter(dataset)).inputs) if len(dataset) else set()
    a, b = read_pair(work.first, work.second, fed)
    _check_inputs(a, b)
    pairs = {n: p for n, p in pair_values(a, b).items() if n in a.maker}
    if not pairs:
        raise VerificationError(
            "the models share no value: no name of the first appears in the second",
            allowed="two models of which one was made from the other",
        )
    layers = changed_layers(a, b, pair_values(a, b))
    gaps = {name: _Gap(pair, DifferenceMeter(name)) for name, pair in pairs.items()}
    for gap in gaps.values():
        gap.grid = grid_ends(b, gap.pair)
    count = _run(work, (a, b), gaps, layers, batches, progress)
    if not count:
        raise DataError("the data holds no samples", where=dataset.description)
    changed = {layer.pair.name: layer for layer in layers}
    return {
        "values": [_row(a, gap, changed.get(name)) for name, gap in gaps.items()],
        "only_first": sum(1 for n in a.maker if n not in pairs and n not in a.constants),
        "only_second": len(b.maker) - len({n for p in pairs.values() for n in (p.entry, p.end)}),
        "samples": count,
    }


def _first(dataset: Dataset, most: int) -> Iterable[Any]:
    from itertools import islice

    return islice(dataset, most)


def _check_inputs(a: Wiring, b: Wiring) -> None:
    first, second = set(a.inputs), {n.removeprefix(OTHER) for n in b.inputs}
    if first != second:
        odd = ", ".join(sorted(first ^ second)[:4])
        raise VerificationError(
            f"the models cannot be compared: they have different inputs ({odd})",
            allowed="two models with the same names of inputs",
        )


def _run(
    work: Comparison,
    graphs: tuple[Wiring, Wiring],
    gaps: Mapping[str, _Gap],
    layers: list[Layer],
    batches: Iterable[Any],
    progress: Callable[[int], None],
) -> int:
    opener = _Opener(work, graphs)
    whole = [opener.whole(list(gaps.values()), side) for side in (0, 1)]
    pieces = []
    for layer in layers:
        piece = opener.piece(layer)
        if piece is not None:
            pieces.append((layer, piece))
            gaps[layer.pair.name].local = DifferenceMeter(layer.pair.name)
    progress(0)
    count = 0
    for batch in batches:
        expected: dict[str, Any] = {}
        actual: dict[str, Any] = {}
        for found, parts in zip((expected, actual), whole, strict=True):
            for session, names in parts:
                outputs = session.run({p.name: batch.inputs[p.name] for p in session.inputs})
                found.update(zip(names, outputs.values(), strict=True))
        for name, gap in gaps.items():
            gap.update(expected[name], actual[name])
        known = {**batch.inputs, **expected}
        for layer, session in pieces:
            _update_local(gaps[layer.pair.name], session, known)
        count += 1
        progress(1)
    return count


def _update_local(gap: _Gap, session: Session, known: Mapping[str, Any]) -> None:
    found = session.run({port.name: known[port.name] for port in session.inputs})
    expected, actual = known[gap.pair.name], next(iter(found.values()))
    if isinstance(actual, np.ndarray) and actual.dtype != expected.dtype:
        actual = actual.astype(expected.dtype)
    assert gap.local is not None
    gap.local.update(expected, actual)


class _Opener:
    """Opens whole models with all shared values as outputs, and pieces of the second model."""

    def __init__(self, work: Comparison, graphs: tuple[Wiring, Wiring]) -> None:
        self.work = work
        self.graphs = graphs
        self.ports = {OTHER + name: name for name in graphs[0].inputs}

    def whole(self, gaps: list[_Gap], side: int) -> list[tuple[Session, list[str]]]:
        """Open one model, several times where it has very many values."""
        opened = []
        for start in range(0, len(gaps), _LARGEST_RUN):
            part = [gap.pair for gap in gaps[start : start + _LARGEST_RUN]]
            wanted = [pair.end if side else pair.name for pair in part]
            plan = Assembly(self.graphs, ({}, self.ports), {})
            opened.append((self._open(plan, wanted, side), [pair.name for pair in part]))
        return opened

    def piece(self, layer: Layer) -> Session | None:
        """Open the second model's piece, fed with the first model's values; None if impossible."""
        kinds = self.graphs[0].kinds
        given = {}
        instead = dict(self.ports)
        casts: dict[str, tuple[str, int]] = {}
        for pair in layer.inputs:
            if pair is layer.pair:
                continue
            kind = kinds.get(pair.name, onnx.TensorProto.FLOAT)
            given[pair.name] = (kind, None)
            wanted = self.graphs[1].kinds.get(pair.entry, kind)
            instead[pair.entry] = pair.name
            if wanted != kind:
                casts[f"cast/{pair.name}"] = (pair.name, wanted)
                instead[pair.entry] = f"cast/{pair.name}"
        plan = Assembly((*self.graphs, converting(casts)), ({}, instead, {}), given)
        try:
            return self._open(plan, [layer.pair.end], 1)
        except (TangledError, ConverterError):
            return None

    def _open(self, plan: Assembly, wanted: list[str], side: int) -> Session:
        model, _ = assemble(plan, wanted)
        path = (self.work.second if side else self.work.first).parent / "piece.onnx"
        onnx.save(model, str(path))
        settings = self.work.settings
        return Session(path, threads=settings.threads, custom_op_library=settings.custom_op_library)


def grid_ends(b: Wiring, pair: Pair) -> tuple[float, float] | None:
    """Return the smallest and largest number of a value's grid; None without one."""
    quantize = b.producer(pair.end)
    if quantize is None or quantize.op_type != DEQUANTIZE or len(quantize.input) < 3:
        return None
    scale, zero = b.array(quantize.input[1]), b.array(quantize.input[2])
    if scale is None or zero is None or scale.size != 1 or zero.dtype.kind not in "iu":
        return None
    ends = np.iinfo(zero.dtype)
    step, middle = float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])
    # half a step beyond the ends still rounds to them
    return (ends.min - middle - 0.5) * step, (ends.max - middle + 0.5) * step


def _row(a: Wiring, gap: _Gap, layer: Layer | None) -> dict[str, Any]:
    found = gap.accumulated.result()
    maker = a.producer(gap.pair.name)
    both, died, channels = gap.dead()
    saturated = None
    if gap.grid is not None:
        saturated = gap.beyond / found.elements if found.elements else 0.0
    return {
        "value": gap.pair.name,
        "node": (maker.name or maker.output[0]) if maker is not None else "",
        "op_type": maker.op_type if maker is not None else "",
        "layer": "" if layer is None else layer.name,
        "sqnr_db": found.sqnr_db,
        "cosine": found.cosine,
        "max_abs": found.max_abs,
        "elements": found.elements,
        "equal": found.equal,
        "kind": found.kind,
        "broken": found.broken,
        "local_sqnr_db": None if gap.local is None else gap.local.result().sqnr_db,
        "saturated": saturated,
        "dead": both,
        "died": died,
        "channels": channels,
    }
