"""Real models equal themselves, with inputs made up from their shapes."""

from __future__ import annotations

import pytest

from converter.core.context import RunSettings
from converter.data.sources import open_data
from converter.io.formats import load
from converter.verification.budget import Budget
from converter.verification.verify import verify

QUICK = (
    "gtcrn_simple",
    "magika_fast_v2_1",
    "mlperf_resnet8_cifar10_qdq",
    "mnist_cntk8",
    "nnsplit_en_bilstm",
    "resnet20_cifar10",
    "silero_vad_16k_op15",
    "squeezenet1.1_imagenet_fp16_op7",
)


def check(path):
    verdict = verify(
        path,
        path,
        open_data("synthetic", load(path), samples=2),
        budget=Budget.parse(["max_error<=0", "size<=1x"]),
        settings=RunSettings(),
        latency=False,
    )
    assert verdict.passed
    assert verdict.samples == 2
    assert len(verdict.notes) == 1  # made-up inputs, and nothing random


@pytest.mark.parametrize("name", QUICK)
def test_small_models(zoo, name):
    check(zoo / "models" / f"{name}.onnx")


@pytest.mark.slow
def test_all_models(zoo):
    for path in sorted((zoo / "models").glob("*.onnx")):
        check(path)
