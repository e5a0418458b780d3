"""``quantize:max_loss=``: as few layers in float as keep the loss within a bound."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support import model_from_text, run

import converter
from converter.errors import ParameterError, VerificationError
from converter.measure.damage import Damage, DamageMeter
from passes import Quantize
from passes.tuning import spare

NET = """g (float[N,3,8,8] x) => (float[N,6,8,8] y) {
    [c1] a = Conv<pads=[1,1,1,1]>(x, w1)
    [r1] a2 = Relu(a)
    [c2] b = Conv<pads=[1,1,1,1]>(a2, w2)
    [r2] b2 = Relu(b)
    [c3] c = Conv<pads=[1,1,1,1]>(b2, w3)
    [r3] c2 = Relu(c)
    [c4] y = Conv(c2, w4)
}"""
SAMPLES = {"x": np.random.default_rng(1).standard_normal((12, 3, 8, 8)).astype(np.float32)}


def net() -> ir.Model:
    draw = np.random.default_rng(0).standard_normal
    shapes = {"w1": (6, 3, 3, 3), "w2": (6, 6, 3, 3), "w3": (6, 6, 3, 3), "w4": (6, 6, 1, 1)}
    made = {n: (draw(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for n, s in shapes.items()}
    made["w2"][3] *= 500  # its output makes the grid too coarse for the other channels ...
    made["w3"][:, 3] /= 500  # ... and the next layer takes it back
    return model_from_text(NET, **made)


def quantize(bound: float | None, *, verify: bool = False) -> converter.Artifact:
    pass_ = Quantize(method="minmax", speed="max", max_loss=bound)
    return converter.convert(net(), passes=[pass_], data=SAMPLES, verify=verify)


def damage(model: ir.Model) -> Damage:
    meter = DamageMeter()
    for sample in SAMPLES["x"]:
        meter.update(run(net(), {"x": sample[None]}), run(model, {"x": sample[None]}))
    return meter.result()


def spared(artifact: converter.Artifact) -> set[str]:
    skips = artifact.run.steps[0].outcome.skipped
    return {skip.subject for skip in skips if "max_loss" in skip.reason}


def test_a_loose_bound_quantizes_every_layer() -> None:
    found = quantize(0.9, verify=True)
    assert spared(found) == set()
    assert found.report.proof.integers.layers == 4
    assert any("so every layer is quantized" in note for note in found.run.steps[0].outcome.notes)


def test_the_layer_that_hurts_is_left_and_no_other() -> None:
    whole = damage(quantize(None).model).loss
    assert whole > 0.01
    found = quantize(whole / 20)
    assert damage(found.model).loss <= whole / 20
    assert "c2 (Conv)" in spared(found)
    assert len(spared(found)) <= 2
    note = found.run.steps[0].outcome.notes[-1]
    assert "left in float" in note
    assert "saves" in note


def test_an_unreachable_bound_leaves_a_usable_float_model() -> None:
    found = quantize(1e-12, verify=True)
    assert damage(found.model).loss <= 1e-12
    assert found.verdict.passed
    assert found.verdict.latency is not None


def test_the_same_bytes_twice() -> None:
    first, second = (quantize(0.001) for _ in range(2))
    assert ir.to_proto(first.model) == ir.to_proto(second.model)


def test_measurements_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "MOST_MEASUREMENTS", 3)
    found = quantize(0.0005)
    assert damage(found.model).loss <= 0.0005
    assert "found by" in found.run.steps[0].outcome.notes[-1]


def test_bounds_must_be_positive() -> None:
    with pytest.raises(ParameterError, match="max_loss"):
        Quantize(max_loss=0.0)


def test_a_missed_budget_names_the_words_that_help() -> None:
    with pytest.raises(VerificationError) as caught:
        converter.convert(
            net(),
            passes=[Quantize(method="minmax", speed="max")],
            data=SAMPLES,
            budget="cosine>=0.9999",
        )
    assert "quantize:max_loss=0.0001 " in caught.value.hint
    assert "convert sensitivity" in caught.value.hint
    converter.convert(
        net(),
        passes=[Quantize(method="minmax", speed="max", max_loss=0.0001)],
        data=SAMPLES,
        budget="cosine>=0.9999",
    )


def test_weights_alone_are_bounded_too() -> None:
    pass_ = Quantize(activations="none", max_loss=1e-6)
    found = converter.convert(net(), passes=[pass_], data=SAMPLES, verify=False)
    assert damage(found.model).loss <= 1e-6
    assert "max_loss=1e-06" in found.run.steps[0].outcome.notes[-1]
