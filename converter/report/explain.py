"""Answers to ``--explain NODE``: what every pass did, or did not do, to the nodes asked about."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from converter.core.graph import label, walk
from converter.core.select import Selection

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.run import Run, Step

Row = dict[str, str]
SILENT = "no rule of this pass is about it"


def explain(patterns: Sequence[str], original: ir.Model, run: Run) -> tuple[list[Row], list[str]]:
    """Return one row per pass, node and rule, and notes about patterns that match nothing.

    Args:
        patterns: Node names, globs, ``op:TYPE``.
        original: The model before the first pass.
        run: What the pipeline did to it.

    Returns:
        Rows with the keys ``pass``, ``node``, ``rule`` (may be empty) and ``what``.
    """
    rows: list[Row] = []
    models = [original, *run.models]
    selection = Selection(tuple(patterns))
    for model, step in zip(models, run.steps, strict=False):
        subjects = [label(node) for node in walk(model) if node in selection]
        rows += _of_step(step, subjects)
    nodes = [node for model in models for node in walk(model)]
    return rows, [_unknown(pattern, nodes) for pattern in selection.unmatched(nodes)]


def _of_step(step: Step, subjects: Iterable[str]) -> list[Row]:
    name = step.spec.partition(":")[0]
    if step.outcome is None:
        return [_row(name, subject, "", f"the pass failed: {step.error}") for subject in subjects]
    rows = [_row(name, e.subject, e.rule, e.what) for e in step.outcome.events]
    answered = {(row["node"], row["what"]) for row in rows}
    wanted = dict.fromkeys(subjects)
    rows += [
        _row(name, skip.subject, "", skip.reason)
        for skip in step.outcome.skipped
        if skip.subject in wanted and (skip.subject, skip.reason) not in answered
    ]
    told = {row["node"] for row in rows}
    rows += [_row(name, subject, "", SILENT) for subject in wanted if subject not in told]
    return rows


def _row(pass_name: str, node: str, rule: str, what: str) -> Row:
    return {"pass": pass_name, "node": node, "rule": rule.replace("_", " "), "what": what}


def _unknown(pattern: str, nodes: list[ir.Node]) -> str:
    names = sorted({node.name for node in nodes if node.name})
    near = difflib.get_close_matches(pattern, names, n=3)
    hint = f"; near: {', '.join(near)}" if near else ""
    return f"--explain {pattern} matches no node{hint}"
