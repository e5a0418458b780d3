"""Every torture case through every exact pass, alone and in random lists."""

from __future__ import annotations

from random import Random

import onnx
import pytest
from torture import cases_peers, cases_scopes, cases_values, cases_views
from torture.case import Case
from torture.judge import exact_passes, judge, subject

CASES: dict[str, Case] = {
    **cases_peers.CASES,
    **cases_values.CASES,
    **cases_views.CASES,
    **cases_scopes.CASES,
}
_LISTS = 2
_OPSETS = (15, 18, 20, 21, 23)


def pass_lists(seed: str) -> list[str]:
    """Return all passes one by one, random lists of them, and two that change more."""
    names, random = exact_passes(), Random(seed)
    lists = [",".join(random.choice(names) for _ in range(3)) for _ in range(_LISTS)]
    return [*names, *lists, "inline,simplify", f"convert_opset:to={random.choice(_OPSETS)}"]


@pytest.mark.parametrize("name", sorted(CASES))
def test_case_survives_all_passes(name: str) -> None:
    case = CASES[name]
    proto = case.build()
    feeds = case.inputs(proto) if case.runs else []
    with subject(proto, feeds) as given:
        if case.runs:
            assert given.expected is not None, given.reason
            assert any(isinstance(row, list) for row in given.expected), given.expected[0]
        for text in pass_lists(name):
            complaints = judge(given, text, loaded_optimized=case.runs)
            assert complaints == []


def test_cases_are_valid_models() -> None:
    for name, case in CASES.items():
        proto = case.build()
        if case.runs:
            onnx.checker.check_model(proto, full_check=False)
        assert proto.graph.node, name
