"""Results as tables for the terminal: plain enough for a log of 80 columns without colours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from converter.cli import render_coupling as coupled
from converter.cli import render_search as search
from converter.cli import render_storage as stored
from converter.report import summary
from converter.report import words as t

Row = Sequence[object]
Data = Mapping[str, Any]
_MAX_ROWS = 12
_MOST_ANSWERS = 60
_MOST_COUNTS = 6
_MAX_WIDTH = 22
_MOST_LINES = 4
_STATUS_STYLE = {"done": "bold green", "not verified": "bold yellow"}


def render(what: str, data: Any) -> str:
    """Return the text of a result.

    Args:
        what: One of the keys of the table at the end of this module.
        data: The result as its ``to_dict`` gives it.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        _RENDERERS[what](console, data)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _text(value: object, style: str = "") -> Text:
    return value if isinstance(value, Text) else Text(t.clean(value), style=style)


def _title(console: Console, words: str) -> None:
    console.print()
    console.print(_text(words, "bold"))


def _table(
    console: Console, heads: Sequence[str], rows: Iterable[Row], *, right: Sequence[int] = ()
) -> None:
    """Print rows indented by two, without lines; columns in ``right`` are aligned to the right."""
    table = Table(box=None, show_header=any(heads), pad_edge=False, padding=(0, 3, 0, 0))
    for index, head in enumerate(heads):
        table.add_column(
            _text(head, "dim"),
            justify="right" if index in right else "left",
            overflow="fold",
            no_wrap=index in right,
        )
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    console.print(Padding(table, (0, 0, 0, 2)))


# --- conversion ----------------------------------------------------------------------------------


def _conversion(console: Console, report: Data) -> None:
    source, target = report["source"], report["target"]
    name = source["file"] or "model"
    arrow = f" -> {target['file']}" if target and target["file"] else ""
    status = report["status"]
    console.print(
        _text(f"{name}{arrow}", "bold"),
        _text(f"  {status}", _STATUS_STYLE.get(status, "bold red")),
        _warning(report["data"] or {}),
        sep="",
    )
    if report["error"]:
        console.print(_text(report["error"]))
    verdict = report["verdict"] or {}
    sizes = summary.size_figures(source, target) if target else summary.verdict_sizes(verdict)
    _comparison(console, sizes, verdict)
    integers = summary.integer_rows(report)
    if integers:
        _title(console, summary.integer_title(report))
        _table(console, ("", ""), integers)
    if report["steps"]:
        _title(console, "Passes")
        heads = ("pass", "time", "nodes", "weights", "result")
        rows = [
            (_short(row[0]), *row[1:]) for row in summary.pass_rows(report["steps"], _MOST_COUNTS)
        ]
        _table(console, heads, rows, right=(1, 2, 3))
    _explained(console, report["explained"])
    _left_alone(console, report["steps"])
    _notes(console, summary.notes(report))


def _short(words: str) -> Text:
    """Break a pass behind the commas between its parameters, and cut what is still too long."""
    lines: list[str] = []
    for part in re.split(r"(?<=,)|\n", t.clean(words).replace(":", ":\n", 1)):
        if lines and len(lines[-1]) + len(part) <= _MAX_WIDTH:
            lines[-1] += part
        else:
            lines.append(part)
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], "..."]
    lines = [x if len(x) <= _MAX_WIDTH else f"{x[: _MAX_WIDTH - 3]}..." for x in lines]
    return Text("\n".join(lines))


def _warning(data: Data) -> Text:
    words = summary.made_up(data)
    return _text(f"  {words}" if words else "", "bold yellow")


def _comparison(console: Console, sizes: Sequence[summary.Figure], verdict: Data) -> None:
    """Print what both a conversion and a verification show of a verdict."""
    _figures(console, [*sizes, *summary.quality_figures(verdict)])
    _budgets(console, verdict)
    _outputs(console, verdict)


def _figures(console: Console, figures: Sequence[summary.Figure]) -> None:
    if figures:
        _title(console, "Before and after")
        rows = [(f.label, f.before, f.after, f.change) for f in figures]
        _table(console, ("", "before", "after", "change"), rows, right=(1, 2, 3))


def _budgets(console: Console, verdict: Data) -> None:
    rows = [
        (_text("ok", "green") if kept else _text("MISSED", "bold red"), bound, found, detail)
        for kept, bound, found, detail in summary.budget_rows(verdict)
    ]
    if rows:
        _title(console, "Budgets")
        _table(console, ("", "budget", "found", ""), rows, right=(2,))


def _outputs(console: Console, verdict: Data) -> None:
    rows = summary.output_rows(verdict)
    if rows:
        _title(console, "Outputs compared with the original")
        _table(console, summary.OUTPUT_HEADS, rows[:_MAX_ROWS], right=(1, 2, 3))
        _rest(console, len(rows) - _MAX_ROWS, "more output")


def _explained(console: Console, answers: Sequence[Data]) -> None:
    if answers:
        _title(console, "Asked about")
        rows = [(x["pass"], x["node"], x["rule"], x["what"]) for x in answers[:_MOST_ANSWERS]]
        _table(console, ("pass", "node", "rule", "what"), rows)
        _rest(console, len(answers) - _MOST_ANSWERS, "more answer")


def _left_alone(console: Console, steps: Sequence[Data]) -> None:
    found = summary.left_alone(steps)
    if found:
        _title(console, "Left alone")
        rows = [(t.count(x.amount), x.pass_name, x.reason, x.examples) for x in found[:_MAX_ROWS]]
        _table(console, ("count", "pass", "why", "for example"), rows, right=(0,))
        _rest(console, len(found) - _MAX_ROWS, "more reason")


def _rest(console: Console, amount: int, word: str) -> None:
    if amount > 0:
        console.print(_text(f"  and {t.plural(amount, word)}; --report FILE or --json has all"))


def _notes(console: Console, notes: Sequence[str]) -> None:
    if notes:
        _title(console, "Notes")
        _table(console, ("", ""), [("*", note) for note in notes])


# --- verification and latency ---------------------------------------------------------------------


def _verdict(console: Console, verdict: Data) -> None:
    status = _text("  budget missed or outputs broken", "bold red")
    if verdict["passed"]:
        status = _text("  inside all budgets" if verdict["checks"] else "", "bold green")
    console.print(
        _text(f"{t.plural(verdict['samples'], 'sample')} of {verdict['data']}", "bold"),
        status,
        _warning(verdict),
        sep="",
    )
    _comparison(console, summary.verdict_sizes(verdict), verdict)
    _notes(console, verdict["notes"])


def _latency(console: Console, data: Data) -> None:
    words = f"{t.plural(data['samples_per_run'], 'sample')} per run of {data['data']}"
    console.print(_text(f"{words}, {t.plural(data['threads'], 'thread')}"))
    rows = [
        (
            m["model"],
            t.milliseconds(m["median_ms"] / 1000),
            t.milliseconds(m["min_ms"] / 1000),
            t.factor(m["ratio"]),
            t.count(m["runs"]),
        )
        for m in data["models"]
    ]
    _table(console, ("model", "median", "fastest", "ratio", "runs"), rows, right=(1, 2, 3, 4))


# --- which layer hurts ----------------------------------------------------------------------------


def _sensitivity(console: Console, data: Data) -> None:
    console.print(_text(data["passes"], "bold"), _warning(data), sep="")
    console.print(_text(search.headline(data)))
    rows = search.layer_rows(data)
    if rows:
        _title(console, "Layers, the most harmful first")
        shown = rows[: data["top"]]
        _table(console, search.SENSITIVITY_HEADS, shown, right=(1, 2, 3, 4, 5))
        _rest(console, len(rows) - len(shown), "more layer")
    _notes(console, [*data["notes"], *search.advice(data)])


def _debugging(console: Console, data: Data) -> None:
    runs = t.plural(data["samples"], "run")
    console.print(
        _text(f"{t.plural(len(data['values']), 'shared value')}", "bold"),
        _text(f", {runs} of {data['data']}"),
        _warning(data),
        sep="",
    )
    _table(console, ("", ""), search.debug_facts(data))
    for title, heads, rows in search.debug_tables(data):
        _title(console, title)
        _table(console, heads, rows, right=range(1, len(heads)))
    _notes(console, data["notes"])


# --- inspection ----------------------------------------------------------------------------------


def _inspection(console: Console, data: Data) -> None:
    console.print(_text(data["file"] or "model", "bold"))
    opsets = ", ".join(f"{domain} {version}" for domain, version in data["opsets"].items())
    facts: list[Row] = [
        ("size", t.size(data["nbytes"] or None)),
        ("format", f"IR version {data['ir_version']}, opset {opsets}"),
        ("made by", data["producer"] or "unknown"),
        ("graph", data["graph_name"] or "unnamed"),
        ("nodes", t.count(data["nodes"])),
        ("parameters", f"{t.count(data['parameters'])} in {t.size(data['tensor_bytes'])}"),
    ]
    if data["content"] is not None:
        facts.insert(1, ("compressed", f"for transport; {t.size(data['content'])} to a runtime"))
    if data["zeros"] is not None:
        facts.append(("zero weights", t.percent(data["zeros"])))
    optional = (
        ("quantized", t.plural(data["quantized_nodes"], "node"), data["quantized_nodes"]),
        ("sub-graphs", t.count(data["subgraphs"]), data["subgraphs"]),
        ("functions", ", ".join(data["functions"]), data["functions"]),
        ("custom domains", ", ".join(data["custom_domains"]), data["custom_domains"]),
        ("metadata", ", ".join(data["metadata"]), data["metadata"]),
        (
            "external data",
            ", ".join(f"{f['file']} ({t.size(f['bytes'])})" for f in data["external_files"]),
            data["external_files"],
        ),
    )
    facts += [(label, shown) for label, shown, present in optional if present]
    _table(console, ("", ""), facts)
    for title, ports in (("Inputs", data["inputs"]), ("Outputs", data["outputs"])):
        _title(console, title)
        _table(console, ("name", "type", "shape"), [_port(p) for p in ports])
    _inventory(console, data)
    if "coupling" in data:
        _coupling(console, data["coupling"])


def _coupling(console: Console, data: Data) -> None:
    for title, heads, rows, right in coupled.tables(data):
        _title(console, title)
        _table(console, heads, rows, right=right)
    for title, lines in coupled.answers(data).items():
        _title(console, title)
        _table(console, ("",), [(line,) for line in lines])


def _port(port: Data) -> Row:
    dims = "any" if port["dims"] is None else " x ".join(port["dims"]) or "scalar"
    return port["name"], port["kind"], dims + (" (has a default)" if port["has_default"] else "")


def _inventory(console: Console, data: Data) -> None:
    operators = list(data["operators"].items())
    if operators:
        _title(console, "Operators")
        rows: list[Row] = [(op, t.count(n)) for op, n in operators[:_MAX_ROWS]]
        rest = operators[_MAX_ROWS:]
        if rest:
            rows.append((f"{t.plural(len(rest), 'other type')}", t.count(sum(n for _, n in rest))))
        _table(console, ("type", "nodes"), rows, right=(1,))
    if data["by_type"]:
        _title(console, "Weights")
        rows = [
            (kind, t.count(v["parameters"]), t.size(v["bytes"]))
            for kind, v in data["by_type"].items()
        ]
        _table(console, ("type", "elements", "size"), rows, right=(1, 2))
    for title, heads, cells, right in stored.tables(data):
        _title(console, title)
        _table(console, heads, cells, right=right)
    remarks = stored.remarks(data)
    if remarks and not (data["packing"] or {}).get("savings"):
        _title(console, "Packing")
    for line in remarks:
        console.print(Padding(_text(line), (0, 0, 0, 2)))


# --- passes --------------------------------------------------------------------------------------


def _pass_list(console: Console, rows: Sequence[Data]) -> None:
    if not rows:
        console.print("No passes are installed.")
        return
    _table(console, ("pass", "what it does"), [(r["name"], r["summary"]) for r in rows])
    console.print()
    console.print("convert passes NAME describes one; join passes with commas in --passes.")


def _pass_details(console: Console, data: Data) -> None:
    console.print(_text(data["name"], "bold"), _text(f"  {data['summary']}"), sep="")
    if data["details"]:
        console.print()
        console.print(_text_block(data["details"]))
    facts: list[Row] = [("from", f"{data['target']} of {data['owner']}")]
    if data["needs"]:
        facts.append(("needs", ", ".join(data["needs"])))
    facts.append(("outputs", "stay equal" if data["exact"] else "may change within the budgets"))
    if data["changes_interface"]:
        facts.append(("interface", "may change; --keep-opset forbids it"))
    console.print()
    _table(console, ("", ""), facts)
    if data["parameters"]:
        _title(console, "Parameters")
        rows = [
            (p["name"], _kind(p), p["default"] or "required", p["help"]) for p in data["parameters"]
        ]
        _table(console, ("name", "value", "default", "meaning"), rows)


def _kind(parameter: Data) -> str:
    kind: str = parameter["kind"]
    return f"{kind}, {parameter['bounds']}" if parameter["bounds"] else kind


def _text_block(words: str) -> Text:
    """Let paragraphs flow to the width of the terminal; keep the gaps between them."""
    paragraphs = [t.clean(" ".join(p.split())).replace("``", "") for p in words.split("\n\n")]
    return Text("\n\n".join(paragraphs))


_RENDERERS: dict[str, Callable[[Console, Any], None]] = {
    "conversion": _conversion,
    "verdict": _verdict,
    "latency": _latency,
    "sensitivity": _sensitivity,
    "debugging": _debugging,
    "inspection": _inspection,
    "pass_list": _pass_list,
    "pass_details": _pass_details,
}
