"""Tables on the terminal: readable at 80 columns, harmless whatever a model is called."""

from __future__ import annotations

import pytest
from contract.models import MODELS
from sample_reports import EVIL, report

from converter.cli import catalogue
from converter.cli.render import render
from converter.report import words
from converter.report.inspection import inspect_model


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def check(text: str) -> None:
    assert max(map(len, text.splitlines())) <= 80
    assert all(line == line.rstrip() for line in text.splitlines())
    assert all(c == "\n" or c.isprintable() for c in text)


def test_conversion() -> None:
    text = render("conversion", report().to_dict())
    check(text)
    for expected in ("size", "0.26x", "identities removed 3", "FAILED", "Left alone", "MADE-UP"):
        assert expected in text


def test_long_passes_break_between_their_parameters() -> None:
    data = report().to_dict()
    named = ["quantize:activations=none,target=qnn,exclude=/head/*", f"prune:{'x' * 60}"]
    for step, name in zip(data["steps"], named, strict=False):
        step["pass"] = name
    text = render("conversion", data)
    check(text)
    for line in ("  quantize: ", "  activations=none, ", "  target=qnn, ", "  exclude=/head/*"):
        assert line in text
    assert f"  {'x' * 19}..." in text


@pytest.mark.parametrize("name", sorted(MODELS))
def test_inspection(name: str) -> None:
    model = MODELS[name]()
    model.graph.name = EVIL
    model.producer_name = EVIL
    model.metadata_props[EVIL] = "x"
    text = render("inspection", inspect_model(model).to_dict())
    check(text)
    assert "[red]" in text  # names are text, not markup


def test_coupling_of_hostile_names() -> None:
    parts = {
        "macs": 10,
        "parameters": 5,
        "components": [
            {"name": EVIL, "unit": "hidden", "atoms": 4, "blocks": 2, "macs": 0.5, "parameters": 1}
        ],
        "frozen": [{"subject": EVIL, "size": 3, "reason": EVIL}] * 30,
        "answers": [{"subject": EVIL, "rule": "coupling", "what": EVIL}],
    }
    data = {**inspect_model(MODELS[min(MODELS)]()).to_dict(), "coupling": parts}
    text = render("inspection", data)
    check(text)
    assert "4 units in 2 blocks" in text
    assert "10 more" in text
    data["coupling"] = {**parts, "components": [], "frozen": [], "answers": []}
    assert "Nothing can be removed" in render("inspection", data)


def test_passes() -> None:
    rows = catalogue.list_passes()
    check(render("pass_list", rows))
    for row in rows:
        text = render("pass_details", catalogue.describe(row["name"]))
        check(text)
        assert row["summary"] in text.replace("\n", " ")
    assert "No passes" in render("pass_list", [])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_940, "99.9 kB"),
        (99_960, "100 kB"),
        (999_600, "1.0 MB"),
        (2_700_000_000, "2.7 GB"),
        (None, "-"),
        (10**18, "1000000 TB"),
    ],
)
def test_sizes(given: int | None, expected: str) -> None:
    assert words.size(given) == expected


def test_figures() -> None:
    assert words.count(12345) == "12,345"
    assert words.count(0.25) == "0.25"
    assert words.ratio(1, 4) == "0.25x"
    assert words.milliseconds(0.00321) == "3.21 ms"
    assert words.milliseconds(0.9996) == words.milliseconds(1) == "1,000 ms"
    assert words.milliseconds(1.7349) == "1,730 ms"
    assert words.ratio(1, 0) == ""
    assert words.duration(185) == "3 min 05 s"
    assert words.percent(0.9725) == "97.25 %"
    assert words.plural(1, "node") == "1 node"
    assert words.clean("a\x1b[31m\u202e\n\udc80é") == "a\\x1b[31m\\u202e\\n\\udc80é"
