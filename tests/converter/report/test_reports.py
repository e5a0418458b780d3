"""The report as data, as JSON and as HTML."""

from __future__ import annotations

import html.parser
import json
import math
from dataclasses import replace

import numpy as np
from sample_reports import EVIL, report

from converter.core.contract import Outcome, Skip
from converter.core.graph import Footprint
from converter.core.run import Step
from converter.report import html_report, json_report, summary
from converter.report.report import group_skips, jsonable


def test_json_is_strict_and_holds_everything() -> None:
    text = json_report.to_json(report())
    assert text.isascii()
    data = json.loads(text, parse_constant=refuse)
    assert data["schema"] == 1
    assert data["source"]["bytes"] == 10_200_000
    assert data["target"]["nodes"] == 90
    assert data["data"] == {
        "description": f"digits{EVIL}.npz",
        "synthetic": True,
        "samples": {"calibration": 32},
    }
    simplify, quantize, fuse = data["steps"]
    assert simplify["counts"] == {"identities_removed": 3, "nothing": 0}
    assert simplify["max_difference"] is None  # it was not a number
    assert quantize["skipped"][0]["count"] == 14
    assert len(quantize["skipped"][0]["examples"]) == 3
    assert fuse["error"].startswith("it broke")
    assert not fuse["modified"]


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_skips_are_grouped_by_reason_most_frequent_first() -> None:
    skips = [Skip("a", "x"), Skip("b", "y"), Skip("c", "y"), Skip("d", "z", minor=True)]
    assert group_skips(skips) == [
        {"reason": "y", "count": 2, "examples": ["b", "c"]},
        {"reason": "x", "count": 1, "examples": ["a"]},
    ]


def test_only_the_terminal_leaves_small_counts_out() -> None:
    counts = {f"rule_{index}": float(index) for index in range(9)}
    after = Footprint(1, 1, 4)
    step = Step("simplify", 0.1, Outcome(True, counts), before=after, after=after)
    data = [replace(report(), steps=(step,)).to_dict()["steps"][0]]
    assert summary.pass_rows(data, 6)[0][-1].startswith("rule 8 8, rule 7 7, rule 6 6, rule 5 5")
    assert summary.pass_rows(data, 6)[0][-1].endswith("rule 3 3, and 2 others")
    assert "others" not in summary.pass_rows(data, 7)[0][-1]
    assert "rule 1 1, " in summary.pass_rows(data)[0][-1]


def test_numbers_of_any_kind_become_json() -> None:
    assert jsonable({1: (np.float32(0.5), np.int64(3), math.inf, {2}, None, True)}) == {
        "1": [0.5, 3, None, [2], None, True]
    }


class Reader(html.parser.HTMLParser):
    """Collects tags and checks that they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_html_is_well_formed_alone_and_escaped() -> None:
    text = html_report.render(report().to_dict())
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert "script" not in reader.tags
    assert not [a for a in reader.attributes if a[0] in ("src", "href") or a[0].startswith("on")]
    assert "url(" not in text
    assert "@import" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "prefers-color-scheme: dark" in text
    for words in ("10.2 MB", "identities removed 3", "its input is no constant", "MADE-UP"):
        assert words in text


def test_html_of_a_failure() -> None:
    import dataclasses

    failed = dataclasses.replace(report(), target=None, steps=(), status="failed", error="<b>no")
    text = html_report.render(failed.to_dict())
    assert "&lt;b&gt;no" in text
    assert 'class="badge bad"' in text


def test_reasons_that_differ_in_times_alone_are_one() -> None:
    skipped = [
        {"reason": "slow: 9.5 us, 3 us in float", "count": 4, "examples": ["a", "b"]},
        {"reason": "slow: 10.0 us, 3 us in float", "count": 1, "examples": ["c"]},
        {"reason": "needs opset 17", "count": 1, "examples": ["d"]},
    ]
    found = summary.left_alone([{"pass": "quantize:method=mse", "skipped": skipped}])
    assert [(x.amount, x.reason, x.examples) for x in found] == [
        (5, "slow: 9.5 to 10.0 us, 3 us in float", "a, b, c, ..."),
        (1, "needs opset 17", "d"),
    ]
