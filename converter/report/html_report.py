"""The report as one HTML file: no scripts, nothing fetched, light and dark, fit for print."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from converter.report import summary
from converter.report import words as w

Data = Mapping[str, Any]
_GOOD, _WARN, _BAD = "good", "warn", "bad"
_STATUS = {"done": _GOOD, "not verified": _WARN}
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6575; --line: #dde2ea;
  --page: #f6f7f9; --card: #fff; --good: #14703c; --warn: #8a5a00; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa5b5; --line: #303745;
  --page: #14171d; --card: #1c2129; --good: #5cc98a; --warn: #e0b04c; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 .6rem; }
p { margin: .25rem 0; } .soft { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: 1rem 1.2rem; margin-top: 1rem; overflow-x: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem; margin-top: 1rem; }
.tile { flex: 1 1 10rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: .8rem 1.2rem; }
.tile b { display: block; font-size: 1.6rem; line-height: 1.2; }
.badge { display: inline-block; border: 1px solid; border-radius: 1rem; padding: 0 .7rem;
  font-weight: 600; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; color: var(--soft); font-weight: 500; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: break-word; max-width: 24rem; }
td:last-child { overflow-wrap: anywhere; max-width: none; }
td:last-child:not([class]):not(:empty) { min-width: 7rem; }
@media (max-width: 40rem) { td:not(.number) { max-width: 7rem; } }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
ul { margin: 0; padding-left: 1.2rem; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
@media print { body { background: none; } section, .tile { break-inside: avoid; } }
"""


def render(report: Data) -> str:
    """Return the HTML of a report.

    Args:
        report: What :meth:`converter.report.report.Report.to_dict` returns. Every text in it is
            escaped: names come from models that may be hostile.
    """
    title = _title(report)
    body = "".join(
        [
            _head(report, title),
            _tiles(report),
            _notes(report),
            _comparison(report),
            _budgets(report),
            _outputs(report),
            _integers(report),
            _passes(report),
            _explained(report),
            _left_alone(report),
            _origin(report),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_safe(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _safe(value: object) -> str:
    return escape(w.clean(value), quote=True)


def _title(report: Data) -> str:
    source, target = report["source"], report["target"]
    name = source["file"] or "model"
    return f"{name} → {target['file']}" if target and target["file"] else str(name)


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{_safe(title)}</h2>\n{content}</section>\n" if content else ""


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[int] = ()
) -> str:
    """Make a table; cells are escaped; columns in ``numbers`` are aligned to the right."""
    kinds = [' class="number"' if i in numbers else "" for i in range(len(heads))]
    top = "".join(f"<th{k}>{_safe(h)}</th>" for k, h in zip(kinds, heads, strict=True))
    lines = [
        "<tr>"
        + "".join(f"<td{k}>{_cell(c)}</td>" for k, c in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    ]
    if not lines:
        return ""
    head = f"<thead><tr>{top}</tr></thead>" if any(heads) else ""
    return f"<table>{head}<tbody>\n" + "\n".join(lines) + "\n</tbody></table>\n"


class _Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def _cell(value: object) -> str:
    return value if isinstance(value, _Markup) else _safe(value)


def _mark(kind: str, text: object) -> _Markup:
    return _Markup(f'<span class="{kind}">{_safe(text)}</span>')


def _head(report: Data, title: str) -> str:
    status = report["status"]
    kind = _STATUS.get(status, _BAD)
    lines = [f"<h1>{_safe(title)}</h1>\n"]
    warning = summary.made_up(report["data"] or {})
    extra = f' <span class="badge warn">{_safe(warning)}</span>' if warning else ""
    lines.append(f'<p><span class="badge {kind}">{_safe(status)}</span>{extra}</p>\n')
    if report["error"]:
        lines.append(f'<p class="bad">{_safe(report["error"])}</p>\n')
    passes = report["passes"] or "no passes: a checked copy"
    tool = report["versions"].get("onnxpress", "")
    lines.append(
        f'<p class="soft">{_safe(passes)} · seed {_safe(report["seed"])} · '
        f"{_safe(w.duration(report['seconds']))} · onnxpress {_safe(tool)}</p>\n"
    )
    return "".join(lines)


def _figures(report: Data) -> list[summary.Figure]:
    verdict, target = report["verdict"] or {}, report["target"]
    sizes = summary.verdict_sizes(verdict)
    if target:
        sizes = summary.size_figures(report["source"], target)
    return [*sizes, *summary.quality_figures(verdict)]


def _tiles(report: Data) -> str:
    tiles = [
        f'<div class="tile"><span class="soft">{_safe(f.label)}</span><b>{_safe(_big(f))}</b>'
        f'<span class="soft">{_safe(_small(f))}</span></div>\n'
        for f in _figures(report)
        if f.label in summary.HEADLINES
    ]
    return f'<div class="tiles">\n{"".join(tiles)}</div>\n' if tiles else ""


def _big(figure: summary.Figure) -> str:
    return figure.change if figure.change.endswith("x") else figure.after


def _small(figure: summary.Figure) -> str:
    if not figure.before:
        return "same choice as the original"
    return f"{figure.before} → {figure.after}"


def _comparison(report: Data) -> str:
    rows = [(f.label, f.before, f.after, f.change) for f in _figures(report)]
    heads = ("", "before", "after", "change")
    return _section("Before and after", _table(heads, rows, numbers=(1, 2, 3)))


def _budgets(report: Data) -> str:
    rows = [
        (_mark(_GOOD, "kept") if kept else _mark(_BAD, "missed"), bound, found, detail)
        for kept, bound, found, detail in summary.budget_rows(report["verdict"] or {})
    ]
    return _section("Budgets", _table(("", "budget", "found", ""), rows, numbers=(2,)))


def _outputs(report: Data) -> str:
    rows = summary.output_rows(report["verdict"] or {})
    return _section("Outputs", _table(summary.OUTPUT_HEADS, rows, numbers=(1, 2, 3)))


def _integers(report: Data) -> str:
    rows = summary.integer_rows(report)
    return _section(summary.integer_title(report), _table(("", ""), rows)) if rows else ""


def _passes(report: Data) -> str:
    heads = ("pass", "time", "nodes", "weights", "result")
    return _section("Passes", _table(heads, summary.pass_rows(report["steps"]), numbers=(1, 2, 3)))


def _left_alone(report: Data) -> str:
    rows = [
        (f"{x.amount:,}", x.pass_name, x.reason, x.examples)
        for x in summary.left_alone(report["steps"])
    ]
    heads = ("count", "pass", "why", "for example")
    return _section("Left alone", _table(heads, rows, numbers=(0,)))


def _explained(report: Data) -> str:
    rows = [(x["pass"], x["node"], x["rule"], x["what"]) for x in report["explained"]]
    return _section("Asked about", _table(("pass", "node", "rule", "what"), rows))


def _notes(report: Data) -> str:
    items = "".join(f"<li>{_safe(note)}</li>\n" for note in summary.notes(report))
    return _section("Notes", f"<ul>\n{items}</ul>\n" if items else "")


def _origin(report: Data) -> str:
    rows: list[tuple[object, object]] = []
    for label, facts in (("input", report["source"]), ("output", report["target"])):
        if facts:
            opsets = ", ".join(f"{k} {v}" for k, v in facts["opsets"].items())
            digest = f", sha256 {facts['sha256']}" if facts["sha256"] else ""
            rows.append((label, f"IR version {facts['ir_version']}, opset {opsets}{digest}"))
    data = report["data"]
    if data:
        uses = ", ".join(f"{count} for {use}" for use, count in data["samples"].items())
        rows.append(("samples", f"{data['description']}: {uses}" if uses else data["description"]))
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    rows.append(("versions", versions))
    recipe = json.dumps(report["recipe"], indent=2, ensure_ascii=True)
    block = f"<pre>{escape(recipe, quote=True)}</pre>\n"
    return _section("Origin", _table(("", ""), rows)) + _section("Resolved recipe", block)
