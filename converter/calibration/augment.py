"""A copy of a model whose only outputs are what the statistics need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from converter.calibration.kinds import STATISTICS
from converter.calibration.sketches import Sketcher
from converter.calibration.statistic import Request
from converter.core.graph import Names
from converter.errors import DataError

SMALL_NBYTES = 32 << 10
"""Tensors below this size are handed out: copying them costs less than another node."""
MOST_REDUCED = 256
"""Most tensors that are reduced inside the graph; measured: 1,000 cost a second to load."""


@dataclass(frozen=True)
class Probe:
    """How the child fills one statistic: from these outputs, reduced already or not.

    Attributes:
        request: What is asked for.
        outputs: Names of outputs, or of a graph input.
        reduced: The outputs are the statistic's sketches.
        nbytes: Memory of the outputs of one run; 0 where it is small or not known.
    """

    request: Request
    outputs: tuple[str, ...]
    reduced: bool
    nbytes: int = 0


def augment(
    model: ir.Model,
    requests: Sequence[Request],
    *,
    given: Mapping[str, Sequence[int]] | None = None,
    whole: bool = False,
) -> tuple[ir.Model, tuple[Probe, ...]]:
    """Return the copy, and how each statistic is filled from its outputs.

    Args:
        model: Left as it is.
        requests: Values of the main graph.
        given: Shapes of inputs in the data.
        whole: Hand out every tensor as it is.

    Raises:
        DataError: A requested value does not exist in the main graph.
    """
    copy = model.clone()
    names = Names(copy)
    values = _values(copy.graph)
    missing = sorted({r.value_name for r in requests} - values.keys())
    if missing:
        raise DataError("values to calibrate are not in the model", where=", ".join(missing[:5]))
    outputs: dict[str, ir.Value] = {}
    sketcher = Sketcher(copy, names, given)
    wanted = {r.value_name: values[r.value_name] for r in requests}
    in_graph = set() if whole else _large(sketcher, wanted)
    probes = []
    for request in requests:
        value = values[request.value_name]
        made = _sketches(sketcher, value, request) if request.value_name in in_graph else []
        if made:
            outputs.update((v.name or "", v) for v in made)
            probes.append(Probe(request, tuple(v.name or "" for v in made), reduced=True))
            continue
        if not value.is_graph_input():
            outputs[request.value_name] = value
        size = _nbytes(sketcher, value)
        nbytes = int(size) if math.isfinite(size) else 0
        probes.append(Probe(request, (request.value_name,), reduced=False, nbytes=nbytes))
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(outputs.values())
    return copy, tuple(probes)


def _sketches(sketcher: Sketcher, value: ir.Value, request: Request) -> list[ir.Value]:
    """Return all sketches of the statistic, or none."""
    made = []
    for kind in STATISTICS[request.kind].sketches:
        sketch = sketcher.sketch(value, kind, request.axis)
        if sketch is None:
            return []
        made.append(sketch)
    return made


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    values = {v.name: v for v in graph.inputs if v.name}
    for node in graph:
        values.update((v.name, v) for v in node.outputs if v.name)
    return values


def _nbytes(sketcher: Sketcher, value: ir.Value) -> float:
    """Return the size of a float tensor in bytes, infinity where it is not known."""
    shape = sketcher.shape(value)
    return math.inf if shape is None else 4.0 * math.prod(shape)


def _large(sketcher: Sketcher, values: Mapping[str, ir.Value]) -> set[str]:
    """Choose the values to reduce inside the graph: the largest, of unknown size first."""
    sizes: dict[str, float] = {}
    for name, value in values.items():
        if value.dtype not in {None, ir.DataType.FLOAT} or value.is_graph_input():
            continue
        size = _nbytes(sketcher, value)
        if size >= SMALL_NBYTES:
            sizes[name] = size
    ranked = sorted(sizes, key=lambda name: -sizes[name])
    unknown = sum(1 for size in sizes.values() if math.isinf(size))
    # Of a deep model without shapes most tensors are small, and none of them stands out.
    if unknown > MOST_REDUCED:
        ranked = [name for name in ranked if math.isfinite(sizes[name])]
    return set(ranked[:MOST_REDUCED])
