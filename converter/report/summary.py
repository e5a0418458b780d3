"""What a reader wants to know first, drawn from a report's data for the terminal and for HTML."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.report import words as w

Data = Mapping[str, Any]
HEADLINES = ("size", "latency", "MACs", "accuracy", "agreement")
_MOST_REASONS = 4
_MOST_EXAMPLES = 3
_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?) us")
OUTPUT_HEADS = ("output", "max error", "SQNR", "cosine", "")


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


_FEW_ZEROS = 0.01
"""Shares of zeros below this are nobody's intent, and not worth a line."""


def size_figures(source: Data, target: Data) -> list[Figure]:
    """Compare the files of a conversion."""
    found = [
        _figure("size", source["uncompressed_bytes"] or None, target["uncompressed_bytes"], w.size),
        _figure("nodes", source["nodes"], target["nodes"], w.count),
        _figure("parameters", source["parameters"], target["parameters"], w.count),
    ]
    if any(x["bytes"] != x["uncompressed_bytes"] for x in (source, target)):
        figure = _figure("on disk, compressed", source["bytes"], target["bytes"], w.size)
        found.insert(1, figure)
    shares = [x["zeros"] for x in (source, target)]
    if any(share is not None and share >= _FEW_ZEROS for share in shares):
        found.append(Figure("zero weights", w.percent(shares[0]), w.percent(shares[1]), ""))
    return found


def _figure(
    label: str, before: float | None, after: float | None, show: Callable[[float | None], str]
) -> Figure:
    change = "same" if before == after else w.ratio(after, before)
    return Figure(label, show(before), show(after), change)


def pass_rows(
    steps: Sequence[Data], most: int | None = None
) -> list[tuple[str, str, str, str, str]]:
    """Return per pass: text, time, change of nodes, change of weight bytes, what happened.

    Args:
        steps: Of the report.
        most: Counts to be told of a pass, the largest ones; None means all.
    """
    return [
        (
            step["pass"],
            w.duration(step["seconds"]),
            _delta(step["before"]["nodes"], step["after"]["nodes"], w.count),
            _delta(step["before"]["tensor_bytes"], step["after"]["tensor_bytes"], w.size),
            _what_happened(step, most),
        )
        for step in steps
    ]


def _delta(before: float, after: float, show: Callable[[float], str]) -> str:
    if before == after:
        return "same"
    return f"{'-' if after < before else '+'}{show(abs(after - before))}"


def _what_happened(step: Data, most: int | None) -> str:
    if step["error"]:
        return f"FAILED and rolled back: {step['error']}"
    counts = [(key.replace("_", " "), v) for key, v in step["counts"].items() if v]
    rest = 0
    if most is not None and len(counts) > most + 1:
        rest = len(counts) - most
        counts = sorted(counts, key=lambda item: -item[1])[:most]
    figures = [f"{name} {w.number(v)}" for name, v in counts]
    if rest:
        figures.append(f"and {w.plural(rest, 'other')}")
    parts = [", ".join(figures)] if figures else ["changed" if step["modified"] else "no change"]
    if step["interface_changes"]:
        parts.append(f"interface: {'; '.join(step['interface_changes'])}")
    return "; ".join(parts)


def left_alone(steps: Sequence[Data]) -> list[LeftAlone]:
    """Return what was left alone, grouped by pass and reason, whatever times a reason names."""
    found = []
    for step in steps:
        groups: dict[str, list[Data]] = {}
        for group in step["skipped"]:
            groups.setdefault(_TIME.sub(" us", group["reason"]), []).append(group)
        for alike in groups.values():
            amount = sum(group["count"] for group in alike)
            examples = [str(x) for group in alike for x in group["examples"]][:_MOST_EXAMPLES]
            found.append(
                LeftAlone(
                    amount=amount,
                    pass_name=step["pass"].partition(":")[0],
                    reason=_ranged([group["reason"] for group in alike]),
                    examples=", ".join(examples) + (", ..." if amount > len(examples) else ""),
                )
            )
    return found


def _ranged(reasons: Sequence[str]) -> str:
    """Return reasons that differ in times alone as one, with the smallest and largest of each."""
    columns = list(zip(*(_TIME.findall(reason) for reason in reasons), strict=True))
    spans = [sorted(set(column), key=float) for column in columns]
    shown = iter(f"{x[0]} to {x[-1]} us" if len(x) > 1 else f"{x[0]} us" for x in spans)
    return _TIME.sub(lambda _: next(shown), reasons[0])


def notes(report: Data) -> list[str]:
    """Return every note once: of the conversion, of its passes, of the verification."""
    found = list(report["notes"])
    for step in report["steps"]:
        found += [f"{step['pass'].partition(':')[0]}: {note}" for note in step["notes"]]
    found += (report.get("verdict") or {}).get("notes", [])
    return list(dict.fromkeys(found))


def integer_rows(report: Data) -> list[tuple[str, str]]:
    """Return what of a quantized model runs on integers, in words; nothing for any other model."""
    found = report.get("integers")
    if not found or not found["runtime"]:
        return []
    layers = found["layers"] + found["float_layers"]
    rows = [("layers", f"{w.count(found['layers'])} of {w.count(layers)}")]
    if found["operators"]:
        kinds = [f"{kind} {w.count(n)}" for kind, n in found["operators"].items()]
        rows.append(("operators", ", ".join(kinds)))
    rows.append(("conversions left", w.count(found["conversions"])))
    rows += [("layers in float", words) for words in _float_words(found["left"])]
    if found["saturated"]:
        worst = found["saturated"][0]
        values = w.plural(found["saturated_values"], "value")
        rows.append(
            ("beyond the grid", f"{values}, worst {worst['value']}: {_share(worst['share'])}")
        )
    return rows


def integer_title(report: Data) -> str:
    """Return the title of the table of :func:`integer_rows`."""
    return f"On integers in {report['integers']['runtime']}"


def _float_words(left: Sequence[Data]) -> list[str]:
    """Say per kind of reason how many layers were left in float, with examples."""
    groups: dict[str, list[str]] = {}
    for layer in left:
        groups.setdefault(layer["reason"].partition(":")[0], []).append(layer["name"])
    ranked = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [
        f"{len(names)} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        + (f": {reason}" if reason else "")
        for reason, names in ranked[:_MOST_REASONS]
    ]


def _share(share: float) -> str:
    return "less than 0.01 %" if share < 1e-4 else w.percent(share)


def made_up(data: Data) -> str:
    """Return a warning when no real samples were used, else an empty text.

    Args:
        data: What says whether samples were ``synthetic``: the data of a report, or a verdict.
    """
    return "compared on MADE-UP inputs" if data.get("synthetic") else ""


def verdict_sizes(verdict: Data) -> list[Figure]:
    """Compare the files of a verification."""
    return [
        _figure(label, verdict[key]["original"], verdict[key]["converted"], show)
        for label, key, show in (
            ("size", "size", w.size),
            ("nodes", "nodes", w.count),
            ("parameters", "params", w.count),
        )
        if key in verdict
    ]


def quality_figures(verdict: Data) -> list[Figure]:
    """Compare speed and results of both models, as far as they were measured."""
    found = []
    macs = verdict.get("macs")
    if macs and macs["original"] != macs["converted"]:
        found.append(_figure("MACs", macs["original"], macs["converted"], w.amount))
    latency = verdict.get("latency")
    if latency:
        before, after = latency["models"]
        found.append(
            Figure(
                "latency",
                _milliseconds(before["median_ms"]),
                _milliseconds(after["median_ms"]),
                w.factor(after["ratio"]),
            )
        )
    accuracy = verdict.get("accuracy")
    if accuracy:
        before, after = accuracy["original"], accuracy["converted"]
        change = f"{(after - before) * 100:+.2f} points" if after != before else "same"
        found.append(Figure("accuracy", w.percent(before), w.percent(after), change))
    if verdict.get("agreement") is not None:
        found.append(Figure("agreement", "", w.percent(verdict["agreement"])))
    if verdict.get("worst_output") is not None:
        found.append(Figure("signal to error", "", _sqnr(verdict["sqnr_db"], verdict["equal"])))
        found.append(Figure("max error", "", w.number(verdict["max_error"])))
    return found


def _milliseconds(value: float) -> str:
    return w.milliseconds(value / 1000)


def _sqnr(decibels: float | None, equal: bool) -> str:  # noqa: FBT001 - both are figures
    """Infinite signal-to-noise ratios are None in JSON; only equal outputs have them."""
    if equal:
        return "equal"
    return "-" if decibels is None else f"{decibels:.1f} dB"


_SHOW: dict[str, Callable[[float | None], str]] = {
    "size": w.size,
    "nodes": w.count,
    "params": w.count,
    "latency": w.milliseconds,
    "macs": w.amount,
    "accuracy": w.percent,
    "agreement": w.percent,
    "flips": w.percent,
    "sqnr": lambda decibels: "equal" if decibels is None else f"{decibels:.2f} dB",
}


def budget_rows(verdict: Data) -> list[tuple[bool, str, str, str]]:
    """Return per check: kept, the bound, the value found, and where that comes from."""
    rows = []
    for check in verdict.get("checks", []):
        show = _SHOW.get(check["metric"], w.number)
        values = [show(check[key]) for key in ("original", "converted")]
        relative = check["limit"].endswith("x") or (
            check["limit"].endswith("%")
            and check["metric"] in ("size", "nodes", "params", "latency", "macs")
        )
        detail = check["detail"]
        if relative and check["measured"] is not None:
            found, detail = w.factor(check["measured"], digits=3), " -> ".join(values)
        else:
            found = values[1] if check["limit"] else "broken"
        rows.append((bool(check["passed"]), check["limit"] or check["metric"], found, detail))
    return rows


def output_rows(verdict: Data) -> list[tuple[str, ...]]:
    """Return per output: name, differences, and what else is to say."""
    return [_output_row(output) for output in verdict.get("outputs", [])]


def _output_row(output: Data) -> tuple[str, ...]:
    if output["random"]:
        return output["name"], "-", "-", "-", "random by nature: shape and type only"
    if output["broken"]:
        return output["name"], "-", "-", "-", f"BROKEN: {output['broken']}"
    words = "equal" if output["equal"] else ""
    if output["kind"] == "exact" and not output["equal"]:
        words = f"{w.count(output['unequal'])} of {w.count(output['elements'])} differ"
    return (
        output["name"],
        w.number(output["max_abs"]),
        _sqnr(output["sqnr_db"], output["equal"]),
        "-" if output["cosine"] is None else f"{output['cosine']:.6f}",
        words,
    )
