"""Structure, weights and integers in one pipeline, verified as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import converter
from converter.core.spec import parse
from converter.pipeline.pipeline import Pipeline
from passes.correct_bias import CorrectBias
from passes.drop_layers import DropLayers

FIXTURES = Path(__file__).parents[2] / "fixtures"


def convert(text: str, name: str = "digits_resnet", **words: Any) -> converter.Artifact:
    return converter.convert(
        FIXTURES / f"{name}.onnx",
        passes=parse(text),
        data=FIXTURES / "digits_calibration.npz",
        samples=64,
        batch=8,
        **words,
    )


def test_channels_weights_and_integers_in_one_pipeline() -> None:
    made = convert(
        "simplify,prune_channels:flops=0.7,criterion=l2,allocation=uniform,"
        "prune:sparsity=0.4,reconstruct,quantize:speed=max,correct_bias",
        budget=["agreement>=0.9", "macs<=0.7x", "size<=0.3x"],
    )
    assert made.verdict is not None
    assert made.verdict.passed
    outcomes = [step.outcome for step in made.run.steps]
    assert all(outcome is not None and outcome.modified for outcome in outcomes[1:5])
    assert made.report.notes == ()  # nothing about the order is unusual


def test_repairs_compare_with_what_the_last_cut_left(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    plain = CorrectBias.apply

    def spy(self: CorrectBias, model: Any, context: Any) -> Any:
        seen["reference"], seen["teacher"] = context.reference, context.teacher
        return plain(self, model, context)

    monkeypatch.setattr(CorrectBias, "apply", spy)
    assert DropLayers.restructures
    made = convert("simplify,drop_layers:recover=none,prune:sparsity=0.3,correct_bias:rounds=0")
    simplified, dropped, _, _ = made.run.models
    assert seen["reference"] is simplified
    assert seen["teacher"] is dropped


def test_the_context_is_given_back_as_it_was() -> None:
    from converter.core.context import Context
    from converter.io import formats

    context = Context()
    model = formats.load(FIXTURES / "digits_resnet.onnx")
    Pipeline(parse("prune")).run(model, context)
    assert context.reference is None
    assert context.teacher is None
