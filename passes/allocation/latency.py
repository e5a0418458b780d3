"""How long layers take with fewer channels, measured on this machine and remembered.

Every layer is timed by itself at a few numbers of channels, one geometry once. Convolutions take
steps: channels are worked on in blocks of 16 or 8, so a count costs what the next multiple costs.
Between measured counts times are interpolated. What is no such layer is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from converter.core import graph as g
from passes.allocation.blocks import AXES, Channels, channels_of, padded_inputs, padded_outputs
from passes.allocation.cost import Cost, Term

if TYPE_CHECKING:
    from converter.core.context import Arrays, Context, RunSettings
    from converter.coupling.structure import Coupling
    from passes.allocation.curves import Curve

Array = np.ndarray[Any, Any]
_SHARES = (0.25, 0.5, 0.75, 1.0)
_SECONDS, _FEWEST, _MOST = 2e-3, 5, 200
_FILE = "layer-latencies.json"
_LARGEST_FILE = 32 << 20


@dataclass(frozen=True, eq=False)
class Table:
    """Seconds by numbers of input and output channels, rising in both.

    Attributes:
        ins: Measured numbers of input channels, ascending.
        outs: Of output channels.
        seconds: (ins, outs).
        block: Channels of a block.
    """

    ins: Array
    outs: Array
    seconds: Array
    block: int

    def at(self, ins: int, outs: int) -> float:
        """Return seconds with these numbers of channels."""
        a, slower = padded_inputs(ins, self.block) if self.block > 1 else (ins, 1.0)
        a = min(int(a), int(self.ins[-1]))
        b = min(int(padded_outputs(outs, self.block)), int(self.outs[-1]))
        columns = [float(np.interp(a, self.ins, column)) for column in self.seconds.T]
        shrink = min(1.0, a / float(self.ins[0])) * min(1.0, b / float(self.outs[0]))
        return float(np.interp(b, self.outs, columns)) * shrink * float(slower)


@dataclass(frozen=True, eq=False)
class Latencies:
    """What a run of the model is made of.

    Attributes:
        layers: Those with a table.
        tables: One per layer.
        rest: Seconds of everything else.
    """

    layers: Sequence[Channels]
    tables: Sequence[Table]
    rest: float

    def cost(self, curves: Sequence[Curve], size: int) -> Cost:
        """Return the time of a run by rounds of every component, in seconds."""
        terms = [Term(1.0, (layer.ins, layer.outs)) for layer in self.layers]
        return _Seconds([*terms, Term(1.0, ())], curves, size, self)


class _Seconds(Cost):
    """Seconds instead of products."""

    def __init__(
        self, terms: Sequence[Term], curves: Sequence[Curve], size: int, known: Latencies
    ) -> None:
        super().__init__(terms, curves, size)
        self._known = known

    def values(self, terms: Array, sizes: Array) -> Array:
        """Return seconds of layers."""
        tables, found = self._known.tables, np.full(len(terms), self._known.rest)
        for i, term in enumerate(terms):
            if term < len(tables):
                ins, outs = sizes[self.axes[term][:2]]
                found[i] = tables[term].at(int(ins), int(outs))
        return found


def layer_latencies(
    model: ir.Model, coupling: Coupling, feed: Arrays, context: Context
) -> Latencies:
    """Measure layers that are not yet known, and the whole model.

    Args:
        model: The model.
        coupling: Its atoms.
        feed: One run's inputs.
        context: Limits, threads and progress.

    Raises:
        ConverterError: The model cannot be run.
    """
    feed = {
        name: array[: size[0]] if (size := coupling.shapes.get(name)) and array.ndim else array
        for name, array in feed.items()
    }
    layers = [layer for work in coupling.work if (layer := channels_of(work.node, coupling))]
    grids = [_grid(layer) for layer in layers]
    jobs: dict[str, bytes] = {}
    keys: list[list[str]] = []
    for layer, (ins, outs) in zip(layers, grids, strict=True):
        protos = [_proto(model, coupling, layer, int(a), int(b)) for a in ins for b in outs]
        keys.append([_key(proto, context.settings) for proto in protos])
        jobs |= dict(zip(keys[-1], protos, strict=True))
    known = _remembered()
    missing = {key: proto for key, proto in jobs.items() if key not in known}
    new, total = _timings(model, missing, feed, context)
    known |= new
    if new:
        _remember(known)
    tables = [
        Table(ins, outs, _rising([known[k] for k in own], (len(ins), len(outs))), layer.block)
        for layer, (ins, outs), own in zip(layers, grids, keys, strict=True)
    ]
    parts = sum(t.at(len(x.ins), len(x.outs)) for x, t in zip(layers, tables, strict=True))
    if parts > total > 0:
        # noise: the layers cannot take longer than the model
        tables = [replace(t, seconds=t.seconds * (total / parts)) for t in tables]
    return Latencies(layers, tables, max(0.0, total - parts))


def share(before: ir.Model, after: ir.Model, feed: Arrays, context: Context) -> float:
    """Return the time of a run of the changed model as a share of the original's, measured."""
    from converter.execution import sandbox

    found: list[float] = sandbox.call(
        _compare,
        [before, after],
        feed,
        context.settings,
        limits=context.settings.limits,
        task="measuring latency",
    )
    return found[1] / max(found[0], 1e-9)


_KERNELS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


def _grid(layer: Channels) -> tuple[Array, Array]:
    """Return the numbers of channels to measure."""
    return _counts(layer.ins, layer.block, 4), _counts(layer.outs, layer.block, 0)


def _counts(atoms: Array, step: int, fine: int) -> Array:
    size = len(atoms)
    if not (atoms >= 0).any():
        return np.array([size])
    wanted = {math.ceil(size * share / step) * step for share in _SHARES} | {step}
    if step == 1:
        wanted.add(max(1, size // 8))
    elif size <= fine * step:  # less than a block goes another way, and matters in narrow layers
        wanted |= {step // 4, step // 2}
    return np.array(sorted({min(size, count) for count in wanted}))


def _proto(model: ir.Model, coupling: Coupling, layer: Channels, ins: int, outs: int) -> bytes:
    """Return a model of the layer alone, with so many channels; weights are inputs so far."""
    node = layer.node
    proto = ir.serde.serialize_node(node)
    del proto.input[:]
    proto.input.extend(["x", "w"])
    proto.output[:] = ["y"]
    proto.name = ""
    x, weight = node.inputs[0], g.constant_array(node.inputs[1])
    assert x is not None
    assert weight is not None
    axis = AXES[node.op_type]
    shape = list(coupling.shapes[x.name or ""])
    shape[axis] = ins
    weights = _weight_shape(node, weight.shape, ins, outs)
    kind = onnx.helper.np_dtype_to_tensor_dtype(weight.dtype)
    inputs = {"x": tuple(shape), "w": weights}
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        proto.input.append("b")
        inputs["b"] = (outs,)
    whole = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        whole.opset_import.add(domain=domain, version=version)
    whole.graph.name = "layer"
    whole.graph.node.append(proto)
    whole.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, kind, sizes) for name, sizes in inputs.items()
    )
    whole.graph.output.append(onnx.ValueInfoProto(name="y"))
    found: bytes = whole.SerializeToString(deterministic=True)
    return found


def _weight_shape(node: ir.Node, shape: tuple[int, ...], ins: int, outs: int) -> tuple[int, ...]:
    if node.op_type in ("Conv", "FusedConv"):
        return (outs, ins, *shape[2:])
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0:
        return (outs, ins)
    return (ins, outs)


def _rising(seconds: Sequence[float], shape: tuple[int, int]) -> Array:
    """Take out noise that lets more channels take less time."""
    table = np.array(seconds).reshape(shape)
    return np.maximum.accumulate(np.maximum.accumulate(table, axis=0), axis=1)


def _key(proto: bytes, settings: RunSettings) -> str:
    """Name a measurement: the layer, the runtime and the machine."""
    import onnxruntime

    where = f"{onnxruntime.__version__} {settings.threads} {_processor()}"
    return hashlib.sha256(proto + where.encode()).hexdigest()


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n"):
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cache_file() -> Path:
    """Return where measurements are kept: in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "onnxpress" / _FILE


def _remembered() -> dict[str, float]:
    """Return what was measured before; a file that is broken counts as empty."""
    with suppress(OSError, ValueError, RuntimeError):
        path = cache_file()
        if path.stat().st_size > _LARGEST_FILE:
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return {
                str(key): float(value)
                for key, value in found.items()
                if isinstance(value, float) and 0 < value < math.inf
            }
    return {}


def _remember(known: Mapping[str, float]) -> None:
    """Write what is known; nothing is lost but time where that is not possible."""
    with suppress(OSError, RuntimeError):
        path = cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8"
        ) as file:
            json.dump(dict(sorted(known.items())), file, indent=0)
        Path(file.name).replace(path)


def _timings(
    model: ir.Model, jobs: Mapping[str, bytes], feed: Arrays, context: Context
) -> tuple[dict[str, float], float]:
    import onnxruntime  # noqa: F401 - loaded once here, not again in every child process

    from converter.execution import sandbox

    context.progress.start("timing layers", len(jobs) + 1)
    try:
        found: list[float] = sandbox.call(
            _time_all,
            model,
            list(jobs.values()),
            feed,
            context.settings,
            limits=context.settings.limits,
            on_progress=context.progress.advance,
            task="timing layers",
        )
    finally:
        context.progress.stop()
    return dict(zip(jobs, found, strict=False)), found[-1]


def _time_all(
    model: ir.Model,
    jobs: Sequence[bytes],
    feed: Arrays,
    settings: RunSettings,
    progress: Callable[[int], None],
) -> list[float]:
    """Return seconds of every job and of the model; called in a child process."""
    found = []
    with tempfile.TemporaryDirectory(prefix="latency-", dir=settings.workspace) as folder:
        for i, job in enumerate(jobs):
            path = Path(folder) / "layer.onnx"
            x = _fill(job, path, np.random.default_rng(i))
            found.append(_kernel(path, x, settings))
            progress(1)
        found.append(_seconds(_written(model, Path(folder)), feed, settings))
        progress(1)
    return found


def _fill(job: bytes, path: Path, rng: np.random.Generator) -> Array:
    """Write the model of a layer with random weights; returns a random input."""
    model = onnx.ModelProto.FromString(job)
    arrays = []
    for value in model.graph.input:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        arrays.append(rng.standard_normal(shape).astype(kind))
    for value, array in zip(model.graph.input[1:], arrays[1:], strict=True):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    del model.graph.input[1:]
    path.write_bytes(model.SerializeToString())
    return arrays[0]


def _compare(models: Sequence[ir.Model], feed: Arrays, settings: RunSettings) -> list[float]:
    """Return the fastest run of every model, timed in turn; called in a child process."""
    from converter.execution.session import Session
    from converter.measure.latency import interleave

    with tempfile.TemporaryDirectory(prefix="latency-", dir=settings.workspace) as folder:
        sessions = []
        for i, model in enumerate(models):
            own = Path(folder) / str(i)
            own.mkdir()
            path = _written(model, own)
            library = settings.custom_op_library
            sessions.append(Session(path, threads=settings.threads, custom_op_library=library))
        runs = [partial(session.run, feed) for session in sessions]
        return [min(times) for times in interleave(runs, seconds=2.0)]


def _written(model: ir.Model, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(ir.to_proto(model).SerializeToString())
    return path


def _kernel(path: Path, x: Array, settings: RunSettings) -> float:
    """Return what the layer itself takes, without calls and turning data into blocks and back."""
    from converter.execution.session import Session

    session = Session(path, threads=settings.threads, profile=path.with_suffix(""))
    session.run({"x": x})
    start, runs = time.perf_counter(), 0
    while runs < _FEWEST or (time.perf_counter() - start < _SECONDS and runs < _MOST):
        session.run({"x": x})
        runs += 1
    file = session.end_profile()
    events = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    taken = sorted(
        float(event["dur"])
        for event in events
        if str(event.get("name", "")).endswith("_kernel_time")
        and str(event["args"].get("op_name", "")) in _KERNELS
    )
    best = taken[: max(1, len(taken) // 2)]  # whole microseconds, so one run says little
    return max(sum(best) / max(1, len(best)) * 1e-6, 1e-7)


def _seconds(path: Path, feed: Arrays, settings: RunSettings) -> float:
    """Return the fastest of some runs."""
    from converter.execution.session import Session

    session = Session(path, threads=settings.threads, custom_op_library=settings.custom_op_library)
    session.run(feed)
    best, spent, runs = math.inf, 0.0, 0
    while runs < _FEWEST or (spent < _SECONDS and runs < _MOST):
        start = time.perf_counter()
        session.run(feed)
        taken = time.perf_counter() - start
        best, spent, runs = min(best, taken), spent + taken, runs + 1
    return max(best, 1e-9)
