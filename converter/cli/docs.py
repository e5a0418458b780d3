"""Writes pages that follow from the code.

python -m converter.cli.docs > docs/passes.md
python -m converter.cli.docs rules > docs/rules.md
python -m converter.cli.docs axes > docs/operators.md
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from converter.core import registry
from converter.core.declaration import Declaration, Parameter

_MOST_TYPES = 12
_MOST_FORMS = 4
_LONGEST_FORM = 120
_HEAD = """\
# Passes

Made by `python -m converter.cli.docs > docs/passes.md` from the passes' own declarations; a test
checks that it is current. `convert passes NAME` shows the same in the terminal.

"""


def passes_page() -> str:
    """Return the Markdown page about the passes of this distribution."""
    found = [
        registry.describe_entry(entry)
        for entry in registry.entries().values()
        if entry.owner == registry.OWNER
    ]
    rows = [f"| [{d.name}](#{d.name}) | {_cell(d.summary)} | {_promise(d)} |" for d in found]
    table = ["| pass | what it does | outputs |", "| --- | --- | --- |", *rows, ""]
    return _HEAD + "\n".join([*table, *(_section(d) for d in found)]).rstrip("\n") + "\n"


_RULES_HEAD = """\
# Rules

Made by `python -m converter.cli.docs rules > docs/rules.md` from the rules themselves; a test
checks that it is current. `simplify` applies all that are not off, until none fires; its report
counts each by this name. How patterns are read: `passes/rewriting/pattern.py`; long ones are only
counted here.

"""


def rules_page() -> str:
    """Return the Markdown page about the rules that rewriting passes are made of."""
    sections = []
    for entry in registry.entries().values():
        if entry.owner != registry.OWNER:
            continue
        module = sys.modules[registry.get(entry.name).__module__]
        rules, extra = getattr(module, "RULES", ()), getattr(module, "EXTRA", ())
        if rules:
            groups: dict[tuple[str, str, int], list[Any]] = {}
            for rule in rules:
                groups.setdefault((rule.name, rule.tolerance, rule.since), []).append(rule)
            rows = [_rule(group, off=group[0].name in extra) for group in groups.values()]
            head = "| rule | operators | results differ by | looks for |\n| --- | --- | --- | --- |"
            sections.append(f"## {entry.name}\n\n" + "\n".join([head, *rows]) + "\n")
    return _RULES_HEAD + "\n".join(sections)


_AXES_HEAD = """\
# What can be removed behind which operator

Made by `python -m converter.cli.docs axes > docs/operators.md` from the table of rows in
`converter/ops/axes`; a test checks that it is current. `convert inspect MODEL --coupling` shows
what the rows come to for a whole model. Operators that are not listed, and those with bodies (If,
Loop, Scan), keep everything that they touch.

| operators | what happens to their axes |
| --- | --- |
"""


def axes_page() -> str:
    """Return the Markdown page about channels and operators."""
    from converter.ops.axes.table import AXES

    found: dict[str, list[str]] = {}
    for entry in AXES:
        plain = hasattr(entry.row, "__name__")
        text = ((entry.row if plain else type(entry.row)).__doc__ or "").split("\n")[0]
        first, _, rest = text.partition(": ")
        if rest and entry.op_type in first.split():
            text = rest[0].upper() + rest[1:]
        name = f"{entry.domain}.{entry.op_type}" if entry.domain else entry.op_type
        names = found.setdefault(text, [])
        if name not in names:
            names.append(name)
    rows = sorted((names, text) for text, names in found.items())
    return _AXES_HEAD + "".join(f"| {', '.join(n)} | {_cell(text)} |\n" for n, text in rows)


def _rule(group: Sequence[Any], *, off: bool) -> str:
    """Return the row of rules that count under one name, and may be off unless asked for."""
    rule = group[0]
    looks = _forms([text for each in group for text in each.patterns])
    types = list(dict.fromkeys(op_type for each in group for op_type in each.op_types))
    more = f" and {len(types) - _MOST_TYPES} more" if len(types) > _MOST_TYPES else ""
    needs = f" (opset {rule.since})" if rule.since > 1 else ""
    operators = ", ".join(types[:_MOST_TYPES]) + more + needs
    name = rule.name.replace("_", " ")
    if off:
        name += f" (only with `fuse:extra={rule.name}`)"
    cells = (name, operators, _cell(rule.tolerance) or "nothing", looks)
    return f"| {' | '.join(cells)} |"


def _forms(patterns: Sequence[str]) -> str:
    """Return the patterns that a person can read, and the number of those left out."""
    short = sorted((text for text in patterns if len(text) <= _LONGEST_FORM), key=len)[:_MOST_FORMS]
    shown = [f"`{_cell(text)}`" for text in short]
    rest = len(patterns) - len(short)
    if rest:
        words = f"and {rest} more" if short else f"{rest} long"
        shown.append(f"{words} {'form' if rest == 1 else 'forms'}")
    return "<br>".join(shown)


def _promise(found: Declaration) -> str:
    return "stay equal" if found.exact else "change, within the budgets"


def _section(found: Declaration) -> str:
    lines = [f"## {found.name}\n", found.details or found.summary, ""]
    if found.needs:
        lines.append(f"Needs: {', '.join(found.needs)}.\n")
    if found.changes_interface:
        lines.append("May change the model's interface or versions; `--keep-opset` forbids it.\n")
    if found.parameters:
        lines += ["| parameter | value | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [_row(parameter) for parameter in found.parameters]
        lines.append("")
    return "\n".join(lines)


def _row(parameter: Parameter) -> str:
    kind = parameter.kind + (f", {parameter.bounds}" if parameter.bounds else "")
    cells = (f"`{parameter.name}`", kind, parameter.default or "required", parameter.help)
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    pages = {"axes": axes_page, "rules": rules_page}
    sys.stdout.write(pages.get("".join(sys.argv[1:]), passes_page)())
