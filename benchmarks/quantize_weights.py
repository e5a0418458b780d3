"""Weight-only quantization over a folder of real models: size and output SQNR of every method.

    python benchmarks/quantize_weights.py [--zoo FOLDER] [--samples 64] [--evaluate] [MODEL ...]

The folder is the one of ``benchmarks/zoo.py``. Of twice as many samples every second one calibrates
and the others are measured on: signal to quantization noise of all float outputs together, in dB.
``--evaluate`` adds the metric of the folder's own evaluation.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from zoo import ROOT, evaluate, first, prepare, run

VARIANTS = {
    "rtn": "quantize_weights:bits=4,block=32,method=rtn",
    "hqq": "quantize_weights:bits=4,block=32,method=hqq",
    "gptq": "quantize_weights:bits=4,block=32,method=gptq",
    "channel rtn": "quantize_weights:bits=4,block=0,symmetric=true,method=rtn",
    "channel gptq": "quantize_weights:bits=4,block=0,symmetric=true,method=gptq",
    "codebook": "cluster_weights:bits=4,per=tensor",
    "codebook/channel": "cluster_weights:bits=4,per=channel",
}
Feed = dict[str, np.ndarray]


def feeds(data: Path) -> list[Feed]:
    """Return single samples as feeds: rows of a npz file, or the files of a folder."""
    if data.is_dir():
        return [dict(np.load(file)) for file in sorted(data.iterdir()) if file.suffix == ".npz"]
    arrays = dict(np.load(data))
    count = len(next(iter(arrays.values())))
    return [{k: v[at : at + 1] for k, v in arrays.items()} for at in range(count)]


def split(data: Path, folder: Path) -> tuple[Path, list[Feed]]:
    """Write every second sample as calibration data and return the others."""
    every = feeds(data)
    if data.is_dir():
        target = folder / f"{data.name}_calibration"
        target.mkdir()
        for at, feed in enumerate(every[::2]):
            np.savez(target / f"{at:05d}.npz", **feed)
        return target, every[1::2]
    target = folder / f"{data.stem}_calibration.npz"
    arrays = {name: np.concatenate([f[name] for f in every[::2]]) for name in every[0]}
    np.savez(target, **arrays)
    return target, every[1::2]


def outputs(path: Path, samples: list[Feed]) -> list[np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}
    found = []
    for sample in samples:
        given = {name: array for name, array in sample.items() if name in names}
        found += [x for x in session.run(None, given) if x.dtype.kind == "f"]
    return found


def sqnr(expected: list[np.ndarray], actual: list[np.ndarray]) -> float:
    signal = sum(float(np.square(e, dtype=np.float64).sum()) for e in expected)
    pairs = zip(expected, actual, strict=True)
    noise = sum(float(np.square(e.astype(np.float64) - a).sum()) for e, a in pairs)
    return float("inf") if noise == 0 else 10 * float(np.log10(signal / noise))


def cell(zoo: Path, model: Path, target: Path, passes: str, known: dict[str, Any]) -> str:
    """Convert with one pass and measure; returns a cell of the table."""
    command = [sys.executable, "-m", "converter", str(model), str(target), "--no-verify"]
    done = run(
        [*command, "--passes", f"freeze,simplify,{passes}", "--data", str(known["data"])], cwd=ROOT
    )
    if done.returncode:
        return f"exit {done.returncode}: {(done.stderr.strip().splitlines() or ['?'])[-1][:60]}"
    ratio = target.stat().st_size / model.stat().st_size
    try:
        figure = sqnr(known["expected"], outputs(target, known["held_out"]))
    except ValueError:
        return f"{ratio:.3f}x, other shapes"
    metric = ""
    if known["evaluate"]:
        metric = ", " + first(evaluate(zoo, target, model.name, model))
    return f"{ratio:.3f}x {figure:.1f} dB{metric}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--zoo", default=os.environ.get("CONVERTER_ZOO", ROOT / "../shared/zoo"))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--evaluate", action="store_true")
    options = parser.parse_args()
    zoo = Path(options.zoo).resolve()
    models = sorted((zoo / "models").glob("*.onnx"))
    if options.models:
        models = [m for m in models if any(word in m.name for word in options.models)]
    print("| model | " + " | ".join(options.variants) + " |")
    print("|---" * (1 + len(options.variants)) + "|")
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            try:
                data = prepare(zoo, model, Path(folder), 2 * options.samples)
            except RuntimeError as error:
                print(f"| {model.stem} | no data: {str(error).splitlines()[-1][:80]} |")
                continue
            calibration, held_out = split(data, Path(folder))
            known = {
                "data": calibration,
                "held_out": held_out,
                "expected": outputs(model, held_out),
                "evaluate": options.evaluate,
            }
            target = Path(folder) / model.name
            cells = [cell(zoo, model, target, VARIANTS[v], known) for v in options.variants]
            print(f"| {model.stem} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
