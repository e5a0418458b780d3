"""``simplify`` and its peers on many models: nodes, bytes, seconds, memory, and who breaks what.

    python benchmarks/simplifiers.py --peer onnxslim=PYTHON --peer onnxsim=PYTHON \\
        --peer onnxruntime=PYTHON [--set cases] [--set FOLDER] [--separate] [--table]

PYTHON is the interpreter of an environment that has the peer. A set is ``cases`` (the models of
tests/torture) or a folder of .onnx files. By default 40 models share one process per tool, which is
started again after a crash; ``--separate`` gives each model a process of its own, so
that CPU seconds include the start and peak memory is that of the model. Outputs are compared with
the original's in onnxruntime with optimizations off; rounding is allowed, as in differential.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

TOOLS = {
    "onnxpress": (
        "import converter, onnx_ir, onnxruntime\n"
        "def simplify(a, b):\n"
        "    converter.convert(a, b, passes='simplify', verify=False, provenance=False)\n"
    ),
    "onnxslim": "import onnxslim\ndef simplify(a, b):\n    onnxslim.slim(a, b)\n",
    "onnxsim": (
        "import onnx, onnxsim\n"
        "def simplify(a, b):\n"
        "    onnx.save(onnxsim.simplify(onnx.load(a))[0], b)\n"
    ),
    "onnxruntime": (
        "import onnxruntime as r\n"
        "def simplify(a, b):\n"
        "    s = r.SessionOptions(); s.optimized_model_filepath = b; s.log_severity_level = 4\n"
        "    s.graph_optimization_level = r.GraphOptimizationLevel.ORT_ENABLE_BASIC\n"
        "    r.InferenceSession(a, s, providers=['CPUExecutionProvider'])\n"
    ),
}
LOOP = """
import json, os, resource, sys
def spent():
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))
whole = os.environ.get("WHOLE") == "1"
for line in sys.stdin:
    source, target = json.loads(line)
    start, error = 0.0 if whole else spent(), ""
    try:
        simplify(source, target)
    except BaseException as e:
        error = f"{type(e).__name__}: {e}"[:200]
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(k).ru_maxrss for k in kinds) / 1024
    row = {"cpu": spent() - start, "peak": peak, "error": error}
    sys.__stdout__.write("\\nROW" + json.dumps(row) + "\\n")
    sys.__stdout__.flush()
"""
_PATIENCE = 300
_GROUP = 40  # onnxslim leaves something behind in each call and fails after about 200


@dataclass
class Outcome:
    """What a tool made of a model; ``broken`` lists what is wrong with it."""

    nodes: int = 0
    nbytes: int = 0
    cpu: float = 0.0
    peak: float = 0.0
    error: str = ""
    broken: tuple[str, ...] = ()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--set", action="append", dest="sets", metavar="cases|FOLDER")
    parser.add_argument("--separate", action="store_true", help="a process for each model")
    parser.add_argument("--table", action="store_true", help="also one row per model")
    parser.add_argument("--only", default="", help="models whose name contains this")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    tools = {"onnxpress": sys.executable}
    tools.update(peer.split("=", 1) for peer in options.peer)
    for chosen in options.sets or ["cases"]:
        with tempfile.TemporaryDirectory() as folder:
            sources = dict(sorted(_models(chosen, Path(folder)).items()))
            sources = {k: v for k, v in sources.items() if options.only in k}
            results = {
                tool: _run_tool(tool, python, sources, Path(folder), separate=options.separate)
                for tool, python in tools.items()
            }
            outcomes = _judge_all(sources, results, Path(folder))
        name = chosen if chosen == "cases" else Path(chosen).name
        _print(name, outcomes, rows=options.table)
    return 0


def _models(chosen: str, folder: Path) -> dict[str, Path]:
    if chosen != "cases":
        return {path.stem: path for path in sorted(Path(chosen).glob("*.onnx"))}
    from torture.test_torture import CASES

    paths = {}
    for name, case in CASES.items():
        paths[name] = folder / f"{name.replace('/', '_')}.onnx"
        paths[name].write_bytes(case.build().SerializeToString())
    return paths


def _target(folder: Path, tool: str, name: str) -> Path:
    place = folder / f"by_{tool}"
    place.mkdir(exist_ok=True)
    return place / f"{name}.onnx"


def _run_tool(
    tool: str, python: str, sources: dict[str, Path], folder: Path, *, separate: bool
) -> dict[str, Outcome]:
    """Run one tool on all models; a model that ends the process is noted, and the rest goes on."""
    import os

    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "WHOLE": str(int(separate))}
    waiting = list(sources)
    found: dict[str, Outcome] = {}
    while waiting:
        group = waiting[: 1 if separate else _GROUP]
        lines = [json.dumps([str(sources[n]), str(_target(folder, tool, n))]) for n in group]
        try:
            done = subprocess.run(
                [python, "-c", TOOLS[tool] + LOOP],
                input="\n".join(lines),
                capture_output=True,
                text=True,
                cwd=ROOT,
                env=environment,
                check=False,
                timeout=_PATIENCE * (1 if separate else 10),
            )
            output, end = done.stdout, f"ended with {done.returncode}: {done.stderr[-200:]}"
        except subprocess.TimeoutExpired as error:
            output, end = (error.stdout or b"").decode(), "timed out"
        rows = [json.loads(line[3:]) for line in output.splitlines() if line.startswith("ROW")]
        for name, row in zip(group, rows, strict=False):
            found[name] = Outcome(cpu=row["cpu"], peak=row["peak"], error=row["error"])
        if len(rows) < len(group):
            found[group[len(rows)]] = Outcome(error=end)
        waiting = waiting[min(len(rows) + 1, len(group)) :]
    return found


def _judge_all(
    sources: dict[str, Path], results: dict[str, dict[str, Outcome]], folder: Path
) -> dict[str, dict[str, Outcome]]:
    from torture.judge import count_nodes, subject

    from converter.errors import ModelError

    original: dict[str, Outcome] = {}
    for name, path in sources.items():
        original[name] = Outcome(nodes=count_nodes(path), nbytes=_size(path))
        for tool, found in results.items():
            target = _target(folder, tool, name)
            if found[name].error or not target.is_file():
                found[name].error = found[name].error or "no file"
                continue
            found[name].nodes, found[name].nbytes = count_nodes(target), _size(target)
        with contextlib.suppress(ModelError), subject(path, _feeds(name, path)) as given:
            for tool, found in results.items():
                if not found[name].error:
                    target = _target(folder, tool, name)
                    found[name].broken = tuple(_breaks(path, given, target))
    return {"original": original, **results}


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def _feeds(name: str, path: Path) -> list[dict[str, Any]]:
    from exact import feed_for
    from torture.test_torture import CASES

    if name in CASES:
        case = CASES[name]
        return case.inputs(case.build()) if case.runs else []
    try:
        import converter

        model = converter.load(path)
        return [feed_for(model, seed, free) for seed, free in ((0, 2), (1, 1))]
    except Exception:  # noqa: BLE001 - then only structure is compared
        return []


def _breaks(source: Path, given: Any, target: Path) -> Iterator[str]:
    from torture.judge import compare_file, is_valid

    if given.valid and not is_valid(target):
        yield "invalid"
    if not all(_keeps(*pair) for pair in zip(_ports(source), _ports(target), strict=True)):
        yield "signature"
    if given.expected is None:
        return
    complaints = compare_file(given, target, 1e-4)
    if complaints:
        yield "cannot load" if "cannot load" in complaints[0] else "outputs"


def _keeps(before: list[Any], after: list[Any]) -> bool:
    """Tell whether ports keep names, order, types and what was declared of their dimensions."""
    if len(before) != len(after):
        return False
    for (*form, dims), (*other, now) in zip(before, after, strict=True):
        if form != other or (dims is not None and len(dims) != len(now or ())):
            return False
        if any(old and old != new for old, new in zip(dims or (), now or (), strict=False)):
            return False
    return True


def _ports(path: Path) -> tuple[list[Any], list[Any]]:
    import onnx

    proto = onnx.load(path, load_external_data=False)
    graph = proto.graph
    # before version 4 of the format constants had to be listed as inputs
    hidden = {tensor.name for tensor in graph.initializer} if proto.ir_version < 4 else set()
    inputs = [_form(value) for value in graph.input if value.name not in hidden]
    return inputs, [_form(value) for value in graph.output]


def _form(value: Any) -> tuple[str, int, Any]:
    kind = value.type.tensor_type
    dims = [d.dim_param or d.dim_value for d in kind.shape.dim]
    return value.name, kind.elem_type, dims if kind.HasField("shape") and dims else None


def _print(name: str, results: dict[str, dict[str, Outcome]], *, rows: bool) -> None:
    original = results.pop("original")
    print(f"\n{len(original)} models: {name}\n")
    print("| tool | nodes | bytes | bigger files | CPU s | peak MB | failed | broken |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    shared = [n for n in original if not any(found[n].error for found in results.values())]
    nodes, nbytes = (_sum(original, shared, field) for field in ("nodes", "nbytes"))
    print(f"| original | {nodes} | {nbytes} |" + " |" * 5)
    for tool, found in results.items():
        broken = Counter(kind for outcome in found.values() for kind in outcome.broken)
        bigger = sum(found[n].nbytes > original[n].nbytes for n in found if not found[n].error)
        nodes, nbytes = (_sum(found, shared, field) for field in ("nodes", "nbytes"))
        peak = max(outcome.peak for outcome in found.values())
        print(
            f"| {tool} | {nodes} | {nbytes} | {bigger} "
            f"| {sum(o.cpu for o in found.values()):.1f} | {peak:.0f} "
            f"| {sum(bool(o.error) for o in found.values())} "
            f"| {', '.join(f'{count} {kind}' for kind, count in broken.items()) or '0'} |"
        )
    print(f"\nNodes and bytes: the {len(shared)} models that no tool failed on.")
    _print_details(original, results, rows=rows)


def _sum(found: dict[str, Outcome], names: list[str], field: str) -> int:
    return sum(getattr(found[name], field) for name in names)


def _print_details(
    original: dict[str, Outcome], results: dict[str, dict[str, Outcome]], *, rows: bool
) -> None:
    worse = defaultdict(list)
    for name in original:
        ours = results["onnxpress"][name]
        for tool, found in results.items():
            outcome = found[name]
            problem = outcome.error or ", ".join(outcome.broken)
            if problem:
                print(f"- {tool} on {name}: {problem[:120]}")
            elif tool != "onnxpress" and not ours.error and outcome.nodes < ours.nodes:
                worse[tool].append(f"{name} {outcome.nodes} < {ours.nodes}")
    for tool, names in worse.items():
        print(f"- fewer nodes by {tool}, with correct results: {'; '.join(names)}")
    if not rows:
        return
    print("\n| model | original | " + " | ".join(results) + " |\n|" + " --- |" * (len(results) + 2))
    for name, outcome in original.items():
        cells = [f"{outcome.nodes} / {outcome.nbytes}"]
        cells += [
            "failed" if o.error else f"{o.nodes} / {o.nbytes}{' BROKEN' * bool(o.broken)}"
            for o in (found[name] for found in results.values())
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(main())
