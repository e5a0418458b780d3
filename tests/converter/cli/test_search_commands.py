"""``convert sensitivity`` and ``convert debug`` on the command line: tables, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from sample_reports import EVIL
from support import model_from_text

import converter
from converter.cli.entry import main
from converter.cli.render import render

NET = """g (float[N,6] x) => (float[N,3] y) {
    [first] h = Gemm(x, w1, b1)
    [act] r = Relu(h)
    [second] y = Gemm(r, w2)
}"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "80")
    draw = np.random.default_rng(0).standard_normal
    shapes = {"w1": (6, 8), "b1": (8,), "w2": (8, 3)}
    model = model_from_text(NET, **{n: draw(s).astype(np.float32) for n, s in shapes.items()})
    converter.save(model, tmp_path / "a.onnx")
    converter.convert(model, tmp_path / "b.onnx", passes="prune:sparsity=0.6", verify=False)
    np.savez(tmp_path / "x.npz", x=draw((8, 6)).astype(np.float32))
    return tmp_path


def check(text: str) -> None:
    assert max(map(len, text.splitlines())) <= 80
    assert all(c == "\n" or c.isprintable() for c in text)


def test_sensitivity_as_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sensitivity", f"{folder}/a.onnx", "--data", f"{folder}/x.npz"]
    assert main([*words, "--passes", "prune:sparsity=0.6"]) == 0
    text = capsys.readouterr().out
    check(text)
    assert "Layers, the most harmful first" in text
    assert "second (Gemm)" in text
    assert "prune:exclude=" in text


def test_sensitivity_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sensitivity", f"{folder}/a.onnx", "--data", f"{folder}/x.npz", "--json"]
    assert main([*words, "--passes", "prune:sparsity=0.6", "--top", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {layer["name"] for layer in found["layers"]} == {"first", "second"}
    assert found["whole"]["loss"] > 0


def test_debug_as_a_table_and_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["debug", f"{folder}/a.onnx", f"{folder}/b.onnx", "--data", f"{folder}/x.npz"]
    assert main(words) == 0
    text = capsys.readouterr().out
    check(text)
    assert "first to deviate" in text
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["first"] == "r"
    assert found["values"][0]["sqnr_db"] <= found["values"][-1]["sqnr_db"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["sensitivity", "a.onnx"], 5, "samples are needed"),
        (["sensitivity", "none.onnx", "--data", "x.npz"], 3, "does not exist"),
        (["sensitivity", "a.onnx", "--data", "x.npz", "--passes", "nothing"], 2, "nothing"),
        (["sensitivity", "a.onnx", "--data", "x.npz", "--top", "0"], 2, "--top"),
        (["debug", "a.onnx"], 2, "B"),
        (["debug", "a.onnx", "other.onnx"], 6, "different inputs"),
        (["debug", "a.onnx", "b.onnx", "--data", "none.npz"], 5, "none.npz"),
    ],
)
def test_bad_input_is_said(
    folder: Path,
    words: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    other = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2] q) => (float[2] z) { z = Relu(q) }'
    )
    onnx.save(other, "other.onnx")
    assert main(words) == code
    assert message in capsys.readouterr().err


def test_names_that_try_to_break_out_are_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    damage = {"loss": 0.1, "measure": "KL", "sqnr_db": 20.0, "agreement": 0.5, "accuracy": None}
    layer = {"name": EVIL, "op_type": EVIL, "parameters": 3, "saved": 0.09}
    layers = [{**layer, "alone": {**damage, "samples": 4}, "all_but": None}]
    layers += [{**layer, "alone": None, "all_but": None, "saved": None}]
    found = {"passes": f"quantize:exclude={EVIL}", "layers": layers, "whole": damage}
    found |= {"accuracy": None, "samples": 4, "data": EVIL, "synthetic": True, "notes": [EVIL]}
    check(render("sensitivity", {**found, "top": 5}))
    gap = {"value": EVIL, "node": EVIL, "op_type": EVIL, "layer": EVIL, "sqnr_db": 3.0}
    gap |= {"local_sqnr_db": 4.0, "cosine": 0.5, "max_abs": 1e-9, "saturated": 1e-6}
    gap |= {"dead": 1, "died": 2, "channels": 3, "equal": False, "broken": ""}
    broken = {**gap, "value": "other", "broken": EVIL}
    found = {"values": [broken, gap], "first": EVIL, "worst_layer": EVIL, "only_first": 1}
    found |= {"only_second": 0, "samples": 1, "data": EVIL, "synthetic": False, "notes": []}
    check(render("debugging", {**found, "top": 5}))
