"""``quantize`` beside onnxruntime's ``quantize_static``, each in processes of its own.

Run as ``python -m benchmarks.quantize [mobilenet] [chain] [--repeat N]``. MobileNetV2-shaped: CPU
seconds of the whole process (children included), largest resident set of any one process, fused
convolutions, and latency of both files in turn. Chain: CPU seconds at 2,000 and 4,000 nodes.
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
    calibrate_method=CalibrationMethod.MinMax)
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


def ours(folder: Path, repeat: int) -> tuple[float, float]:
    """Median cost of our command on the folder's model."""
    arguments = [str(folder / "model.onnx"), str(folder / "ours.onnx"), "--passes"]
    arguments += ["quantize:method=minmax", "--data", str(folder / "data.npz")]
    return _median([measure(OURS, *arguments, "--no-verify", "--quiet") for _ in range(repeat)])


def peer(folder: Path, repeat: int) -> tuple[float, float]:
    """Median cost of onnxruntime's tool on the folder's model."""
    paths = [str(folder / name) for name in ("model.onnx", "peer.onnx", "data.npz")]
    return _median([measure(PEER, *paths) for _ in range(repeat)])


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


def mobilenet(root: Path, repeat: int) -> None:
    """Compare on the MobileNetV2-shaped model."""
    folder = root / "mobilenet"
    make("mobilenet", folder)
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
    parser.add_argument("what", nargs="*", choices=["mobilenet", "chain", []])
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quantize-") as folder:
        for name in options.what or ("mobilenet", "chain"):
            {"mobilenet": mobilenet, "chain": chain}[name](Path(folder), options.repeat)


if __name__ == "__main__":
    main()
