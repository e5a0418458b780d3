"""Convert real models to float16, by ``simplify,cast`` and by onnxconverter-common, and compare.

    python benchmarks/cast.py [--zoo FOLDER] [--samples 8] [--peer FOLDER] [MODEL ...]

``--peer`` is a folder with onnxconverter-common (``pip install --no-deps --target FOLDER
onnxconverter-common``); without it only our own rows are printed. Signal to error is given twice:
as onnxruntime's CPU provider computes (in float32 wherever it has no kernel), and with every
float16 value rounded, which is what hardware with float16 does.

"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent))
HALF = onnx.TensorProto.FLOAT16
_PEER = """
import sys, onnx
from onnxconverter_common import float16
model = onnx.load(sys.argv[1])
onnx.save(float16.convert_float_to_float16(model, keep_io_types=True), sys.argv[2])
"""


def ours(source: Path, target: Path, data: Path, options: argparse.Namespace) -> str:
    command = [sys.executable, "-m", "converter", str(source), str(target), "--no-verify"]
    command += ["--passes", options.passes, "--data", str(data)]
    return _run(command, {})


def peer(source: Path, target: Path, data: Path, options: argparse.Namespace) -> str:
    del data
    code = [sys.executable, "-c", _PEER, str(source), str(target)]
    return _run(code, {"PYTHONPATH": str(options.peer)})


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    lines = (done.stderr or done.stdout).strip().splitlines()
    return "" if not done.returncode else f"no file: {lines[-1][:80] if lines else 'it crashed'}"


def rounding(path: Path, target: Path) -> bool:
    """Write the model with two Max behind every float16 value, so that it is really rounded."""
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(path))
    except onnx.shape_inference.InferenceError:
        return False  # its types contradict each other
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    outputs = {v.name for v in model.graph.output}
    nodes: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        nodes.append(node)
        for name in node.output:
            if kinds.get(name) == HALF and name not in outputs:
                renamed[name] = f"{name}__twice"
                nodes.append(onnx.helper.make_node("Max", [name], [f"{name}__once"]))
                nodes.append(onnx.helper.make_node("Max", [f"{name}__once"], [renamed[name]]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target)
    return True


def outputs(path: Path, feeds: list[dict[str, Any]]) -> list[list[np.ndarray]]:
    """Run a model; called in a child process, since float16 models crash onnxruntime at times."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), settings)
    return [session.run(None, feed) for feed in feeds]


def _child(path: str, feeds: str, target: str) -> None:
    found = outputs(Path(path), pickle.loads(Path(feeds).read_bytes()))
    Path(target).write_bytes(pickle.dumps(found))


def decibels(expected: Any, path: Path, feeds: Path) -> str:
    target = path.with_suffix(".pickle")
    code = "import cast, sys; cast._child(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(feeds), str(target)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parent,
    )
    if done.returncode:
        return "crash" if done.returncode < 0 else "refused"
    signal = error = 0.0
    for old, new in zip(expected, pickle.loads(target.read_bytes()), strict=True):
        for before, after in zip(old, new, strict=True):
            if before.dtype.kind != "f":
                continue
            if not np.isfinite(after[np.isfinite(before)]).all():
                return "NaN"
            signal += float(np.sum(before.astype(np.float64) ** 2))
            error += float(np.sum((before.astype(np.float64) - after) ** 2))
    return f"{10 * np.log10(signal / error):.1f}" if error else "equal"


def rows(model: Path, folder: Path, options: argparse.Namespace) -> None:
    from zoo import prepare

    data = prepare(options.zoo, model, folder, options.samples)
    files = sorted(data.glob("*.npz")) if data.is_dir() else [data]
    feeds = _feeds(model, files)
    stored = folder / "feeds.pickle"
    stored.write_bytes(pickle.dumps(feeds))
    expected = outputs(model, feeds)
    tools = {"onnxpress": ours}
    if options.peer:
        tools["onnxconverter-common"] = peer
    for name, convert in tools.items():
        target = folder / f"{name}-{model.name}"
        problem = convert(model, target, data, options)
        if problem:
            print(f"| {model.stem} | {name} | {problem} | | | |", flush=True)
            continue
        size = target.stat().st_size / model.stat().st_size
        real = folder / f"rounded-{name}-{model.name}"
        rounds = rounding(target, real)
        casts = sum(n.op_type == "Cast" for n in onnx.load(target).graph.node)
        figures = [decibels(expected, target, stored)]
        figures.append(decibels(expected, real, stored) if rounds else "refused")
        print(
            f"| {model.stem} | {name} | {size:.2f}x | {casts} | {figures[0]} | {figures[1]} |",
            flush=True,
        )


def _feeds(model: Path, files: list[Path]) -> list[dict[str, Any]]:
    """Read the samples one by one, as the model's first dimension wants them."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    inputs = ort.InferenceSession(str(model), settings).get_inputs()
    feeds: list[dict[str, Any]] = []
    for file in files:
        arrays = np.load(file)
        first = {i.name: arrays[i.name] for i in inputs}
        wanted = {i.name: i.shape[0] if i.shape else None for i in inputs}
        whole = all(not isinstance(w, int) or first[n].shape[0] == w for n, w in wanted.items())
        if whole:
            feeds.append(first)
            continue
        count = max(len(array) for array in first.values())
        feeds += [{n: array[i : i + 1] for n, array in first.items()} for i in range(count)]
    return feeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--zoo", default=os.environ.get("CONVERTER_ZOO", ROOT / "../shared/zoo"))
    parser.add_argument("--passes", default="simplify,cast:to=float16")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--peer", type=Path, default=None)
    options = parser.parse_args()
    options.zoo = Path(options.zoo).resolve()
    models = sorted((options.zoo / "models").glob("*.onnx"))
    if options.models:
        models = [m for m in models if any(word in m.name for word in options.models)]
    print("| model | tool | size | casts | SQNR dB on the CPU | SQNR dB, rounded |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows(model, Path(folder), options)
            except (RuntimeError, ValueError, KeyError) as error:
                print(f"| {model.stem} | | {str(error).splitlines()[-1][:80]} | | | |", flush=True)


if __name__ == "__main__":
    main()
