"""Random models through random lists of exact passes, compared with the original.

    python benchmarks/differential.py --cases 5000 --seed 0 [--jobs 2] [--out FOLDER]

Each case is a valid model of up to a few dozen nodes with several feeds (batches of 0, 1 and more,
zeros of both signs, large values) and a list of passes. The result has to be valid, loadable, no
bigger in bytes and nodes, and equal up to rounding: a difference counts as rounding only if noise
of a few units in the last place of inputs and constants moves the original's outputs as far. Cases
run in processes of their own, so that a crash costs one case. Failures are made small and written
as .onnx, .npz and .txt; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
CHUNK = 100
_PATIENCE = 600


def examine(seed: int, out: Path | None) -> dict[str, Any]:
    """Run one case; returns what is counted and what is wrong."""
    from properties.random_models.model import build, pass_list
    from torture.judge import count_nodes, exact_passes, judge, subject

    random = Random(seed)
    made = build(random)
    text = pass_list(random, exact_passes())
    with subject(made.proto, made.feeds) as given:
        complaints = judge(given, text)
        result = given.path.with_name("result.onnx")
        runs = [not isinstance(row, Exception) for row in given.expected or ()]
        row = {
            "seed": seed,
            "passes": text,
            "complaints": complaints,
            "runs": sum(runs),
            "loads": given.expected is not None,
            "nodes": given.nodes,
            "after": count_nodes(result) if result.is_file() else given.nodes,
        }
    if complaints and out is not None:
        _write_failure(made, text, complaints, out / f"case_{seed}")
    return row


def _write_failure(made: Any, text: str, complaints: list[str], base: Path) -> None:
    import numpy as np
    import onnx
    from torture.judge import judge, subject
    from torture.minimize import minimize

    def fails(proto: Any, feeds: Any, passes: str = text) -> bool:
        try:
            with subject(proto, feeds) as given:
                return bool(judge(given, passes))
        except Exception:  # noqa: BLE001 - a smaller model may be broken in other ways
            return False

    base.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(made.proto, base.with_suffix(".full.onnx"))
    base.with_suffix(".txt").write_text(f"{text}\n" + "\n".join(complaints) + "\n")
    text = next((p for p in text.split(",") if fails(made.proto, made.feeds, p)), text)
    with tempfile.TemporaryDirectory() as folder:
        proto, feeds = minimize(made.proto, made.feeds, fails, Path(folder))
    onnx.save(proto, base.with_suffix(".onnx"))
    np.savez(base.with_suffix(".npz"), **feeds[0])
    lines = [text, *complaints, "", onnx.printer.to_text(proto)]
    base.with_suffix(".txt").write_text("\n".join(lines) + "\n")


def work(start: int, stop: int, out: Path | None) -> None:
    """Run the cases of one process; one line of JSON each."""
    warnings.simplefilter("ignore")
    for seed in range(start, stop):
        try:
            row = examine(seed, out)
        except Exception as error:  # noqa: BLE001 - one case must not end the others
            row = {"seed": seed, "complaints": [f"{type(error).__name__}: {error}"]}
        print(json.dumps(row), flush=True)


def supervise(start: int, stop: int, out: Path) -> list[dict[str, Any]]:
    """Run cases in processes of their own; a process that dies loses one case."""
    rows: list[dict[str, Any]] = []
    while start < stop:
        command = [sys.executable, __file__, "--work", str(start), str(stop), "--out", str(out)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_PATIENCE, check=False
            )
            output, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as error:
            output, code = (error.stdout or b"").decode(), -1
        found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        rows += found
        start += len(found)
        if start < stop and (code or not found):
            rows.append({"seed": start, "complaints": [f"the process ended with {code}"]})
            start += 1
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for failures (default: a new one)")
    parser.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work, options.out)
        return 0
    out = options.out or Path(tempfile.mkdtemp(prefix="differential-"))
    start, last = time.monotonic(), options.seed + options.cases
    ranges = [(a, min(a + CHUNK, last)) for a in range(options.seed, last, CHUNK)]
    total: Counter[str] = Counter()
    with ThreadPoolExecutor(options.jobs) as pool:
        for rows in pool.map(lambda r: supervise(*r, out), ranges):
            for row in rows:
                total["cases"] += 1
                total["nodes"] += row.get("nodes", 0)
                total["after"] += row.get("after", 0)
                total["runs"] += row.get("runs", 0)
                total["not loaded"] += row.get("loads") is False
                total["crashes"] += "the process ended" in str(row["complaints"])
                total["failures"] += bool(row["complaints"])
                if row["complaints"]:
                    what = str(row["complaints"][0])[:300]
                    print(f"case {row['seed']} ({row.get('passes')}): {what}", flush=True)
    print("| cases | runs compared | nodes before | after | cannot load | differences | crashes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(
        f"| {total['cases']} | {total['runs']} | {total['nodes']} | {total['after']} "
        f"| {total['not loaded']} | {total['failures'] - total['crashes']} | {total['crashes']} |"
    )
    print(f"{time.monotonic() - start:.0f} seconds" + (f"; see {out}" if total["failures"] else ""))
    return int(total["failures"] > 0)


if __name__ == "__main__":
    sys.exit(main())
