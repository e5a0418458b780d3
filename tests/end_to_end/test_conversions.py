"""Whole conversions: the written file, the report, the words on the terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import support
from program import CALIBRATION, FIXTURES, MODEL, ROOT, TEST, convert, refused

from converter.errors import VerificationError


def left_behind(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_main_job(tmp_path: Path) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"
    done = convert(
        MODEL, out, "--passes", "simplify,prune:sparsity=0.3,quantize", "--data", CALIBRATION,
        "--samples", 64, "--budget", "size<=0.35x", "--budget", "agreement>=0.97",
        "--report", report,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for word in ("size", "latency", "agreement", "size<=0.35x", "quantize", "Before and after"):
        assert word in done.stdout, done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    onnx.checker.check_model(str(out))
    with np.load(TEST) as test:
        scores = support.run(out, {"image": test["image"]})["scores"]
        assert (scores.argmax(1) == test["labels"]).mean() >= 0.95
    data = json.loads(report.read_text())
    assert data["status"] == "done"
    assert data["verdict"]["passed"]
    assert [s["pass"].split(":")[0] for s in data["steps"]] == ["simplify", "prune", "quantize"]
    assert data["target"]["bytes"] < 0.35 * data["source"]["bytes"]
    assert left_behind(tmp_path) == ["out.onnx", "report.json"]


def test_recipe_json_and_html(tmp_path: Path) -> None:
    out, page = tmp_path / "out.onnx", tmp_path / "report.html"
    recipe = FIXTURES / "recipes" / "demo.toml"
    done = convert(MODEL, out, "--recipe", recipe, "--json", "--report", page, "--samples", 32)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["data"]["samples"]["verification"] == 32  # the command line wins
    assert data["recipe"]["pass"][1] == {"name": "prune", "sparsity": 0.3}
    assert page.read_text().startswith("<!doctype html>")


def test_a_copy_without_data_says_that_samples_are_made_up(tmp_path: Path) -> None:
    done = convert(MODEL, tmp_path / "copy.onnx", "--no-provenance")
    assert done.returncode == 0, done.stderr
    assert "MADE-UP" in done.stdout
    quiet = convert(MODEL, tmp_path / "copy.onnx", "--quiet", "--no-verify")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_same_recipe_same_bytes(tmp_path: Path) -> None:
    options = ("--passes", "prune:sparsity=0.5", "--no-verify", "--quiet")
    for name in ("a.onnx", "b.onnx"):
        assert convert(MODEL, tmp_path / name, *options).returncode == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_missed_budget_leaves_nothing_and_explains(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    options = ("--passes", "prune:sparsity=0.98", "--data", CALIBRATION, "--samples", 32)
    done = convert(MODEL, out, *options, "--budget", "sqnr>=60")
    refused(done, VerificationError.exit_code, "sqnr", "prune")
    assert "MISSED" in done.stdout
    assert left_behind(tmp_path) == []
    done = convert(MODEL, out, *options, "--budget", "sqnr>=60", "--keep", "--json")
    refused(done, VerificationError.exit_code)
    assert json.loads(done.stdout)["status"] == "budget missed"
    assert out.is_file()


def test_verify_compares_with_labels(tmp_path: Path) -> None:
    pruned = tmp_path / "pruned.onnx"
    assert convert(MODEL, pruned, "--passes", "prune:sparsity=0.9", "--no-verify").returncode == 0
    done = convert("verify", MODEL, pruned, "--data", TEST, "--samples", 64, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"]
    done = convert("verify", MODEL, pruned, "--data", TEST, "--samples", 64)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    missed = convert("verify", MODEL, pruned, "--data", TEST, "--budget", "sqnr>=90")
    assert missed.returncode == VerificationError.exit_code
    assert "MISSED" in missed.stdout


def test_bench_and_inspect(tmp_path: Path) -> None:
    done = convert("bench", MODEL, MODEL, "--seconds", 0.5, "--json")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)
    done = convert("bench", MODEL, "--seconds", 0.5)
    assert done.returncode == 0, done.stderr
    assert "ms" in done.stdout
    done = convert("inspect", MODEL, "--json")
    assert json.loads(done.stdout)["nodes"] > 10
    assert "Operators" in convert("inspect", MODEL).stdout


def test_inspect_says_what_can_be_removed() -> None:
    done = convert("inspect", MODEL, "--coupling", "--explain", "op:Conv", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["coupling"]
    assert found["components"]
    assert all(0 < row["macs"] < 1 for row in found["components"])
    assert found["frozen"][-1]["reason"]
    assert found["answers"]
    shown = convert("inspect", MODEL, "--coupling", "--explain", "op:Conv").stdout
    assert "What can be removed" in shown
    assert "because" in shown
    assert found["answers"][0]["what"].split(":")[0] in shown


def test_in_place_only_when_asked(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(MODEL.read_bytes())
    refused(convert(model, model, "--no-verify"), 2, "--in-place")
    assert model.read_bytes() == MODEL.read_bytes()
    done = convert(model, model, "--no-verify", "--in-place", "--passes", "prune:sparsity=0.5")
    assert done.returncode == 0, done.stderr
    assert model.read_bytes() != MODEL.read_bytes()


def test_a_model_named_like_a_command(tmp_path: Path) -> None:
    (tmp_path / "inspect").write_bytes(MODEL.read_bytes())
    done = convert("inspect", "out.onnx", "--no-verify", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.onnx").is_file()
    (tmp_path / "out.onnx").unlink()
    done = convert("--no-verify", "--", "inspect", "out.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["missing.onnx", "out.onnx"], 3, "missing.onnx"),
        (["folder", "out.onnx"], 3, "folder"),
        (["text.onnx", "out.onnx"], 3, "text.onnx"),
        (["empty.onnx", "out.onnx"], 3, "empty.onnx"),
        ([MODEL, "no/such/folder/out.onnx"], 2, "folder"),
        ([MODEL, "folder"], 2, "folder"),
        ([MODEL, "out.onnx", "--passes", "prun"], 2, "prune"),
        ([MODEL, "out.onnx", "--passes", "prune:sparsity=2"], 2, "0 <= x < 1"),
        ([MODEL, "out.onnx", "--passes", "prune:sparsty=0.5"], 2, "sparsity"),
        ([MODEL, "out.onnx", "--passes", "prune:0.5"], 2, "prune:sparsity=0.5"),
        ([MODEL, "out.onnx", "--passes", "prune,"], 2, "column"),
        ([MODEL, "out.onnx", "--recipe", "missing.toml"], 2, "missing.toml"),
        ([MODEL, "out.onnx", "--recipe", "text.onnx"], 2, "TOML"),
        ([MODEL, "out.onnx", "--budget", "szie<=0.3x"], 2, "size"),
        ([MODEL, "out.onnx", "--budget", "size"], 2, "size"),
        ([MODEL, "out.onnx", "--budget", "accuracy>=0.9"], 5, "label"),
        ([MODEL, "out.onnx", "--report", "report.pdf"], 2, "json"),
        ([MODEL, "out.onnx", "--report", "no/folder/r.json"], 2, "folder"),
        ([MODEL, "out.onnx", "--passes", "quantize"], 5, "--data"),
        ([MODEL, "out.onnx", "--data", "missing.npz"], 5, "missing.npz"),
        ([MODEL, "out.onnx", "--data", "text.npz"], 5, "text.npz"),
        ([MODEL, "out.onnx", "--data", "empty_array.npz"], 5, "no samples"),
        ([MODEL, "out.onnx", "--data", "wrong_name.npz"], 5, "picture"),
        ([MODEL, "out.onnx", "--data", "wrong_shape.npz"], 5, "image"),
        ([MODEL, "out.onnx", "--data", "wrong_type.npz"], 5, "image"),
        ([MODEL, "out.onnx", "--data", "nan.npz"], 5, "image"),
        ([MODEL, "out.onnx", "--data", "pickle.npz"], 5, "pickle"),
        (["verify", MODEL, "missing.onnx"], 3, "missing.onnx"),
        (["bench", "missing.onnx"], 3, "missing.onnx"),
        (["inspect", "text.onnx"], 3, "text.onnx"),
        (["inspect"], 2, "MODEL"),
    ],
    ids=lambda value: " ".join(map(str, value[1:])) if isinstance(value, list) else None,
)
def test_bad_input(tmp_path: Path, arguments: list[object], code: int, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.onnx").write_text("this is = no model")
    (tmp_path / "text.npz").write_text("this is no archive")
    (tmp_path / "empty.onnx").write_bytes(b"")
    arrays = {
        "empty_array": {"image": np.zeros((0, 1, 8, 8), np.float32)},
        "wrong_name": {"picture": np.zeros((4, 1, 8, 8), np.float32)},
        "wrong_shape": {"image": np.zeros((4, 3, 8, 8), np.float32)},
        "wrong_type": {"image": np.full((4, 1, 8, 8), "x")},
        "nan": {"image": np.full((4, 1, 8, 8), np.nan, np.float32)},
        "pickle": {"image": np.array([None], dtype=object)},
    }
    for name, content in arrays.items():
        np.savez(tmp_path / f"{name}.npz", **content)
    before = left_behind(tmp_path)
    refused(convert(*arguments, cwd=tmp_path), code, words)
    assert left_behind(tmp_path) == before


SLOW = """
import pathlib, time
import numpy as np
def samples():
    yield {"image": np.zeros((1, 1, 8, 8), np.float32)}
    pathlib.Path("started").touch()
    time.sleep(60)
"""


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "slow_data.py").write_text(SLOW)
    command = [sys.executable, "-m", "converter", MODEL, "out.onnx", "--data", "slow_data:samples"]
    path = os.pathsep.join((str(ROOT), str(tmp_path)))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=support.obey_interrupts,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not (tmp_path / "started").exists():
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 130
    assert errors == "python -m converter: interrupted\n"
    assert left_behind(tmp_path) == ["slow_data.py", "started"]


def test_a_time_limit_stops_with_its_own_words(tmp_path: Path) -> None:
    done = convert(MODEL, "out.onnx", "--time-limit", 0.2, cwd=tmp_path)
    refused(done, 3, "time limit")
    assert left_behind(tmp_path) == []


FORMS = {
    "shards.onnx": ["--shard-size", "100KB"],
    "container.onnx": ["--weights-format", "safetensors"],
    "runtime.ort": [],
    "whole.json": [],
    "graph.onnxtxt": ["--strip-weights"],
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(tmp_path: Path, name: str) -> None:
    done = convert(MODEL, tmp_path / name, *FORMS[name], "--no-verify", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    target = report["target"]
    names = [target["file"], *target["external_files"]]
    assert sorted(names) == left_behind(tmp_path)
    assert target["bytes"] == sum((tmp_path / n).stat().st_size for n in names)
    beside = {"shards.onnx": ".data", "container.onnx": ".safetensors"}.get(name)
    assert all(n.endswith(str(beside)) for n in target["external_files"])
    assert bool(target["external_files"]) == bool(beside)
    notes = " ".join(report["notes"])
    assert ("nothing was verified after stripping" in notes) == (name == "graph.onnxtxt")
    assert ("bound to onnxruntime" in notes) == (name == "runtime.ort")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("out.tflite", [], "not written"),
        ("out.json", ["--weights-format", "safetensors"], "one file"),
        ("out.onnx", ["--shard-size", "lots"], "2GB"),
        ("out.ort", ["--strip-weights"], "without its weights"),
        ("out.onnx", ["--shard-size", "1MB", "--external-data", "no"], "switched off"),
    ],
)
def test_forms_that_make_no_sense(
    tmp_path: Path, name: str, options: list[str], words: str
) -> None:
    refused(convert(MODEL, tmp_path / name, *options), 2, words)
    assert left_behind(tmp_path) == []
