"""``--explain NODE``: an answer for every node asked about, from passes with rules and without."""

from __future__ import annotations

import numpy as np
import pytest
from support import model_from_text

import converter
from converter.report.explain import SILENT

TEXT = """g (float[N,2,4,4] x) => (float[N,3,4,4] y, float[N,3,4,4] c) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w)
    i = Identity (c)
    y = BatchNormalization (i, s, b, m, v) }"""


@pytest.fixture
def report() -> dict[str, object]:
    rng = np.random.default_rng(0)
    vectors = {name: np.abs(rng.standard_normal(3)).astype(np.float32) for name in "sbmv"}
    weight = rng.standard_normal((3, 2, 3, 3)).astype(np.float32)
    model = model_from_text(TEXT, w=weight, **vectors)
    asked = ["y", "op:Identity", "c", "yy"]
    made = converter.convert(model, passes="simplify,prune:sparsity=0.5", explain=asked)
    return made.report.to_dict()


def test_a_near_miss_says_why(report: dict[str, list[dict[str, str]]]) -> None:
    rows = [r for r in report["explained"] if r["node"].startswith("y ") and r["rule"]]
    assert {
        "pass": "simplify",
        "node": "y (BatchNormalization)",
        "rule": "batch norms fused",
        "what": "the output of Conv before it is public",
    } in rows


def test_what_nobody_could_change_is_told_only_to_those_who_ask() -> None:
    model = model_from_text("g (float[2] x) => (float[2] y) { y = Identity (x) }")
    made = converter.convert(model, passes="simplify", explain=["y"]).report.to_dict()
    assert any("both public" in row["what"] for row in made["explained"])
    assert made["steps"][0]["skipped"] == []


def test_a_younger_operator_says_what_to_do() -> None:
    body = "h = Div (x, r) e = Erf (h) s = Add (e, one) m = Mul (x, s) y = Mul (m, half)"
    numbers = {"r": np.sqrt(2), "one": 1.0, "half": 0.5}
    model = model_from_text(
        f"g (float[2] x) => (float[2] y) {{ {body} }}",
        opset=17,
        **{name: np.float32(value) for name, value in numbers.items()},
    )
    (step,) = converter.convert(model, passes="simplify").report.to_dict()["steps"]
    assert [row["reason"] for row in step["skipped"]] == [
        "Gelu needs opset 20; the model has 17 (convert_opset:to=20 before it)"
    ]


def test_what_happened_is_told(report: dict[str, list[dict[str, str]]]) -> None:
    rows = [r for r in report["explained"] if "Identity" in r["node"]]
    assert ("identities removed", "applied") in {(r["rule"], r["what"]) for r in rows}


def test_a_pass_that_says_nothing_is_named(report: dict[str, list[dict[str, str]]]) -> None:
    rows = [r for r in report["explained"] if r["pass"] == "prune"]
    assert [r["what"] for r in rows if r["node"].startswith("y ")] == [SILENT]
    assert not any("Identity" in r["node"] for r in rows)  # it was gone by then


def test_an_unknown_node_gets_a_note(report: dict[str, list[str]]) -> None:
    assert any(note.startswith("--explain yy matches no node") for note in report["notes"])
    assert (
        converter.convert(
            model_from_text("g (float[2] x) => (float[2] y) { y = Relu (x) }")
        ).report.explained
        == ()
    )
