"""``quantize`` by itself: it decides, says why, and is better than the plain path."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import support
from fusion import optimised_ops

from converter.core.context import Batch, Context, Limits, RunSettings
from converter.core.contract import Outcome
from converter.execution import sandbox
from converter.io import formats
from converter.measure.damage import DamageMeter
from converter.pipeline.services import LocalServices
from passes.quantize import Quantize
from passes.simplify import Simplify

FIXTURES = Path(__file__).parents[3] / "fixtures"


class Images:
    """Calibration images in batches."""

    description = "digits"
    synthetic = False

    def __init__(self, images: np.ndarray, batch: int = 8) -> None:
        self.images = images
        self.samples = len(images)
        self.batch = batch

    def __len__(self) -> int:
        return math.ceil(self.samples / self.batch)

    def __iter__(self) -> Any:
        for start in range(0, self.samples, self.batch):
            part = self.images[start : start + self.batch]
            yield Batch({"image": part}, None, len(part))


def context(images: np.ndarray, batch: int = 8) -> Context:
    settings = RunSettings()
    return Context(dataset=Images(images, batch), services=LocalServices(settings))


def images(count: int) -> np.ndarray:
    with np.load(FIXTURES / "digits_calibration.npz") as data:
        return np.asarray(data["image"][:count])


@pytest.fixture(scope="module")
def depthwise() -> ir.Model:
    model = formats.load(FIXTURES / "digits_depthwise.onnx")
    Simplify().apply(model, context(images(8)))
    return model


def quantize(model: ir.Model, count: int = 32, **parameters: Any) -> tuple[ir.Model, Outcome]:
    clone = model.clone()
    outcome = Quantize(speed="max", **parameters).apply(clone, context(images(count)))
    return clone, outcome


def loss(model: ir.Model, other: ir.Model) -> float:
    with np.load(FIXTURES / "digits_test.npz") as data:
        feed = {"image": np.asarray(data["image"])}
    meter = DamageMeter()
    meter.update(support.run(model, feed), support.run(other, feed))
    return meter.result().loss


def test_the_default_is_better_than_the_plain_path(depthwise: ir.Model) -> None:
    plain, _ = quantize(depthwise, 16, method="minmax", weights="int4")
    best, outcome = quantize(depthwise, 16, weights="int4", rounding="gptq")
    assert loss(depthwise, best) < 0.3 * loss(depthwise, plain)
    assert optimised_ops(best) == optimised_ops(plain), "only numbers differ"
    said = "\n".join(outcome.notes)
    assert "chosen by KL divergence (squared mean root) from float on" in said
    assert "the others: " in said


def test_same_bytes_twice(depthwise: ir.Model) -> None:
    chosen = {"method": "mse", "rounding": "auto"}
    first, second = (quantize(depthwise, 16, **chosen)[0] for _ in range(2))
    assert ir.to_proto(first).SerializeToString() == ir.to_proto(second).SerializeToString()


def test_a_named_method_decides_nothing(depthwise: ir.Model) -> None:
    _, outcome = quantize(depthwise, method="mse")
    assert not any("chosen" in note for note in outcome.notes)


def test_steps_can_be_named_beside_a_method(depthwise: ir.Model) -> None:
    plain, _ = quantize(depthwise, 16, method="minmax")
    rounded, outcome = quantize(depthwise, 16, method="minmax", rounding="gptq")
    assert ir.to_proto(plain).SerializeToString() != ir.to_proto(rounded).SerializeToString()
    assert not any("chosen" in note for note in outcome.notes), "there was nothing to choose"


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (images(4), "4 samples of the 8 that are needed"),
        (np.repeat(images(1), 32, axis=0), "all calibration samples are equal"),
    ],
)
def test_data_that_says_too_little_gives_the_plain_file(
    depthwise: ir.Model, samples: np.ndarray, reason: str
) -> None:
    clone = depthwise.clone()
    outcome = Quantize(speed="max").apply(clone, context(samples))
    assert any(reason in note for note in outcome.notes)
    assert optimised_ops(clone)["QLinearConv"] > 0


def test_four_bits_are_stored_in_half_the_bytes(depthwise: ir.Model) -> None:
    eight, _ = quantize(depthwise, 16, method="minmax")
    four, outcome = quantize(depthwise, 16, method="minmax", rounding="gptq", weights="int4")
    assert optimised_ops(four) == optimised_ops(eight), "the Cast is gone when it runs"
    sizes = [len(ir.to_proto(m).SerializeToString()) for m in (four, eight)]
    assert sizes[0] < 0.75 * sizes[1]
    assert any("weights of 4 bits" in note for note in outcome.notes)


def test_pruned_weights_stay_zero(depthwise: ir.Model) -> None:
    model = depthwise.clone()
    zeros = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        if len(tensor.shape) == 4 and tensor.shape[1] > 1:
            array = tensor.numpy().copy()
            array[np.abs(array) < np.median(np.abs(array))] = 0.0
            value.const_value = ir.Tensor(array, name=name)
            zeros[name] = array == 0.0
    best, _ = quantize(model, 16, method="minmax", rounding="gptq")
    for name, mask in zeros.items():
        integers = best.graph.initializers[f"{name}_quantized"].const_value
        assert integers is not None
        assert not integers.numpy()[mask].any()


def test_grids_are_moved_only_where_held_out_outputs_gain(depthwise: ir.Model) -> None:
    chosen = {"method": "percentile", "percentile": 95.0}
    plain, _ = quantize(depthwise, **chosen)
    refined, outcome = quantize(depthwise, refine=True, **chosen)
    assert any("grids were moved" in note for note in outcome.notes)
    assert loss(depthwise, refined) < 0.9 * loss(depthwise, plain), "its ranges were too narrow"


@pytest.mark.parametrize("batch", [1, 5])
def test_any_batch_size_will_do(depthwise: ir.Model, batch: int) -> None:
    clone = depthwise.clone()
    chosen = Quantize(method="minmax", rounding="gptq", speed="max")
    chosen.apply(clone, context(images(16), batch))
    assert loss(depthwise, clone) < 1e-4


def test_four_bits_where_no_layer_has_weights_of_its_own() -> None:
    rng = np.random.default_rng(0)
    model = support.model_from_text(
        """g (float[N,1,28,28] image) => (float[N,8,26,26] y, float[N,8,26,26] z) {
          other = Neg(image)
          y = Conv(image, w)
          z = Conv(other, w)
        }""",
        w=rng.normal(size=(8, 1, 3, 3)).astype(np.float32),
    )
    clone = model.clone()
    shape = (16, 1, 28, 28)
    samples = rng.normal(size=shape).astype(np.float32)
    outcome = Quantize(speed="max", weights="int4").apply(clone, context(samples))
    assert outcome.counts["weights_quantized"] == 1
    assert any("no layer has weights of its own" in note for note in outcome.notes)


def test_a_layer_with_too_many_inputs_is_rounded_to_nearest_and_named() -> None:
    rng = np.random.default_rng(0)
    columns = 80 * 80
    weight = rng.normal(size=(columns, 8)).astype(np.float32)
    model = support.model_from_text(
        """g (float[N,1,80,80] image) => (float[N,8] y) {
          flat = Flatten(image)
          y = Gemm(flat, w, b)
        }""",
        w=weight,
        b=rng.normal(size=8).astype(np.float32),
    )
    model.graph[1].name = "long"
    samples = rng.normal(size=(16, 1, 80, 80)).astype(np.float32)
    outcome = Quantize(speed="max", method="minmax", rounding="gptq").apply(model, context(samples))
    assert any("too many for error feedback: long (Gemm)" in note for note in outcome.notes)
    stored = model.graph.initializers["w_quantized"].const_value
    assert stored is not None
    nearest = np.rint(weight / (np.abs(weight).max(axis=0) / 127))
    assert np.abs(stored.numpy() - nearest).max() <= 1, "scales are float32"
    assert (stored.numpy() == nearest).mean() > 0.999


def test_a_layer_may_take_longer_than_one_run(
    depthwise: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = context(images(16))
    given.settings = replace(given.settings, limits=Limits(seconds=300.0, patience=20.0))
    waited = {}
    call = sandbox.call

    def observed(*args: Any, **fields: Any) -> Any:
        waited[fields.get("task")] = fields["limits"].patience
        return call(*args, **fields)

    monkeypatch.setattr(sandbox, "call", observed)
    chosen = Quantize(method="minmax", rounding="gptq", speed="max")
    chosen.apply(depthwise.clone(), given)
    assert waited["quantizing layer by layer"] == 300.0, "all samples in all candidates"
