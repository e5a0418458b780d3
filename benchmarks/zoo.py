"""Run ``simplify,quantize`` on every model of a folder of real models, with its own data.

    python benchmarks/zoo.py [--zoo FOLDER] [--passes TEXT] [--samples 64] [MODEL ...]

The folder holds ``models/*.onnx``, ``prepare.py`` (writes calibration samples as the evaluation
feeds them) and ``evaluate.py`` (``evaluate(path, name, ref)`` gives the metric of a variant of
model ``name``). Prints a markdown table; evaluation is skipped with ``--no-evaluate``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"minilm", "silero", "nnsplit", "superres", "gtcrn", "magika", "ultraface"}


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def prepare(zoo: Path, model: Path, folder: Path, samples: int) -> Path:
    """Write calibration samples; variable shapes become a folder of npz files."""
    several = any(model.name.startswith(name) for name in FOLDERS)
    target = folder / (model.stem if several else f"{model.stem}.npz")
    done = run(
        [sys.executable, "prepare.py", str(model), str(target), "--samples", str(samples)], cwd=zoo
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    return target


def evaluate(zoo: Path, path: Path, name: str, original: Path) -> dict[str, float]:
    code = (
        "import evaluate, json, sys; "
        "print(json.dumps(evaluate.evaluate(sys.argv[1], sys.argv[2], sys.argv[3]), default=float))"
    )
    done = run([sys.executable, "-c", code, str(path), name, str(original)], cwd=zoo)
    if done.returncode:
        return {"failed": float("nan")}
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def first(metrics: dict[str, float]) -> str:
    key = next(iter(metrics))
    return f"{key} {metrics[key]:.4g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--zoo", default=os.environ.get("CONVERTER_ZOO", ROOT / "../shared/zoo"))
    parser.add_argument("--passes", default="simplify,quantize")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--no-evaluate", action="store_true")
    options = parser.parse_args()
    zoo = Path(options.zoo).resolve()
    models = sorted((zoo / "models").glob("*.onnx"))
    if options.models:
        models = [m for m in models if any(word in m.name for word in options.models)]
    print("| model | exit | size | latency | SQNR dB | agreement | original | converted |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            print(row(zoo, model, Path(folder), options), flush=True)


def row(zoo: Path, model: Path, folder: Path, options: argparse.Namespace) -> str:
    try:
        data = prepare(zoo, model, folder, options.samples)
    except RuntimeError as error:
        return f"| {model.stem} | no data: {str(error).splitlines()[-1]} |"
    target = folder / model.name
    command = [sys.executable, "-m", "converter", str(model), str(target)]
    done = run([*command, "--passes", options.passes, "--data", str(data), "--json"], cwd=ROOT)
    if done.returncode:
        return f"| {model.stem} | {done.returncode}: {done.stderr.strip()[-300:]} |"
    verdict = json.loads(done.stdout)["verdict"]
    latency = verdict["latency"]["models"][1]["ratio"]
    before = after = "-"
    if not options.no_evaluate:
        before = first(evaluate(zoo, model, model.name, model))
        after = first(evaluate(zoo, target, model.name, model))
    agreement = verdict["agreement"]
    return (
        f"| {model.stem} | 0 | {verdict['size']['ratio']:.2f}x | {latency:.2f}x "
        f"| {number(verdict['sqnr_db'])} | {number(agreement)} | {before} | {after} |"
    )


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main()
