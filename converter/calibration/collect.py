"""Run a model over the calibration samples once and gather statistics of its values.

The model runs in one child process with all of onnxruntime's optimisations; nothing but the
statistics is kept. A large tensor is reduced inside the graph (two scalars come back instead of the
tensor), a small one is handed out and reduced here: each reduction is a node, and the runtime's
session creation grows faster than the number of nodes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.calibration.minmax import MinMax
from converter.calibration.statistic import Request, Statistic
from converter.core.graph import Names
from converter.core.observe import Progress, Silent
from converter.errors import DataError

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Dataset, RunSettings

STATISTICS: Mapping[str, type[Statistic]] = {"minmax": MinMax}
"""Every kind of statistic that can be requested."""

SMALL_NBYTES = 32 << 10
"""Tensors below this size are handed out: copying them costs less than another node."""
MOST_REDUCED = 256
"""Most tensors that are reduced inside the graph; measured: 1,000 cost a second to load."""


@dataclass(frozen=True)
class Probe:
    """How the child fills one statistic: from these outputs, reduced already or not."""

    request: Request
    outputs: tuple[str, ...]
    reduced: bool


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

    from converter.execution import sandbox
    from converter.io import formats

    wanted = tuple(dict.fromkeys(requests))
    if not wanted:
        return {}
    progress = progress or Silent()
    with tempfile.TemporaryDirectory(
        prefix="calibration-", dir=settings.workspace, ignore_cleanup_errors=True
    ) as folder:
        augmented, probes = augment(model, wanted)
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
        finally:
            progress.stop()
    return {
        probe.request: STATISTICS[probe.request.kind].restore(state)
        for probe, state in zip(probes, states, strict=True)
    }


def augment(model: ir.Model, requests: Sequence[Request]) -> tuple[ir.Model, tuple[Probe, ...]]:
    """Return a copy of the model whose only outputs are what the statistics need.

    Raises:
        DataError: A requested value does not exist in the main graph.
    """
    copy = model.clone()
    graph, names = copy.graph, Names(copy)
    values = _values(graph)
    missing = sorted({r.value_name for r in requests} - values.keys())
    if missing:
        raise DataError("values to calibrate are not in the model", where=", ".join(missing[:5]))
    graph.outputs.clear()
    handed_out: set[str] = set()
    probes = []
    in_graph = _large({r.value_name: values[r.value_name] for r in requests})
    for request in requests:
        value = values[request.value_name]
        reductions = STATISTICS[request.kind].reductions
        if reductions and request.value_name in in_graph:
            outputs = tuple(_reduce(graph, value, op, names) for op in reductions)
            probes.append(Probe(request, outputs, reduced=True))
            continue
        if value.is_graph_input():
            probes.append(Probe(request, (request.value_name,), reduced=False))
            continue
        if request.value_name not in handed_out:
            handed_out.add(request.value_name)
            graph.outputs.append(value)
        probes.append(Probe(request, (request.value_name,), reduced=False))
    return copy, tuple(probes)


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

    statistics = [STATISTICS[probe.request.kind]() for probe in probes]
    session = Session(path, threads=settings.threads, custom_op_library=settings.custom_op_library)
    progress(0)
    wanted = {name for probe in probes for name in probe.outputs}
    outputs = [node.name for node in session.outputs if node.name in wanted]
    batches = 0
    for batch in dataset:
        arrays = {**batch.inputs, **(session.run(batch.inputs, outputs) if outputs else {})}
        for probe, statistic in zip(probes, statistics, strict=True):
            values = [arrays[name] for name in probe.outputs]
            if probe.reduced:
                statistic.update_reduced(*values)
            else:
                statistic.update(values[0])
        del arrays, values
        batches += 1
        progress(1)
    if not batches:
        raise DataError("the calibration data holds no sample", where=dataset.description)
    return [statistic.state() for statistic in statistics]


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    values = {v.name: v for v in graph.inputs if v.name}
    for node in graph:
        values.update((v.name, v) for v in node.outputs if v.name)
    return values


def _large(values: Mapping[str, ir.Value]) -> set[str]:
    """Choose the values to reduce inside the graph: the largest, of unknown size first."""
    import onnx_ir as ir

    sizes: dict[str, float] = {}
    for name, value in values.items():
        if value.dtype not in {None, ir.DataType.FLOAT} or value.is_graph_input():
            continue
        shape = value.shape
        known = shape is not None and all(isinstance(d, int) for d in shape)
        size = float("inf")
        if known and shape is not None:
            size = 4.0
            for dim in shape.numpy():
                size *= dim
        if size >= SMALL_NBYTES:
            sizes[name] = size
    ranked = sorted(sizes, key=lambda name: -sizes[name])
    unknown = sum(1 for size in sizes.values() if size == float("inf"))
    # Of a deep model without shapes most tensors are small, and none of them stands out.
    if unknown > MOST_REDUCED:
        ranked = [name for name in ranked if sizes[name] != float("inf")]
    return set(ranked[:MOST_REDUCED])


def _reduce(graph: ir.Graph, value: ir.Value, op_type: str, names: Names) -> str:
    """Append a reduction over all axes; this form is valid in every opset."""
    import onnx_ir as ir

    name = names.fresh(f"{value.name}_{op_type}")
    output = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
    node = ir.node(
        op_type, [value], {"keepdims": 0}, outputs=[output], name=names.fresh(name + "_n")
    )
    graph.append(node)
    graph.outputs.append(output)
    return name
