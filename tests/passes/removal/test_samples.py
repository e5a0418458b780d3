"""What is fitted on when the user's samples say little."""

from __future__ import annotations

import numpy as np
import pytest
from support import model_from_text

from converter.core.context import Batch, Context
from passes.removal.samples import made_besides, samples_for

MODEL = "g (float[N,3,8,8] x) => (float[N,4,8,8] y) { y = Conv<pads=[1,1,1,1]>(x, a) }"


class Data:
    synthetic = labelled = False
    description = "given"

    def __init__(self, x, size):
        self.samples = len(x)
        self.batches = [
            Batch({"x": x[i : i + size]}, None, len(x[i : i + size]))
            for i in range(0, len(x), size)
        ]

    def __iter__(self):
        return iter(self.batches)


def model():
    return model_from_text(MODEL, a=np.ones((4, 3, 3, 3), np.float32))


def draw(count):
    return np.random.default_rng(count).standard_normal((count, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("x", "said", "made"),
    [
        (draw(64), "fitted on 64 of 64 samples", False),
        (draw(63), "on 63 of 63 samples; these are few", False),
        (draw(1), "on 1 of 1 samples; these are few", True),
        (
            np.zeros((64, 3, 8, 8), np.float32),
            "on 64 of 64 samples, all equal; these are few",
            True,
        ),
        (np.tile(draw(8), (9, 1, 1, 1)), "of 72 samples, 8 of them different; these", False),
        (np.tile(draw(7), (9, 1, 1, 1)), "of 63 samples, 7 of them different; these", True),
    ],
)
@pytest.mark.parametrize("size", [1, 16])
def test_counts_different_samples_and_makes_up_others(x, said, made, size):
    samples, note = samples_for(model(), Context(dataset=Data(x, size)), 1.0)
    assert said in note
    assert ("few" in note) == (len(np.unique(x, axis=0)) < 64)
    besides, why = made_besides(model(), samples, seed=0)
    assert bool(besides) == bool(why) == made
    if made:
        assert sum(batch.samples for batch in besides) == 64
        assert "smooth noise" in why
