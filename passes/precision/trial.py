"""Running a converted model beside the original: does it still work, and how far is it off?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx_ir as ir

from converter.calibration.minmax import MinMax
from converter.core import graph as g
from converter.errors import ConverterError
from passes.rewriting.purity import RANDOM

if TYPE_CHECKING:
    from converter.core.context import Batch, Context

Array = np.ndarray[Any, Any]
MOST_BATCHES = 8


def make_rounding_real(model: ir.Model, values: Iterable[ir.Value]) -> None:
    """Let onnxruntime's CPU provider round where other hardware does; for trials only.

    It computes most operators in float32 and drops the casts between two of them, so that neither
    rounding nor overflow shows. Max has a float16 kernel, and two in a row stay in float16.
    """
    names = g.Names(model)
    for value in values:
        producer = value.producer()
        uses = list(value.uses())
        if producer is None or producer.graph is None or not uses:
            continue
        result = value
        for _ in range(2):
            name = names.fresh(f"{value.name}_rounded")
            twin = ir.Value(name=name, type=value.type, shape=value.shape)
            node = ir.Node("", "Max", [result], outputs=[twin], name="")
            producer.graph.insert_after(producer, node)
            producer, result = node, twin
        for use in uses:
            use.node.replace_input_with(use.idx, result)


class Flaw(NamedTuple):
    """What is wrong with a converted model.

    Attributes:
        text: For the report.
        broken: It must not be written; else it is less exact than asked for.
    """

    text: str
    broken: bool


class Trial:
    """The outputs of the original on a few batches, to hold converted models against.

    Args:
        model: The original.
        context: Its data and services; there is nothing to try without data.
        least: Signal to error in decibels that every output must reach.
    """

    def __init__(self, model: ir.Model, context: Context, least: float) -> None:
        self._context = context
        self._least = least
        self._random = any(node.op_type in RANDOM for node in g.walk(model))
        dataset: Any = context.dataset or ()
        batches: list[Batch] = list(islice(dataset, MOST_BATCHES))
        self._feeds = [batch.inputs for batch in batches]
        self._expected = context.run(model, self._feeds) if self._feeds else []

    def outputs(self) -> dict[str, MinMax]:
        """Return the ranges of the original's outputs, by name."""
        found: dict[str, MinMax] = {}
        for outputs in self._expected:
            for name in outputs:
                array = _plain(outputs, name)
                if array is not None:
                    found.setdefault(name, MinMax()).update(array)
        return found

    def flaw(self, candidate: ir.Model) -> Flaw | None:
        """Say what is wrong with a converted model; None when nothing is."""
        if not self._feeds:
            return None
        try:
            actual = self._context.run(candidate, self._feeds)
        except ConverterError as error:
            return Flaw(f"onnxruntime does not run the result: {error.what}", broken=True)
        found = [self._output_flaw(name, actual) for name in self._expected[0]]
        flaws = sorted((flaw for flaw in found if flaw), key=lambda flaw: not flaw.broken)
        return flaws[0] if flaws else None

    def _output_flaw(self, name: str, actual: list[dict[str, Array]]) -> Flaw | None:
        signal = error = 0.0
        for old, new in zip(self._expected, actual, strict=True):
            before, after = _plain(old, name), _plain(new, name)
            if before is None or after is None:
                continue
            if before.shape != after.shape:
                if self._random:
                    continue
                return Flaw(f"output {name!r} changed its shape", broken=True)
            finite = np.isfinite(before)
            if not np.isfinite(after[finite]).all():
                return Flaw(f"output {name!r} became NaN or infinite", broken=True)
            signal += float(np.sum(before[finite] ** 2))
            error += float(np.sum((after[finite] - before[finite]) ** 2))
        if self._random or error == 0.0:
            return None
        found = 10 * np.log10(signal / error) if signal else -np.inf
        if found >= self._least:
            return None
        return Flaw(f"output {name!r} has {found:.1f} dB", broken=False)


def _plain(outputs: Mapping[str, Array], name: str) -> Array | None:
    """Return a float output in float64; None for anything else."""
    array = outputs[name]
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        return None
    return array.astype(np.float64)
