"""Which weights are found, and the order of weights of few different sizes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from converter.core.context import Context
from converter.core.tensors import MappedTensor
from passes.allocation import order
from passes.prune import Prune
from tests.support import model_from_text


def test_weights_computed_from_constants_are_said() -> None:
    rng = np.random.default_rng(0)
    model = model_from_text(
        """g (float[N,8] x) => (float[N,4] y) { w = Concat<axis = 1>(A, B) y = MatMul(x, w) }""",
        A=rng.standard_normal((8, 2)).astype(np.float32),
        B=rng.standard_normal((8, 2)).astype(np.float32),
    )
    outcome = Prune().apply(model, Context())
    assert not outcome.modified
    assert [skip.reason for skip in outcome.skipped] == [
        "its weight is computed from other constants: put simplify before prune"
    ]


@pytest.mark.parametrize("share", [0.25, 0.3, 0.55, 0.9])
def test_few_different_weights_are_tried_one_by_one(
    monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    rng = np.random.default_rng(5)
    arrays = [rng.choice(np.array([-2, -1, 0, 0.5, 3], np.float32), 40_000) for _ in range(2)]
    tensors = [ir.tensor(array) for array in arrays]
    monkeypatch.setattr(order, "_WHOLE", 1)
    monkeypatch.setattr(order, "_COLLECT", 1000)
    monkeypatch.setattr(order, "_bracket", lambda *_: (0, order.Magnitude.of(tensors).infinity))
    monkeypatch.setattr(order, "_radix", lambda *_: pytest.fail("searched by digits"))
    plans = order.plan(tensors, share)
    found = [
        tensor.numpy() if each.cut is None else MappedTensor(tensor, each.cut).numpy()
        for tensor, each in zip(tensors, plans, strict=True)
    ]
    flat = np.concatenate(arrays)
    gone = np.argsort(np.abs(flat), kind="stable")[: round(share * flat.size)]
    flat[gone] = 0
    np.testing.assert_array_equal(np.concatenate(found), flat)
    assert sum(each.zeros_after for each in plans) == round(share * flat.size)
