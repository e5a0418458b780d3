"""A constant gets another tensor, whether it is an initializer or made by a node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from converter.core import graph as g
from tests.support import model_from_text, run

NODE = "g (float[2] x) => (float[2] y) { w = Constant <value = float[2] {1, 2}> ()\ny = Mul(x, w) }"
STORED = "g (float[2] x) => (float[2] y) { y = Mul(x, w) }"


@pytest.mark.parametrize("text", [NODE, STORED])
def test_a_constant_gets_another_tensor(text: str) -> None:
    given = {} if text == NODE else {"w": np.asarray([1, 2], np.float32)}
    model = model_from_text(text, **given)
    value = model.graph.node(len(model.graph) - 1).inputs[1]
    assert value is not None
    g.replace_tensor(value, ir.tensor(np.asarray([3, 4], np.float32), name="w"))
    found = g.constant_array(value)
    assert found is not None
    assert found.tolist() == [3, 4]
    if value.const_value is not None:
        assert value.const_value.numpy().tolist() == [3, 4]
    assert run(model, {"x": np.ones(2, np.float32)})["y"].tolist() == [3, 4]
