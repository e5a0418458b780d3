"""Latency in onnxruntime of files that tools made of a model, against the model itself.

    python benchmarks/latency.py --model MODEL --data FOLDER ours.onnx peer.onnx ...
    python benchmarks/latency.py --zoo FOLDER --peer onnxslim=PYTHON [--control] [NAME ...]

The first form measures given files; FOLDER has one .npz per sample (without it: made-up inputs).
The second writes ``simplify`` (and ``freeze,simplify`` where weights are overridable) and what
peers make of every model of a zoo (see zoo.py) first. One process, one thread, default
optimizations: all files take turns in random order, some milliseconds each, in CPU time, and their
sessions are opened anew several times. The figure is the ratio to the original, median of medians,
and its standard error. With ``--control`` the original also takes part as one of the files: that
row says what the noise is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

Feed = dict[str, Any]
_TURN = 0.03  # seconds of CPU time that one file gets at once
_PATIENCE = 30.0  # seconds for all rounds of one model, if they are not fewer than
_FEWEST = 3  # in each of
_OPENINGS = 7


def session(path: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def spent(call: Callable[[], Any], times: int) -> float:
    """Return the CPU seconds of one of several calls."""
    begin = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - begin) / times


def ratios(paths: list[Path], feeds: list[Feed], rounds: int) -> tuple[float, list[list[float]]]:
    """Return the seconds of the first file for all feeds, and each file's ratios to it.

    Sessions are opened anew several times, in another order: where the weights come to lie in
    memory alone makes some per cent, which no number of runs of one session takes away.
    """
    order, firsts = np.random.default_rng(0), []
    found: list[list[float]] = [[] for _ in paths]
    for _ in range(_OPENINGS):
        calls = {i: _caller(paths[i], feeds) for i in map(int, order.permutation(len(paths)))}
        for warm_up in calls.values():
            spent(warm_up, 2)
        once = max(spent(calls[0], 1), 1e-6)
        times = max(1, int(_TURN / once))
        share = int(_PATIENCE / _OPENINGS / (once * times * len(paths)))
        parts: list[list[float]] = [[] for _ in paths]
        for _ in range(max(_FEWEST, min(rounds, share))):
            taken = {i: spent(calls[i], times) for i in map(int, order.permutation(len(paths)))}
            firsts.append(taken[0])
            for index, seconds in taken.items():
                parts[index].append(seconds / taken[0])
        for index, part in enumerate(parts):
            found[index].append(float(np.median(part)))
    return float(np.median(firsts)), found


def _caller(path: Path, feeds: list[Feed]) -> Callable[[], None]:
    opened = session(path)
    names = [value.name for value in opened.get_inputs()]
    given = [{n: feed[n] for n in names if n in feed} for feed in feeds]

    def call() -> None:
        for feed in given:
            opened.run(None, feed)

    return call


def cell(values: list[float]) -> str:
    """Return the median over the openings, and the standard error of a mean of as many."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.median(values):.3f} ±{error:.3f}"


def read_feeds(folder: Path | None, model: Path, count: int) -> list[Feed]:
    """Return samples; where there are none, one made up from the declared shapes."""
    if folder is not None:
        files = sorted(folder.glob("*.npz"))[:count]
        return [dict(np.load(file).items()) for file in files]
    from exact import feed_for

    import converter

    return [feed_for(converter.load(model), 0, 1)]


def convert(model: Path, target: Path, passes: str) -> bool:
    command = [sys.executable, "-m", "converter", str(model), str(target), "--passes", passes]
    done = subprocess.run([*command, "--no-verify", "--quiet"], cwd=ROOT, check=False)
    return done.returncode == 0


def by_peer(tool: str, python: str, model: Path, target: Path) -> bool:
    from simplifiers import TOOLS

    code = f"{TOOLS[tool]}\nimport sys\nsimplify(sys.argv[1], sys.argv[2])"
    command = [python, "-c", code, str(model), str(target)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def files_of(model: Path, folder: Path, peers: dict[str, str]) -> dict[str, Path]:
    """Return what each tool made of the model, as far as it could."""
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    files = {"original": model}
    jobs: dict[str, Callable[[Path], bool]] = {
        "simplify": lambda target: convert(model, target, "simplify")
    }
    graph = onnx.load(model, load_external_data=False)
    given = {value.name for value in graph.graph.input}
    if graph.ir_version >= 4 and any(tensor.name in given for tensor in graph.graph.initializer):
        jobs["freeze,simplify"] = lambda target: convert(model, target, "freeze,simplify")
    for tool, python in peers.items():
        jobs[tool] = lambda target, t=tool, p=python: by_peer(t, p, model, target)
    for name, job in jobs.items():
        target = folder / f"{name.replace(',', '_')}.onnx"
        if target.is_file() or job(target):
            files[name] = target
    return files


def sample_folder(zoo: Path, model: Path, folder: Path, count: int) -> Path:
    """Write samples as the model's evaluation feeds them, one file each."""
    if not folder.is_dir():
        command = [sys.executable, "prepare.py", str(model), str(folder), "--samples", str(count)]
        subprocess.run(command, cwd=zoo, check=True, capture_output=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="files to measure; models of the zoo")
    parser.add_argument("--model", type=Path, help="the original")
    parser.add_argument("--data", type=Path, help="a folder with one .npz per sample")
    parser.add_argument("--zoo", type=Path, default=os.environ.get("CONVERTER_ZOO"))
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--control", action="store_true", help="the original once more")
    parser.add_argument("--work", type=Path, help="keep samples and files here and use them again")
    options = parser.parse_args()
    print("| model | ms | file | CPU time |\n| --- | --- | --- | --- |")
    if options.model:
        files = {"original": options.model} | {Path(n).name: Path(n) for n in options.names}
        show(files, read_feeds(options.data, options.model, options.samples), options.rounds)
        return
    with tempfile.TemporaryDirectory() as spare:
        measure_zoo(options, options.work or Path(spare))


def measure_zoo(options: argparse.Namespace, work: Path) -> None:
    peers = dict(peer.split("=", 1) for peer in options.peer)
    zoo = Path(options.zoo or ROOT / "../shared/zoo").resolve()
    for model in sorted((zoo / "models").glob("*.onnx")):
        if options.names and not any(name in model.stem for name in options.names):
            continue
        files = files_of(model, work / "files" / model.stem, peers)
        (work / "data").mkdir(exist_ok=True)
        data = sample_folder(zoo, model, work / "data" / model.stem, options.samples)
        if options.control:
            files["original again"] = model
        show(files, read_feeds(data, model, options.samples), options.rounds)


def show(files: dict[str, Path], feeds: list[Feed], rounds: int) -> None:
    seconds, found = ratios(list(files.values()), feeds, rounds)
    each = 1000 * seconds / len(feeds)
    label = f"| {files['original'].stem} | {each:.3g} "
    for name, values in list(zip(files, found, strict=True))[1:]:
        print(f"{label}| {name} | {cell(values)} |", flush=True)


if __name__ == "__main__":
    main()
