"""How small ``pack`` makes files, and what their decoding costs when onnxruntime loads them.

    python -m benchmarks.pack                                     # a MatMul and a Conv network
    python -m benchmarks.pack --zoo ZOO --digits DIGITS [--shares 50 80 90] [--judge] [NAME ...]
        [--way "int8=prune:sparsity={share},quantize_weights"]

For each model, share of zeros (per cent) and way (``WAYS``): the command runs once without and once
with ``pack`` at its end. Prints the size of both files against the original, the size after zstd,
CPU nanoseconds per weight that opening a session takes longer (both in turn), CPU time of a run
against the file without ``pack`` and against the original (one thread, in turn), the largest
difference of outputs between both relative to the largest output, and with ``--judge`` points lost
against the original. ``sparse_initializer`` and float16 with Cast are written by this script, from
the pruned file, to compare with.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import latency  # noqa: E402
from benchmarks.prune_weights import zeros  # noqa: E402
from benchmarks.pruning_tasks import (  # noqa: E402
    Feed,
    Judged,
    Task,
    first_feed,
    opened,
    parser_of,
    print_head,
    run,
    tasks,
)

Array = np.ndarray[Any, Any]
WAYS = {
    "exact": "prune:sparsity={share}",
    "int8 weights": "prune:sparsity={share},quantize_weights:bits=8",
    "int8 values": "prune:sparsity={share}|pack:values=int8",
    "quantize": "prune:sparsity={share},quantize",
}
# Per cent of zeros -> the largest file with int8 values, per cent of float32.
BARS = {50: 17.0, 80: 8.5}
SLOWDOWN, LOAD = 1.03, 25.0
OPENINGS = 7
HEAD = (
    "| model | way | zeros | size without | packed | zstd | load ns/weight | time to unpacked "
    "| to original | difference | lost | CPU s |"
)


@dataclass(frozen=True)
class Made:
    """A network with random weights; it has no data of its own."""

    name: str
    path: Path
    feed: Feed

    def calibration(self, count: int, folder: Path) -> Path:
        rng, target = np.random.default_rng(1), folder / f"{self.name}_{count}.npz"
        data: Feed = {
            name: rng.standard_normal((count, *array.shape[1:]), np.float32)
            for name, array in self.feed.items()
        }
        np.savez(target, **data)
        return target

    def judge(self, changed: Path) -> Judged:
        return Judged(float("nan"), float("nan"))


def made(folder: Path) -> list[Task]:
    """Return networks of products and of convolutions: 8.4 and 1.8 million normal weights."""
    rng, found = np.random.default_rng(0), []
    for name, shape, feed in (
        ("matmul", (2048, 2048), (1, 2048)),
        ("conv", (256, 256, 3, 3), (1, 256, 14, 14)),
    ):
        graph = onnx.GraphProto(name=name)
        last = "x"
        for i in range(2 if name == "matmul" else 3):
            scale = np.float32(1.4 / np.sqrt(np.prod(shape[1:])))
            weight = rng.standard_normal(shape, np.float32) * scale
            graph.initializer.append(numpy_helper.from_array(weight, f"w{i}"))
            extra = {} if name == "matmul" else {"pads": [1, 1, 1, 1]}
            kind = "MatMul" if name == "matmul" else "Conv"
            graph.node.append(helper.make_node(kind, [last, f"w{i}"], [f"p{i}"], **extra))
            graph.node.append(helper.make_node("Relu", [f"p{i}"], [f"y{i}"]))
            last = f"y{i}"
        batch = ["N", *feed[1:]]
        graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, batch))
        graph.output.append(helper.make_tensor_value_info(last, TensorProto.FLOAT, batch))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path = folder / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        found.append(Made(name, path, {"x": rng.standard_normal(feed, np.float32)}))
    return list(found)


# -------------------------------------------------------------------------------------- peers


def with_sparse(source: Path, target: Path) -> None:
    """Write every tensor as ``sparse_initializer`` with int64 indices where that is smaller."""
    model = onnx.load(str(source))
    kept = []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        found = np.flatnonzero(array)
        if array.dtype != np.float32 or array.ndim < 2 or 3 * len(found) > array.size:
            kept.append(tensor)
            continue
        values = numpy_helper.from_array(array.ravel()[found], tensor.name)
        indices = numpy_helper.from_array(found.astype(np.int64), tensor.name + "_indices")
        sparse = helper.make_sparse_tensor(values, indices, list(array.shape))
        model.graph.sparse_initializer.append(sparse)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    target.write_bytes(model.SerializeToString())


def with_half(source: Path, target: Path) -> None:
    """Write every float matrix and kernel as float16 behind a Cast."""
    model = onnx.load(str(source))
    casts = []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim > 1:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), name + "_half"))
            casts.append(helper.make_node("Cast", [name + "_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    target.write_bytes(model.SerializeToString())


PEERS: dict[str, Callable[[Path, Path], None]] = {
    "sparse_initializer": with_sparse,
    "float16 and Cast": with_half,
}


# ------------------------------------------------------------------------------------ measuring


def loading(paths: list[Path], count: int) -> list[float]:
    """Return CPU nanoseconds per weight that each file takes longer to open than the first."""
    order, spent = np.random.default_rng(0), np.zeros((OPENINGS, len(paths)))
    for path in paths:
        opened(path)
    for turn in range(OPENINGS):
        for index in map(int, order.permutation(len(paths))):
            begin = time.process_time()
            opened(paths[index])
            spent[turn, index] = time.process_time() - begin
    return list(1e9 * np.median(spent - spent[:, :1], axis=0) / count)


def difference(plain: Path, packed: Path, feed: Feed) -> float:
    """Return the largest difference of outputs, relative to the largest of each."""
    sessions = [opened(path) for path in (plain, packed)]
    names = {value.name for value in sessions[0].get_inputs()}
    given = {name: array for name, array in feed.items() if name in names}
    worst = 0.0
    for a, b in zip(*(s.run(None, given) for s in sessions), strict=True):
        if np.asarray(a).dtype.kind == "f" and np.size(a):
            scale = max(float(np.abs(a).max()), 1e-30)
            worst = max(worst, float(np.abs(np.asarray(a) - np.asarray(b)).max()) / scale)
    return worst


def compressed(path: Path) -> int:
    import zstandard

    return len(zstandard.ZstdCompressor(level=19).compress(path.read_bytes()))


def weights(path: Path) -> int:
    model = onnx.load(str(path))
    found = list(model.graph.initializer)
    found += [a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute]
    return sum(int(np.prod(t.dims)) for t in found if len(t.dims) > 1)


def convert(task: Task, passes: str, target: Path, data: Path | None) -> tuple[float, str]:
    """Run the command; return CPU seconds, and what it said if it failed."""
    command = [sys.executable, "-m", "converter", str(task.path), str(target), "--passes", passes]
    given = [] if data is None else ["--data", str(data)]
    cost = run(
        [*command, *given, "--report", str(target.with_suffix(".json"))], target.with_suffix(".txt")
    )
    failed = cost.code or not target.exists()
    return cost.cpu, f"exit {cost.code}: {' '.join(cost.said.split())[-300:]}" if failed else ""


def cells(
    task: Task, plain: Path, packed: Path, feed: Feed, options: argparse.Namespace
) -> list[str]:
    """Return what is measured of one pair of files."""
    whole, bar = task.path.stat().st_size, None
    if "int8" in packed.stem:
        bar = BARS.get(int(packed.stem.split("-")[-2]))
    size = 100 * packed.stat().st_size / whole
    load = loading([plain, packed], weights(task.path))[1]
    found = [f"{100 * plain.stat().st_size / whole:.1f} %"]
    found += [f"{size:.2f} %" + (f" (> {bar:g})" if bar and size > bar else "")]
    found += [f"{100 * compressed(packed) / whole:.2f} %"]
    found += [f"{load:.1f}" + (f" (> {LOAD:g})" if load > LOAD else "")]
    if options.rounds:
        _, (_, first, last) = latency.ratios([plain, packed, task.path], [feed], options.rounds)
        slow = float(np.median(first))
        found += [latency.cell(first) + (" slow" if slow > SLOWDOWN else "")]
        found += [f"{slow / float(np.median(last)):.3f}"]
    else:
        found += ["-", "-"]
    found += [f"{difference(plain, packed, feed):.1e}"]
    if not options.judge:
        return [*found, "-"]
    judged = task.judge(packed)
    return [*found, f"{judged.lost:+.2f} ±{judged.error:.2f}"]


def rows(task: Task, percent: int, options: argparse.Namespace, folder: Path) -> None:
    """Print a line for every way to a share of zeros."""
    data = task.calibration(options.samples or 64, folder)
    given, feed = data if options.samples else None, first_feed(data)
    start = [task.name, "", f"{percent} %"]
    base: Path | None = None
    for number, (way, text) in enumerate(options.ways.items()):
        before, _, pack = text.format(share=f"{percent / 100:g}").partition("|")
        stem = f"{task.name}-{'int8' if 'int8' in way else 'as-is'}-{percent}-{number}"
        plain, packed = folder / f"{stem}.plain.onnx", folder / f"{stem}.onnx"
        _, failed = convert(task, before, plain, given)
        cpu, failed_too = convert(task, f"{before},{pack or 'pack'}", packed, given)
        start[1] = way
        if failed or failed_too:
            print("| " + " | ".join([*start, failed or failed_too]) + " |", flush=True)
            continue
        found = cells(task, plain, packed, feed, options)
        start[2] = f"{100 * zeros(plain):.1f} %"
        print("| " + " | ".join([*start, *found, f"{cpu:.1f}"]) + " |", flush=True)
        base = plain if way == "exact" else base
    for way, write in PEERS.items() if base and options.peers else ():
        packed = folder / f"{task.name}-peer-{percent}-{way.split()[0]}.onnx"
        write(base, packed)
        found = cells(task, base, packed, feed, options)
        print("| " + " | ".join([task.name, way, start[2], *found, "-"]) + " |", flush=True)


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--shares", type=int, nargs="+", default=[50, 80, 90])
    parser.add_argument("--samples", type=int, default=64, help="that calibrate; 0: no data")
    parser.add_argument("--way", action="append", default=[], metavar="NAME[=PASSES]")
    parser.add_argument("--peers", action="store_true", help="sparse_initializer and float16, too")
    parser.add_argument("--judge", action="store_true", help="points lost against the original")
    parser.add_argument("--rounds", type=int, default=7, help="of latency; 0 leaves it out")
    options = parser.parse_args()
    pairs = (way.partition("=") for way in options.way)
    options.ways = {name: passes or WAYS[name] for name, _, passes in pairs} or WAYS
    print_head(HEAD)
    with tempfile.TemporaryDirectory() as spare:
        folder = options.work or Path(spare)
        folder.mkdir(parents=True, exist_ok=True)
        known = options.digits or options.zoo
        for task in tasks(options) if known else made(folder):
            for percent in options.shares:
                rows(task, percent, options, folder)


if __name__ == "__main__":
    main()
