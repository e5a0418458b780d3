"""Integers that quantize_weights wrote are packed as if they had never been anything else."""

from __future__ import annotations

import exact
import numpy as np
import onnx_ir as ir
import pytest
from support import model_from_text, run

from converter.core.context import Context
from converter.core.select import Selection
from passes.quantize_weights import QuantizeWeights
from passes.storage.recode import recode

NET = """g (float[N,16,8,8] x) => (float[N,32,4,4] z) {
    y = Conv(x, V)
    z = Conv(y, W)
}"""


def quantized(density: float, bits: int) -> ir.Model:
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in (("V", (32, 16, 3, 3)), ("W", (32, 32, 3, 3))):
        arrays[name] = rng.standard_normal(shape).astype(np.float32)
        arrays[name][rng.random(shape) > density] = 0
    model = model_from_text(NET, **arrays)
    assert QuantizeWeights(bits=bits).apply(model, Context()).modified
    return model


@pytest.mark.parametrize("bits", [4, 8])
def test_sparse_integers_become_floats_and_back(bits: int) -> None:
    model = quantized(0.2, bits)
    before = model.clone()
    assert recode(model, Selection(), Context()) == 2
    assert [node.op_type for node in model.graph] == ["Conv", "Conv"]
    feed = {"x": np.random.default_rng(1).standard_normal((1, 16, 8, 8)).astype(np.float32)}
    np.testing.assert_array_equal(run(model, feed)["z"], run(before, feed)["z"])


def test_what_would_not_become_smaller_stays() -> None:
    # Dense weights in 4 bits have zero points: their floats lie on no grid of 8 bits or fewer.
    model = quantized(1.0, 8)
    before = exact.content(model)
    assert recode(model, Selection(), Context()) == 0
    assert exact.content(model) == before
    model = quantized(0.2, 8)
    assert recode(model, Selection(exclude=("*",)), Context()) == 0


def test_a_model_without_conversions() -> None:
    model = model_from_text(NET, V=np.ones((32, 16, 3, 3), "f"), W=np.ones((32, 32, 3, 3), "f"))
    assert recode(model, Selection(), Context()) == 0
