"""Every row of the table of operators, observed in the installed onnxruntime."""

from __future__ import annotations

import pytest

from converter.execution.fusion_probe import (
    NOT_FUSED,
    Probe,
    deviations,
    fused_operators,
    operator_model,
    probes,
    weighted_model,
)
from converter.ops.quantizable import QUANTIZABLE


def test_onnxruntime_fuses_what_the_placement_relies_on() -> None:
    assert deviations() == {}


def test_every_operator_is_probed() -> None:
    names = {probe.name for probe in probes()}
    for entry in QUANTIZABLE:
        assert f"{entry.op_type} on uint8" in names
        if entry.row.float_output:
            assert f"{entry.op_type} with float results" in names


@pytest.mark.parametrize("op_type", [*NOT_FUSED, "Softmax", "PRelu"])
def test_operators_that_are_not_fused_have_no_row(op_type: str) -> None:
    assert QUANTIZABLE.find("", op_type, 17) is None


def test_integer_softmax_exists_but_is_not_used() -> None:
    found = fused_operators(operator_model("Softmax", None))
    assert found["QLinearSoftmax"] == 1


def test_a_runtime_that_fuses_differently_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [
        Probe("left", weighted_model("Conv"), ("QLinearConv",), (2, 1)),
        Probe("missing", weighted_model("Conv"), ("QConv",)),
        Probe("present", weighted_model("Conv"), absent=("QLinearConv",)),
        Probe("right", weighted_model("Conv"), ("QLinearConv",), (1, 1), ("Conv",)),
    ]
    monkeypatch.setattr("converter.execution.fusion_probe.probes", lambda: iter(wrong))
    found = deviations()
    assert sorted(found) == ["left", "missing", "present"]
    assert all("1 QLinearConv" in reason for reason in found.values())
