"""Hostile and odd model files: what we do with them, and what others do.

    python benchmarks/hostile.py [--group NAME]

Every file is tried by its full path and by its bare name, each in a child process with 2 GiB beyond
what it starts with, 10 seconds, and a secret beside the model's folder that must not come out.
"ours" loads, reads every tensor and saves; "onnx" loads and runs the full checker; "onnx_ir" loads
and reads every tensor and saves; "onnxruntime" makes a session. The figures are attempts as
expected of all, then crashes (c), hangs (h), memory limit (m) and leaks (l).
"""

# ruff: noqa: E402 - the cases lie beside the tests, which are no package
from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# in place of this folder, where this very file would hide the package of the cases
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import onnx
import onnx_ir as ir
import onnxruntime as ort
from hostile import attempt as trial
from hostile.builders import Case
from hostile.corpus import all_cases

from converter.core.context import Limits
from converter.core.graph import tensors
from converter.core.tensors import chunks
from converter.io import export_onnx, formats, import_onnx

IMPORTED = (export_onnx, import_onnx)
WRITE_UP_TO = 1 << 28


def ours(path: Path, target: Path) -> None:
    model = formats.load(path)
    if sum(tensor.nbytes for tensor in tensors(model)) < WRITE_UP_TO:
        for tensor in tensors(model):
            for _ in chunks(tensor):
                pass
        formats.save(model, target, source=path)


def checker(path: Path, target: Path) -> None:
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(target))


def plain_ir(path: Path, target: Path) -> None:
    model = ir.load(str(path))
    for tensor in tensors(model):
        tensor.numpy()
    ir.save(model, str(target))


def session(path: Path, target: Path) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


TOOLS = {"ours": ours, "onnx": checker, "onnx_ir": plain_ir, "onnxruntime": session}
OWN_ERROR = {"ours"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--group", default="", help="only this group of cases")
    group = parser.parse_args().group
    trial.LIMITS = Limits(seconds=10, memory_bytes=2 << 30)
    table: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    cases = [case for case in all_cases() if group in {"", case.group}]
    print(line("group", *TOOLS), flush=True)
    for name, members in groupby(cases, key=lambda case: case.group):
        measure(members, table[name])
        print(line(name, *(cell(table[name][tool]) for tool in TOOLS)), flush=True)
    total = {tool: sum((row[tool] for row in table.values()), Counter()) for tool in TOOLS}
    print(line("all", *(cell(total[tool]) for tool in TOOLS)))


def measure(cases: Iterable[Case], row: dict[str, Counter[str]]) -> None:
    for case in cases:
        for name, use in TOOLS.items():
            with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
                trial.prepare(case, Path(folder))
                for bare in (False, True):
                    result = trial.attempt(Path(folder), use, bare=bare)
                    count(row[name], case.expect, result, own=name in OWN_ERROR)


def count(row: Counter[str], expect: str, result: trial.Result, *, own: bool) -> None:
    verdict = result.verdict
    if verdict == "foreign" and not own:
        verdict = "reject"  # an exception of any kind is all that others promise
    if verdict == "limit":
        verdict = "hang" if "too long" in result.text else "memory"
    row["all"] += 1
    row[verdict] += 1
    row["leak"] += result.leaked
    wanted = {"accept", "reject"} if expect == "either" else {expect}
    row["expected"] += verdict in wanted and not result.leaked


def line(*parts: str) -> str:
    return " | ".join(f"{part:24}" for part in parts).rstrip()


def cell(row: Counter[str]) -> str:
    marks = {"crash": "c", "hang": "h", "memory": "m", "leak": "l"}
    bad = " ".join(f"{row[name]}{mark}" for name, mark in marks.items() if row[name])
    return f"{row['expected']}/{row['all']}" + (f" ({bad})" if bad else "")


if __name__ == "__main__":
    main()
