"""Magnitude pruning of a large model: CPU seconds and memory beside reading and writing.

    python benchmarks/prune.py --folder /tmp/bench                # 1e9 float32 weights, 4 GB
    python benchmarks/prune.py --folder /tmp/bench --weights 1e8  # a tenth of it
    python benchmarks/prune.py --allocation lamp                  # instead of one threshold for all

Makes a model of ten MatMul weights with external data, converts it once without passes and once
with ``prune:sparsity=0.7,allocation=global``, each in its own process, and reports the differences.
The number of zeros in the written file is counted. ``--peer`` also measures ``np.abs`` and
``np.partition`` on the whole array, which is what most tools do; it needs 12 bytes per weight.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

TENSORS = 10
SPARSITY = 0.7
MEASURE = """
import json, resource, sys
from pathlib import Path
from converter import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]), passes=sys.argv[3], verify=False)
mine, children = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
cpu = sum(u.ru_utime + u.ru_stime for u in (mine, children))
print(json.dumps({"cpu": cpu, "peak": max(mine.ru_maxrss, children.ru_maxrss) / 1024}))
"""
PEER = """
import json, resource, sys
import numpy as np
w = np.fromfile(sys.argv[1], np.float32)
before = resource.getrusage(resource.RUSAGE_SELF)
size = np.abs(w)
cut = np.partition(size, int(0.7 * w.size) - 1)[int(0.7 * w.size) - 1]
w[size <= cut] = 0
after = resource.getrusage(resource.RUSAGE_SELF)
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps({"cpu": cpu, "peak": (after.ru_maxrss - before.ru_maxrss) / 1024}))
"""


def make_model(folder: Path, weights: int) -> Path:
    """Write a chain of MatMul with ``weights`` normal weights in external data."""
    each = weights // TENSORS
    columns = 1000
    rows = each // columns
    nodes, initializers = [], []
    rng = np.random.default_rng(0)
    with (folder / "m.data").open("wb") as data:
        for i in range(TENSORS):
            tensor = onnx.TensorProto(name=f"w{i}", data_type=1, dims=[rows, columns])
            tensor.data_location = onnx.TensorProto.EXTERNAL
            place = {"location": "m.data", "offset": data.tell(), "length": rows * columns * 4}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            for start in range(0, rows * columns, 1 << 22):
                size = min(1 << 22, rows * columns - start)
                block = rng.standard_normal(size, np.float32) * np.float32(0.02 * (1 + 0.2 * i))
                data.write(block.tobytes())
            nodes.append(onnx.helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"y{i}"], f"n{i}"))
            initializers.append(tensor)
    value = onnx.helper.make_tensor_value_info
    inputs = [value(f"x{i}", 1, ["N", rows]) for i in range(TENSORS)]
    outputs = [value(f"y{i}", 1, ["N", columns]) for i in range(TENSORS)]
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def measure(script: str, *arguments: object) -> dict[str, float]:
    """Run a script in its own process and return what it printed."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def count_zeros(path: Path) -> int:
    """Count the zero weights of a written model without loading it whole."""
    model = onnx.load(path, load_external_data=False)
    zeros = 0
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if not place:
            zeros += int((onnx.numpy_helper.to_array(tensor) == 0).sum())
            continue
        count = int(np.prod(tensor.dims))
        with (path.parent / place["location"]).open("rb") as data:
            data.seek(int(place["offset"]))
            for start in range(0, count, 1 << 22):
                block = np.fromfile(data, np.float32, min(1 << 22, count - start))
                zeros += int((block == 0).sum())
    return zeros


def main() -> None:
    """Measure, print one table, remove the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--weights", type=float, default=1e9)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--allocation", default="global", help="also local, lamp, erk ...")
    parser.add_argument("--peer", action="store_true", help="measure np.abs + np.partition too")
    options = parser.parse_args()
    weights = int(options.weights)
    options.folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(options.folder).free < 10 * weights:
        raise SystemExit(f"{options.folder} needs {10 * weights / 1e9:.0f} GB of free space")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        model = make_model(folder, weights)
        (folder / "out").mkdir()
        runs: dict[str, list[dict[str, float]]] = {"": [], "prune": []}
        for _ in range(options.repeat):
            for key, results in runs.items():
                spec = f"prune:sparsity={SPARSITY},allocation={options.allocation}" if key else ""
                results.append(measure(MEASURE, model, folder / "out" / "m.onnx", spec))
                zeros = count_zeros(folder / "out" / "m.onnx")
                shutil.rmtree(folder / "out")
                (folder / "out").mkdir()
        report(runs, zeros, weights)
        if options.peer:
            peer = measure(PEER, folder / "m.data")
            print(f"np.abs + np.partition: {peer['cpu']:.2f} s, {peer['peak']:.0f} MB beside it")


def report(runs: dict[str, list[dict[str, float]]], zeros: int, weights: int) -> None:
    """Print what pruning costs beside reading and writing."""
    for unit, key, width in (("s", "cpu", 2), ("MB", "peak", 0)):
        plain, pruned = (statistics.median(r[key] for r in runs[k]) for k in ("", "prune"))
        print(
            f"{key}: copy {plain:.{width}f} {unit}, prune {pruned:.{width}f} {unit}, "
            f"difference {pruned - plain:.{width}f} {unit}"
        )
    wanted = round(SPARSITY * weights)
    print(f"zeros: {zeros:,} of {weights:,}, wanted {wanted:,}, off by {zeros - wanted}")
    print(f"python {sys.version.split()[0]}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
