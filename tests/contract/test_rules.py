"""Every rule of every rewriting pass: its operators exist, and its patterns can match."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import onnx
import pytest

from converter.core import registry
from passes.rewriting.pattern import Call, Either, Operand, parse
from passes.rewriting.rule import Rule


def rules() -> list[tuple[str, Rule]]:
    found = []
    for entry in registry.entries().values():
        if entry.owner == registry.OWNER:
            module = sys.modules[registry.get(entry.name).__module__]
            found += [(entry.name, rule) for rule in getattr(module, "RULES", ())]
    return found


RULES = rules()
OPERATORS = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}


def calls(pattern: Operand) -> Iterator[Call]:
    if isinstance(pattern, Call):
        yield pattern
        for operand in pattern.inputs:
            yield from calls(operand)
    elif isinstance(pattern, Either):
        for option in pattern.options:
            yield from calls(option)


def test_there_are_rules() -> None:
    assert {"eliminate", "fold_constants", "fuse"} <= {name for name, _ in RULES}


@pytest.mark.parametrize(("owner", "rule"), RULES, ids=lambda x: getattr(x, "name", x))
def test_a_rule_is_well_formed(owner: str, rule: Rule) -> None:
    assert rule.name == rule.name.lower().strip()
    assert set(rule.op_types) <= OPERATORS
    assert rule.since <= onnx.defs.onnx_opset_version()
    assert owner == "fuse" or not rule.tolerance  # all others keep every bit
    for text in rule.patterns:
        assert parse(text).op_type in rule.op_types
        for call in calls(parse(text)):
            schemas = [
                s
                for s in onnx.defs.get_all_schemas_with_history()
                if s.name == call.op_type and s.domain == ""
            ]
            assert schemas, call.op_type
            most = max(s.max_input for s in schemas)
            assert len(call.inputs) <= most, text
            known = set().union(*(s.attributes for s in schemas))
            assert {name for name, _ in call.attributes} <= known, text
