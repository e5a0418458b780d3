"""``quantize`` beside onnxruntime's ``quantize_static``, each in processes of its own.

Run as ``python -m benchmarks.quantize [mobilenet] [resnet50] [bert] [chain] [--repeat N]``. Models
in the shape of known ones: CPU seconds of the whole process (children included) and largest
resident set of any one process, method by method; fused operators, and latency of both files in
turn. onnxruntime's percentile is the peer of ``percentile``, ``mse`` and ``entropy``: it has no
squared error. Calibration alone beside plain inference of the same samples. Chain: CPU seconds at
2,000 and 4,000 nodes.
"""

from __future__ import annotations

import argparse
import collections
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

OURS = """
import sys
from converter.cli.entry import main
sys.exit(main(sys.argv[1:]))
"""
PEER = """
import sys
import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static)
class Reader(CalibrationDataReader):
    def __init__(self, path):
        self.samples = iter([{"input": x} for x in np.load(path)["input"]])
    def get_next(self):
        return next(self.samples, None)
quantize_static(sys.argv[1], sys.argv[2], Reader(sys.argv[3]), quant_format=QuantFormat.QDQ,
    per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    calibrate_method=CalibrationMethod[sys.argv[4]])
"""
CALIBRATION = """
import sys, time
from pathlib import Path
import numpy as np
from converter.calibration.augment import augment
from converter.calibration.collect import observe
from converter.calibration.statistic import Request
from converter.core.context import RunSettings
from converter.core.select import Selection
from converter.data.sources import open_data
from converter.execution.session import Session
from converter.io import formats
from passes.affine.placement import place
path, data, *kinds = sys.argv[1:]
model = formats.load(Path(path))
samples = open_data(data, model)
plan = place(model, Selection((), ()))
values = [v.name for v in dict.fromkeys(plan.ranged().values())]
first = next(iter(samples)).inputs
given = {name: array.shape for name, array in first.items()}
copy, probes = augment(model, [Request(v, k) for v in values for k in kinds], given=given)
copy_path = Path(path).with_suffix(".calibration.onnx")
formats.save(copy, copy_path)
def plain():
    session = Session(Path(path))
    for batch in samples:
        session.run(batch.inputs)
def cost(work):
    start = time.process_time()
    work()
    return time.process_time() - start
plain()
runs = [(cost(plain), cost(lambda: observe(copy_path, probes, samples, settings=RunSettings())))
        for _ in range(3)]
print(min(b for _, b in runs) / min(a for a, _ in runs))
"""
WATCHED = """
import os, resource, runpy, sys
script = sys.argv.pop(1)
try:
    exec(compile(script, "benchmark", "exec"), {"__name__": "__main__"})
except SystemExit as end:
    if end.code:
        raise
finally:
    t = os.times()
    peak = max(resource.getrusage(w).ru_maxrss
               for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(t.user + t.system + t.children_user + t.children_system, peak / 1024, file=sys.stderr)
"""


def measure(script: str, *arguments: str) -> tuple[float, float]:
    """Run a script and return (CPU seconds with children, peak MB of any one process)."""
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, script, *arguments],
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"benchmark failed:\n{done.stderr}")
    seconds, peak = done.stderr.strip().splitlines()[-1].split()
    return float(seconds), float(peak)


def ours(folder: Path, repeat: int, method: str = "minmax") -> tuple[float, float]:
    """Median cost of our command on the folder's model."""
    target = folder / ("ours.onnx" if method == "minmax" else f"{method}.onnx")
    arguments = [str(folder / "model.onnx"), str(target), "--passes"]
    arguments += [f"quantize:method={method}", "--data", str(folder / "data.npz")]
    return _median([measure(OURS, *arguments, "--no-verify", "--quiet") for _ in range(repeat)])


def peer(folder: Path, repeat: int, method: str = "MinMax") -> tuple[float, float]:
    """Median cost of onnxruntime's tool on the folder's model."""
    target = "peer.onnx" if method == "MinMax" else f"peer_{method}.onnx"
    paths = [str(folder / name) for name in ("model.onnx", target, "data.npz")]
    return _median([measure(PEER, *paths, method) for _ in range(repeat)])


def calibration(folder: Path, *kinds: str) -> float:
    """Return the CPU time of gathering statistics as a multiple of plain inference."""
    paths = [str(folder / name) for name in ("model.onnx", "data.npz")]
    done = subprocess.run(
        [sys.executable, "-c", CALIBRATION, *paths, *kinds],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def _median(runs: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(r[0] for r in runs), statistics.median(r[1] for r in runs)


def fused(path: Path) -> dict[str, int]:
    """Count operators after onnxruntime's extended optimisations."""
    import onnx
    import onnxruntime as ort

    target = path.with_suffix(".optimized.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(collections.Counter(n.op_type for n in onnx.load(str(target)).graph.node))


def latencies(paths: list[Path], sample: np.ndarray, rounds: int = 60) -> list[float]:
    """Best of many runs in milliseconds, the files in turn in one process."""
    import onnxruntime as ort

    sessions = []
    for path in paths:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        sessions.append(
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        )
    best = [float("inf")] * len(paths)
    for _ in range(rounds):
        for i, session in enumerate(sessions):
            start = time.perf_counter()
            session.run(None, {"input": sample})
            best[i] = min(best[i], (time.perf_counter() - start) * 1e3)
    return best


def methods(root: Path, kind: str, repeat: int) -> None:
    """Compare ours with the peer on one model, method by method."""
    folder = root / kind
    make(kind, folder)
    plain(folder, repeat)
    cpu, memory = peer(folder, repeat, "Percentile")
    print(f"onnxruntime  percentile  cpu {cpu:6.2f} s  peak {memory:5.0f} MB")
    for method in ("percentile", "mse", "entropy"):
        our_cpu, our_memory = ours(folder, repeat, method)
        print(
            f"ours         {method:10}  cpu {our_cpu:6.2f} s  peak {our_memory:5.0f} MB"
            f"  ratios: cpu {our_cpu / cpu:.2f}x  peak {our_memory / memory:.2f}x"
        )
    every = ("minmax", "average", "histogram", "moments", "absmax")
    for kinds in (every[:1], ("minmax", "histogram"), every):
        print(f"{' '.join(kinds)}: {calibration(folder, *kinds):.2f}x plain inference")


def plain(folder: Path, repeat: int) -> None:
    """Compare min-max: costs, fused operators and latency of the files."""
    rows = {"onnxruntime": peer(folder, repeat), "ours": ours(folder, repeat)}
    files = [folder / "model.onnx", folder / "peer.onnx", folder / "ours.onnx"]
    times = latencies(files, np.load(folder / "data.npz")["input"][0])
    for (name, (seconds, peak)), path, ms in zip(rows.items(), files[1:], times[1:], strict=True):
        print(f"{name:12} cpu {seconds:5.2f} s  peak {peak:4.0f} MB  {ms:5.2f} ms  {fused(path)}")
    (cpu, memory), (our_cpu, our_memory) = rows["onnxruntime"], rows["ours"]
    print(
        f"ratios: cpu {our_cpu / cpu:.2f}x  peak {our_memory / memory:.2f}x"
        f"  latency {times[2] / times[1]:.3f}x (float {times[0]:.2f} ms)"
    )


def chain(root: Path, repeat: int) -> None:
    """Measure how the cost grows with the number of nodes."""
    seconds = []
    for length in (2000, 4000):
        folder = root / f"chain{length}"
        make(f"chain:{length}", folder)
        cost = ours(folder, repeat)
        seconds.append(cost[0])
        print(f"chain of {length}: cpu {cost[0]:.2f} s  peak {cost[1]:.0f} MB")
    print(f"twice the nodes: {seconds[1] / seconds[0]:.2f}x")


def make(kind: str, folder: Path) -> None:
    """Write model and data in a process of its own, so that this one stays small."""
    command = [sys.executable, "-m", "benchmarks.quantize_models", kind, str(folder)]
    subprocess.run(command, check=True)


def main() -> None:
    """Run what the command line names, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = ["mobilenet", "resnet50", "bert", "chain"]
    parser.add_argument("what", nargs="*", choices=[*kinds, []])
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quantize-") as folder:
        for name in options.what or kinds:
            print(f"--- {name}")
            if name == "chain":
                chain(Path(folder), options.repeat)
            else:
                methods(Path(folder), name, options.repeat)


if __name__ == "__main__":
    main()
