"""What ``prune`` costs in accuracy at a share of zeros, by allocation, criterion and recovery.

    python -m benchmarks.hard_digits DIGITS                   # once: trains and writes networks
    python -m benchmarks.prune_weights --digits DIGITS --zoo ZOO [--shares 50 70] [--samples 512]
        [--way "obs=prune:sparsity={share},recover=obs"] [--peer PYTHON] [NAME ...]

For each model, share of zeros (per cent) and way to get there (``WAYS``, or those given): the
command is run as a user would, and the written file compared with the original on samples that did
not calibrate it. Prints the zeros in the file (counted anew, of all float tensors of two and more
dimensions), its size against the original, points lost with their paired standard error and what
is allowed (``BARS``), equal first choices, divergence, CPU seconds and megabytes of the command.
``--samples 0`` gives no data. ``--peer`` names a Python that has onnxsim, measured at the same
shares. ``NAME=FILE`` judges FILE as the zoo's model NAME.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.prune_channels import cells
from benchmarks.pruning_tasks import Cost, Task, parser_of, print_head, run, tasks

# How to prune; what needs data is left out where there is none.
WAYS = {
    "uniform": "prune:sparsity={share},allocation=local,recover=none",
    "global": "prune:sparsity={share},allocation=global,recover=none",
    "LAMP": "prune:sparsity={share},allocation=lamp,recover=none",
    "LAMP, moments": "prune:sparsity={share},allocation=lamp,recover=moments",
    "LAMP, least squares": "prune:sparsity={share},allocation=lamp,recover=least_squares",
    "LAMP, OBS": "prune:sparsity={share},allocation=lamp,recover=obs",
    "sensitivity, OBS": "prune:sparsity={share},allocation=sensitivity,recover=obs",
}
# Points that may be lost with the best of the ways: model -> per cent of zeros -> points.
BARS: dict[str, dict[int, float]] = {
    "resnet": {70: 0.8, 80: 1.6, 90: 6.1},
    "resnet20_cifar10": {50: 1.2, 60: 1.6, 70: 3.8, 80: 6.5, 90: 19.0},
}
PEERS = {
    "magnitude": "apply_magnitude_pruning(model, sparsity=share)",
    "magnitude, global": "apply_magnitude_pruning(model, sparsity=share, global_sparsity=True)",
    "Wanda": "apply_wanda_pruning(model, feeds, sparsity=share)",
    "SparseGPT": "apply_sparsegpt_pruning(model, feeds, sparsity=share)",
}
PEER = """
import sys
import numpy as np
import onnx
from onnxsim.pruning import *
source, target, data, share = sys.argv[1:]
model, share, whole = onnx.load(source), float(share), dict(np.load(data))
count = min(map(len, whole.values()))
feeds = [{name: array[i : i + 1] for name, array in whole.items()} for i in range(count)]
onnx.save(CALL, target)
"""
HEAD = (
    "| model | by | samples | zeros wanted | found | size | before | points lost | allowed | equal "
    "| KL | CPU s | peak MB |"
)


def zeros(path: Path) -> float:
    """Return the share of zeros in the float tensors of two and more dimensions."""
    model = onnx.load(str(path))
    found = list(model.graph.initializer)
    found += [a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute]
    arrays = [numpy_helper.to_array(t) for t in found if len(t.dims) > 1]
    arrays = [array for array in arrays if array.dtype.kind == "f"]
    none = sum(array.size - np.count_nonzero(array) for array in arrays)
    return float(none / max(1, sum(array.size for array in arrays)))


def ours(task: Task, data: Path | None, passes: str, target: Path, seed: int) -> Cost:
    """Run the command as a user would."""
    command = [sys.executable, "-m", "converter", str(task.path), str(target), "--passes", passes]
    given = [] if data is None else ["--data", str(data)]
    report = ["--report", str(target.with_suffix(".json")), "--seed", str(seed)]
    return run([*command, *given, *report], target.with_suffix(".txt"))


def by_peer(python: str, task: Task, call: str, target: Path, data: Path, share: float) -> Cost:
    command = [python, "-c", PEER.replace("CALL", call), *map(str, (task.path, target, data))]
    return run([*command, f"{share:g}"], target.with_suffix(".txt"))


def needs_data(passes: str) -> bool:
    return any(word in passes for word in ("recover=obs", "moments", "least_squares", "sensitiv"))


def rows(task: Task, samples: int, options: argparse.Namespace, folder: Path) -> None:
    """Prune one model to every share in every way and print a line for each."""
    folder.mkdir(parents=True, exist_ok=True)
    data = task.calibration(samples or 64, folder)
    bars = BARS.get(task.name.removesuffix("_bn"), {}) if samples == 512 else {}
    for percent in options.shares or sorted(bars) or (50, 70):
        share = percent / 100
        for number, (way, text) in enumerate(options.ways.items()):
            if not samples and needs_data(text):
                continue
            target = folder / f"{task.name}_{samples}_{percent}_{number}.onnx"
            passes = text.format(share=f"{share:g}")
            cost = ours(task, data if samples else None, passes, target, options.seed)
            show(task, [task.name, way, str(samples), f"{percent} %"], target, cost, bars)
        for python in options.peer:
            for way, call in PEERS.items():
                target = folder / f"{task.name}_{samples}_{percent}_{way[:9]}.onnx"
                cost = by_peer(python, task, call, target, data, share)
                line = [task.name, f"onnxsim, {way}", str(samples), f"{percent} %"]
                show(task, line, target, cost, {})


def show(task: Task, line: list[str], target: Path, cost: Cost, bars: dict[int, float]) -> None:
    """Print a line of the table."""
    if cost.code or not target.exists():
        line += [f"exit {cost.code}: {' '.join(cost.said.split())[-300:]}"]
    else:
        judged = task.judge(target)
        size = target.stat().st_size / task.path.stat().st_size
        line += [f"{100 * zeros(target):.2f} %", f"{100 * size:.2f} %"]
        line += cells(judged, bars.get(int(line[3].split()[0])))
    line += [f"{cost.cpu:.1f}", f"{cost.peak:.0f}"]
    print("| " + " | ".join(line) + " |", flush=True)


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--shares", type=int, nargs="+", help="per cent of zeros; default: BARS")
    parser.add_argument("--samples", type=int, nargs="+", default=[512])
    parser.add_argument(
        "--way",
        action="append",
        default=[],
        metavar="NAME[=PASSES]",
        help="one of WAYS, or passes with {share} for the share of zeros; default: all",
    )
    parser.add_argument("--peer", action="append", default=[], metavar="PYTHON")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.digits and not options.zoo:
        raise SystemExit("nothing to measure: give --digits FOLDER or --zoo FOLDER")
    pairs = (way.partition("=") for way in options.way)
    chosen = {name: passes or WAYS[name] for name, _, passes in pairs}
    options.ways = chosen or ({} if options.peer else WAYS)
    print_head(HEAD)
    with tempfile.TemporaryDirectory() as spare:
        for task in tasks(options):
            for samples in options.samples:
                rows(task, samples, options, options.work or Path(spare))


if __name__ == "__main__":
    main()
