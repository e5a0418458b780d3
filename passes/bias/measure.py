"""Means of values of two models over the same samples, reduced inside the graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from converter.errors import DataError
from passes.bias.stations import Station
from passes.equalization.reduction import reduce

if TYPE_CHECKING:
    from converter.core.context import Context

Array = g.Array
MOST_RUNS = 256
"""Runs of the model that are enough for a mean."""
_MOST_BYTES = 256 << 20


@dataclass
class Means:
    """What one pass over the samples showed; every row is one run of the model.

    Attributes:
        values: By station, float64 (runs, channels).
        squares: Means of squares of stations with BatchNormalization.
        twins: What the original's layer would have made of the same input.
        outputs: Floating-point outputs of the model, one dict per run.
    """

    values: dict[str, Array] = field(default_factory=dict)
    squares: dict[str, Array] = field(default_factory=dict)
    twins: dict[str, Array] = field(default_factory=dict)
    outputs: list[dict[str, Array]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Samples:
    """Runs that means are taken over; few enough that outputs of all of them fit into memory.

    Attributes:
        context: Runs models and holds the samples.
        rows: Which batches of the data set, in order.
    """

    context: Context
    rows: tuple[int, ...]

    @classmethod
    def of(cls, model: ir.Model, context: Context) -> Samples:
        """Choose as many batches as are useful and cheap enough."""
        assert context.dataset is not None
        first = next(iter(context.dataset), None)
        if first is None:
            raise DataError(
                "the calibration data holds no sample", where=context.dataset.description
            )
        outputs = context.run(model, [first.inputs])[0]
        nbytes = max(1, sum(array.nbytes for array in outputs.values()))
        count = max(1, min(MOST_RUNS, len(context.dataset), _MOST_BYTES // nbytes))
        return cls(context, tuple(range(count)))

    def split(self) -> tuple[Samples, Samples]:
        """Return three quarters to learn from and one quarter to judge by."""
        learn = tuple(row for row in self.rows if row % 4 != 3)
        judge = tuple(row for row in self.rows if row % 4 == 3)
        return replace(self, rows=learn), replace(self, rows=judge)

    def run(self, model: ir.Model) -> list[dict[str, Array]]:
        """Run a model once per batch and return its outputs."""
        assert self.context.dataset is not None
        wanted = set(self.rows)
        pairs = zip(range(max(wanted) + 1), self.context.dataset, strict=False)
        names = [value.name or "" for value in model.graph.outputs]
        feeds = (batch.inputs for row, batch in pairs if row in wanted)
        return self.context.run(model, feeds, names)


def measure(
    model: ir.Model,
    wanted: Sequence[Station],
    samples: Samples,
    *,
    twins: bool = False,
    outputs: bool = True,
) -> Means:
    """Run a model over the samples.

    Args:
        model: Left as it is; the stations' values are found in it by name.
        wanted: What to take means of.
        samples: The runs.
        twins: Also run the layers of the original on the model's own values.
        outputs: Keep the model's outputs; without them it is not run further than needed.
    """
    probe = _Probe(model)
    if not outputs:
        probe.model.graph.outputs.clear()
    for station in wanted:
        probe.add(station, twin=twins)
    results = samples.run(probe.model)
    means = Means()
    for kind, table in (("value", means.values), ("square", means.squares), ("twin", means.twins)):
        for made, name in probe.outputs.get(kind, {}).items():
            table[made] = np.stack([r[name].astype(np.float64).reshape(-1) for r in results])
    given = [value.name or "" for value in model.graph.outputs]
    for result in results if outputs else ():
        floats = {n: result[n] for n in given if _is_float(result.get(n))}
        means.outputs.append(floats)
    return means


def of_original(
    original: ir.Model, wanted: Sequence[Station], samples: Samples, *, outputs: bool = True
) -> Means:
    """Run the original over the samples; its values have the stations' names."""
    ours = _by_name(original)
    stations = [replace(s, value=ours[s.name]) for s in wanted]
    return measure(original, stations, samples, outputs=outputs)


def _is_float(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind == "f"


def _by_name(model: ir.Model) -> dict[str, ir.Value]:
    return {v.name: v for node in model.graph for v in node.outputs if v.name}


class _Probe:
    """A copy of a model with means among its outputs."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model.clone()
        self.outputs: dict[str, dict[str, str]] = {}
        self._names = g.Names(self.model)
        self._values = _by_name(self.model)
        self._values.update({v.name: v for v in self.model.graph.inputs if v.name})
        self._constants: dict[int, ir.Value] = {}

    def add(self, station: Station, *, twin: bool) -> None:
        value = self._values[station.value.name or ""]
        self._mean("value", station, value)
        if station.place.normalizes or station.rows is not None:
            square = self._node("Mul", [value, value], f"{value.name}_square")
            self._mean("square", station, square)
        if twin and station.layer is not None and station.source is not None:
            source = self._values.get(station.source.name or "")
            constant = all(v is None or g.constant(v) for v in station.layer.node.inputs[1:])
            if constant and source is not None and source.dtype in {None, ir.DataType.FLOAT}:
                self._mean("twin", station, self._twin(station, source))

    def _mean(self, kind: str, station: Station, value: ir.Value) -> None:
        """Reduce all axes but the channels'."""
        rank = station.rank
        if rank is None:
            last = np.asarray([-1, station.place.channels], np.int64)
            shape = g.add_initializer(self.model.graph, self._names.fresh("rows"), last)
            value, rank = self._node("Reshape", [value, shape], f"{value.name}_rows"), 2
        axes = [axis for axis in range(rank) if axis != rank + station.axis]
        made = reduce(self.model, value, "ReduceMean", axes, self._names)
        self.model.graph.outputs.append(made)
        self.outputs.setdefault(kind, {})[station.name] = made.name or ""

    def _twin(self, station: Station, source: ir.Value) -> ir.Value:
        """Add the original's layer, reading what the changed layer reads."""
        assert station.layer is not None
        node = station.layer.node
        inputs = [source, *(self._constant(value) for value in node.inputs[1:])]
        return self._node(node.op_type, inputs, f"{station.name}_twin", node.attributes)

    def _constant(self, value: ir.Value | None) -> ir.Value | None:
        """Bring a constant of the original into the copy; its data is shared."""
        tensor = g.constant(value)
        if value is None or tensor is None:
            return None
        if id(value) not in self._constants:
            name = self._names.fresh(f"{value.name}_original")
            shared = ir.Tensor(tensor.numpy(), name=name)  # the original's keeps its own name
            self._constants[id(value)] = g.add_initializer(self.model.graph, name, shared)
        return self._constants[id(value)]

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        attributes: Mapping[str, ir.Attr] | None = None,
    ) -> ir.Value:
        output = ir.Value(name=self._names.fresh(name), type=ir.TensorType(ir.DataType.FLOAT))
        given = list((attributes or {}).values())
        made = ir.Node("", op_type, inputs, given, outputs=[output], name=output.name)
        self.model.graph.append(made)
        return output
