"""Cutting two models into blocks at the same places, so that a change costs what comes after it.

Both models are run block by block. What lives at each border is kept for every sample, so an
experiment with one layer starts at the border before it and shares all that lies before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from converter.core.context import RunSettings
from converter.execution.session import Session
from converter.search.pairs import Layer, Pair
from converter.search.wiring import Assembly, Wiring, assemble

Array = np.ndarray[Any, Any]
MOST_BLOCKS = 24
Piece = tuple[Session | None, list[str]]
"""A session, and the names of the values that it computes, in the order of its outputs."""
_HELD_BYTES = 256 << 20


@dataclass(frozen=True)
class Border:
    """A place between two nodes of the first model.

    Attributes:
        position: Index of the node after it.
        live: Names of the values that are made before it and read behind it.
    """

    position: int
    live: tuple[str, ...]


def borders(a: Wiring, pairs: Mapping[str, Pair], layers: Sequence[Layer]) -> list[Border]:
    """Choose where to cut: about equally many layers per block, and few values alive.

    Values that the second model does not have cannot be alive at a border.
    """
    starts = sorted({min(layer.first) for layer in layers})
    if len(starts) < 2:
        return []
    step = max(1, math.ceil(len(starts) / MOST_BLOCKS))
    alive = _alive(a, pairs)
    chosen: dict[int, Border] = {}
    for i in range(step, len(starts), step):
        window = range(starts[max(0, i - step)] + 1, starts[i] + 1)
        usable = [p for p in window if p in alive and p not in chosen]
        if usable:
            best = min(usable, key=lambda p: (len(alive[p]), -p))
            chosen[best] = Border(best, tuple(sorted(alive[best])))
    return [chosen[p] for p in sorted(chosen)]


def _alive(a: Wiring, pairs: Mapping[str, Pair]) -> dict[int, frozenset[str]]:
    """Return the values alive before each node, where all of them are paired."""
    last = {name: max(users) for name, users in a.readers.items()}
    last.update((name, len(a.nodes)) for name in a.outputs)
    ending: dict[int, list[str]] = {}
    live: set[str] = set()
    found: dict[int, frozenset[str]] = {}
    odd = 0
    for index, node in enumerate(a.nodes):
        if not odd and live:
            found[index] = frozenset(live)
        for name in ending.pop(index, ()):
            live.discard(name)
            odd -= name not in pairs
        for name in node.output:
            if name and name not in a.constants and last.get(name, -1) > index:
                live.add(name)
                odd += name not in pairs
                ending.setdefault(last[name], []).append(name)
    return found


class Shelf:
    """Arrays by key: in memory up to a bound, then on disk."""

    def __init__(self, folder: Path, held: int = _HELD_BYTES) -> None:
        self._folder = folder
        self._left = held
        self._held: dict[Any, dict[str, Any]] = {}
        self._files: dict[Any, dict[str, Path]] = {}

    def put(self, key: Any, arrays: Mapping[str, Any]) -> None:
        """Keep arrays."""
        size = sum(getattr(array, "nbytes", 0) for array in arrays.values())
        plain = all(isinstance(v, np.ndarray) and v.dtype.kind in "biuf" for v in arrays.values())
        if size <= self._left or not plain:
            self._left -= size
            self._held[key] = dict(arrays)
            return
        files: dict[str, Path] = {}
        for name, array in arrays.items():
            files[name] = self._folder / f"live{len(self._files)}-{len(files)}.npy"
            np.save(files[name], array)
        self._files[key] = files

    def get(self, key: Any) -> dict[str, Any]:
        """Return the arrays again; those on disk are mapped, not read."""
        if key in self._held:
            return self._held[key]
        return {n: np.load(file, mmap_mode="r") for n, file in self._files[key].items()}


@dataclass
class Track:
    """One model, followed from border to border over all samples.

    Attributes:
        plan: Its graph as an assembly without changes.
        outputs: Names of its outputs.
        cuts: Values that are handed over at each border; none at the start, outputs at the end.
        settings: How sessions are opened.
        folder: For the files of the pieces; it holds the weights.
        shelf: Keeps what is alive, by border and sample.
    """

    plan: Assembly
    outputs: list[str]
    cuts: list[list[str]]
    settings: RunSettings
    folder: Path
    shelf: Shelf
    blocks: list[Piece] = field(default_factory=list)
    kinds: dict[str, tuple[int, tuple[int | None, ...]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        plan: Assembly,
        side: int,
        candidates: tuple[Sequence[set[str]], Sequence[set[str]]],
        **rest: Any,
    ) -> Track:
        """Find what this model needs at each border.

        Args:
            plan: Assembly without changes.
            side: Which graph of it.
            candidates: Per border: values at which the model may be cut, and those that are kept
                in any case.
            **rest: The other fields.
        """
        graph = plan.parts[side]
        cuts: list[list[str]] = [[]]
        for stops, kept in zip(*candidates, strict=True):
            needed = {name for name in graph.outputs if name in stops}
            needed |= {name for name in kept if name in graph.maker}
            for name in set(graph.outputs) - needed:
                needed |= {n for n in graph.back(name, stops)[1] if n in graph.maker}
            cuts.append(sorted(needed))
        cuts.append(list(graph.outputs))
        return cls(plan, list(graph.outputs), cuts, **rest)

    def open(self, plan: Assembly, start: int, end: int) -> Piece:
        """Open a piece that computes what is handed over at border ``end`` from border ``start``.

        Returns:
            The session, and the names of the values it computes, in the order of its outputs.

        Raises:
            TangledError: The pieces of two models read each other in a circle.
            ModelError: onnxruntime refuses the piece.
        """
        given = {name: self.kinds[name] for name in self.cuts[start]}
        wanted = [name for name in self.cuts[end] if name not in given or end == len(self.cuts) - 1]
        if not wanted:  # all that is alive at one border is alive at the other
            return None, []
        model, _ = assemble(Assembly(plan.parts, plan.instead, given), wanted)
        path = self.folder / "piece.onnx"
        onnx.save(model, str(path))
        session = Session(
            path,
            threads=self.settings.threads,
            custom_op_library=self.settings.custom_op_library,
        )
        return session, wanted

    def follow(self, feeds: Sequence[Mapping[str, Any]], beat: Callable[[], None]) -> None:
        """Run all blocks over all samples and keep what is alive at each border.

        Args:
            feeds: Inputs of each sample.
            beat: Called after every run.

        Raises:
            TypeError: What is alive at a border is no tensor.
        """
        for index in range(len(feeds)):
            self.shelf.put((id(self), 0, index), {})
        for block in range(len(self.cuts) - 1):
            self.blocks.append(self.open(self.plan, block, block + 1))
            for index, feed in enumerate(feeds):
                live = step(self.blocks[block], self.live(block, index), feed)
                self._note(block + 1, live)
                kept = {name: live[name] for name in self.cuts[block + 1]}
                self.shelf.put((id(self), block + 1, index), kept)
                beat()

    def _note(self, border: int, live: Mapping[str, Any]) -> None:
        if border == len(self.cuts) - 1:
            return
        for name in self.cuts[border]:
            array = live[name]
            if not isinstance(array, np.ndarray):
                raise TypeError(name)
            shape: tuple[int | None, ...] = array.shape
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            known = self.kinds.get(name, (kind, shape))[1]
            same = len(known) == len(shape)
            sizes = tuple(k if k == s else None for k, s in zip(known, shape, strict=False))
            self.kinds[name] = (kind, sizes if same else ())

    def live(self, border: int, index: int) -> dict[str, Any]:
        """Return what this model hands over at a border for one sample."""
        return self.shelf.get((id(self), border, index))

    def finish(self, border: int, live: dict[str, Any], index: int, feed: Any) -> dict[str, Any]:
        """Return the outputs that follow from what is alive at a border.

        Where that is what it was without a change, so are the outputs.
        """
        last = len(self.cuts) - 1
        for block in range(border, last):
            before = self.live(block, index)
            if all(_equal(live[name], before[name]) for name in self.cuts[block]):
                return self.live(last, index)
            live = step(self.blocks[block], live, feed)
        return {name: live[name] for name in self.outputs}


def step(block: Piece, live: Mapping[str, Any], feed: Mapping[str, Any]) -> dict[str, Any]:
    """Run one block; return what was alive together with what it computed."""
    session, names = block
    if session is None:
        return dict(live)
    known = {**feed, **live}
    found = session.run({port.name: known[port.name] for port in session.inputs})
    return {**live, **dict(zip(names, found.values(), strict=True))}


def _equal(one: Any, other: Any) -> bool:
    return one is other or bool(np.array_equal(one, other))
