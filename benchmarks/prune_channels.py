"""What ``prune_channels`` costs in accuracy and gains in speed, without training and labels.

    python -m benchmarks.hard_digits DIGITS                   # once: trains and writes networks
    python -m benchmarks.prune_channels --digits DIGITS --zoo ZOO [--cuts 30 50] [--samples 512]
        [--passes "simplify,prune_channels:flops={keep}"] [--peer PYTHON] [NAME ...]

For each model and each share of multiply-accumulates to remove (per cent): the command is run as a
user would, and the written file compared with the original on samples that did not calibrate it.
``--samples 0`` gives no data at all. Prints what is left of the multiply-accumulates (counted
anew), points lost with their paired standard error and what is allowed (``BARS``), equal first
choices, divergence, latency on one thread against the original (both in turn), CPU seconds and
megabytes of the command. ``--peer`` names a Python that has onnxsim, measured at the same cuts.
``NAME=FILE`` judges FILE as the zoo's model NAME.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import latency
from benchmarks.pruning_tasks import (
    Cost,
    Judged,
    Task,
    first_feed,
    macs,
    parser_of,
    print_head,
    run,
    tasks,
)

PASSES = "prune_channels:flops={keep}"
# Points that may be lost: (model, samples) -> per cent removed -> points.
BARS: dict[tuple[str, int], dict[int, float]] = {
    ("resnet", 512): {30: 0.4, 50: 0.8, 70: 3.6, 80: 5.1},
    ("resnet", 64): {50: 2.6},
    ("resnet", 0): {50: 4.1},
    ("resnet20_cifar10", 512): {10: 0.5, 20: 1.5, 30: 3.0, 40: 5.5, 50: 8.5},
    ("resnet44_cifar10", 512): {30: 0.8, 40: 1.8, 50: 3.7},
    ("mobilenetv1_0.25_imagenet", 256): {10: 2.0, 30: 12.0},
    ("minilm_l6_sts", 64): {30: 2.0},
}
# Finds the sparsity that leaves the wanted share of multiply-accumulates, by halving.
PEER = """
import sys
import onnx
from onnxsim import pruning
from benchmarks.pruning_tasks import first_feed, macs
from pathlib import Path
model, target, data, keep = sys.argv[1:]
feed, low, high = first_feed(Path(data)), 0.0, 0.95
whole = macs(Path(model), feed)
for _ in range(7):
    middle = (low + high) / 2
    cut = pruning.apply_structured_pruning(onnx.load(model), sparsity=middle)
    del cut.graph.value_info[:]
    onnx.save(cut, target)
    low, high = (middle, high) if macs(Path(target), feed) > float(keep) * whole else (low, middle)
"""
HEAD = (
    "| model | by | samples | cut | MACs left | before | points lost | allowed | equal | KL "
    "| latency | CPU s | peak MB |"
)


def ours(task: Task, data: Path | None, keep: float, target: Path, passes: str) -> Cost:
    """Run the command as a user would."""
    chosen = passes.format(keep=f"{keep:g}")
    command = [sys.executable, "-m", "converter", str(task.path), str(target), "--passes", chosen]
    given = [] if data is None else ["--data", str(data)]
    report = ["--report", str(target.with_suffix(".json"))]
    return run([*command, *given, *report], target.with_suffix(".txt"))


def by_peer(python: str, task: Task, data: Path, keep: float, target: Path) -> Cost:
    command = [python, "-c", PEER, str(task.path), str(target), str(data), f"{keep:g}"]
    return run(command, target.with_suffix(".txt"))


def speed(task: Task, target: Path, data: Path, rounds: int) -> str:
    """Return the CPU time of the file against the original."""
    if not rounds:
        return "-"
    _, (_, found) = latency.ratios([task.path, target], [first_feed(data)], rounds)
    return latency.cell(found)


def cells(judged: Judged, allowed: float | None) -> list[str]:
    error = "" if np.isnan(judged.error) else f" ±{judged.error:.2f}"
    return [
        f"{judged.before:.2f}",
        f"{judged.lost:+.2f}{error}",
        "-" if allowed is None else f"{allowed:g}" + (" missed" if judged.lost > allowed else ""),
        "-" if np.isnan(judged.agreement) else f"{judged.agreement:.1f} %",
        "-" if np.isnan(judged.divergence) else f"{judged.divergence:.4f}",
    ]


def rows(task: Task, samples: int, options: argparse.Namespace, folder: Path) -> None:
    """Cut one model at every depth and print a line for each."""
    folder.mkdir(parents=True, exist_ok=True)
    data = task.calibration(samples or 64, folder)
    given = data if samples else None
    feed = first_feed(data)
    whole = macs(task.path, feed)
    bars = BARS.get((task.name.removesuffix("_bn"), samples), {})
    for cut in options.cuts or sorted(bars) or (30, 50):
        keep = 1 - cut / 100
        for by, python in (("onnxpress", ""), *(("onnxsim", p) for p in options.peer)):
            target = folder / f"{task.name}_{by}_{samples}_{cut}.onnx"
            if python:
                cost = by_peer(python, task, data, keep, target)
            else:
                cost = ours(task, given, keep, target, options.passes)
            line = [task.name, by, str(samples), f"-{cut} %"]
            if cost.code or not target.exists():
                said = " ".join(cost.said.split())[-300:]
                line += [f"exit {cost.code}: {said}"]
            else:
                line += [f"{macs(target, feed) / whole:.3f}"]
                line += cells(task.judge(target), bars.get(cut))
                line += [speed(task, target, data, options.rounds)]
            line += [f"{cost.cpu:.1f}", f"{cost.peak:.0f}"]
            print("| " + " | ".join(line) + " |", flush=True)


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--cuts", type=int, nargs="+", help="per cent removed; default: BARS")
    parser.add_argument("--samples", type=int, nargs="+", default=[512])
    parser.add_argument("--passes", default=PASSES, help="with {keep} for the share to keep")
    parser.add_argument("--peer", action="append", default=[], metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=7, help="of latency; 0 leaves it out")
    options = parser.parse_args()
    if not options.digits and not options.zoo:
        raise SystemExit("nothing to measure: give --digits FOLDER or --zoo FOLDER")
    print_head(HEAD)
    with tempfile.TemporaryDirectory() as spare:
        for task in tasks(options):
            for samples in options.samples:
                rows(task, samples, options, options.work or Path(spare))


if __name__ == "__main__":
    main()
