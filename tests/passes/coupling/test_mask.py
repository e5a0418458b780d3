"""The masked original: statistics over what is left, in operators that know nothing of masks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import support
from support import model_from_text

from converter.core.context import Context
from converter.coupling.couple import couple
from converter.coupling.shapes import observe_shapes
from passes.coupling.cut import cut
from passes.coupling.mask import mask


def draw(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def compare(model: ir.Model, feed: dict, *, share: float = 1e-4) -> ir.Model:
    """Remove half of everything from a clone; the outputs are those of the masked original."""
    shapes = observe_shapes(model, Context())
    coupling = couple(model, shapes)
    assert coupling.components, coupling.frozen
    alive = coupling.all_alive()
    for component in coupling.components:
        blocks = component.blocks
        parts = [component.atoms] if blocks is None else [
            component.atoms[blocks == block] for block in np.unique(blocks)
        ]  # fmt: skip
        for atoms in parts:
            alive[atoms[1::2]] = False
    masked, student = model.clone(), model.clone()
    mask(masked, couple(masked, shapes), alive)
    cut(student, couple(student, shapes), alive)
    expected, found = support.run(masked, feed), support.run(student, feed)
    plain = support.run(model, feed)
    for name, array in found.items():
        assert array.shape == plain[name].shape
        largest = np.abs(expected[name]).max()
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=share * largest)
    assert any(np.abs(plain[name] - found[name]).max() > 0.01 for name in found)
    assert [n.outputs[0].name for n in student.graph][-1] == model.graph.outputs[0].name
    return masked


MICROSOFT = '<ir_version: 8, opset_import: ["" : {}, "com.microsoft" : 1]>\n'
WIDE = "g (float[N,5,6] x) => (float[N,5,3] y) { h = MatMul(x, a) k = Relu(h) "
VECTORS = {"a": draw(6, 8), "c": draw(8, 3), "s": draw(8), "b": draw(8), "e": draw(8) + 1}
TWO = "u = MatMul(x, v) w = Tanh(u) "


@pytest.mark.parametrize(
    "body",
    [
        "r = LayerNormalization<axis=-1>(k, s, b)",
        "r = com.microsoft.SkipLayerNormalization<epsilon=0.00001>(k, w, s, b, e)",
        "r = com.microsoft.SkipSimplifiedLayerNormalization<epsilon=0.00001>(k, w, s, e)",
        "r0, m, i, t = com.microsoft.SkipLayerNormalization<epsilon=0.00001>(k, w, s, b) "
        "r = Add(r0, t)",
        "r = SimplifiedLayerNormalization<axis=-1,epsilon=0.00001>(k, s)",
    ],
)
def test_normalized_streams(body: str) -> None:
    names = [name for name in VECTORS if f" {name}" in body or f"({name}" in body]
    constants = {name: VECTORS[name] for name in {*names, "a", "c"}}
    two = TWO if "w," in body else ""
    if two:
        constants["v"] = draw(6, 8) * 2
    text = MICROSOFT.format(17) + WIDE + two + body + " y = MatMul(r, c) }"
    compare(model_from_text(text, **constants), {"x": draw(2, 5, 6)})


@pytest.mark.parametrize("opset", [18, 21])
def test_groups_with_one_scale_each_or_one_per_channel(opset: int) -> None:
    size = 2 if opset < 21 else 8
    model = model_from_text(
        "g (float[N,3,4,4] x) => (float[N,2,4,4] y) { h = Conv(x, a) k = Relu(h) "
        "r = GroupNormalization<num_groups=2>(k, s, b) y = Conv(r, c) }",
        opset=opset, a=draw(8, 3, 1, 1), c=draw(2, 8, 1, 1), s=draw(size), b=draw(size),
    )  # fmt: skip
    compare(model, {"x": draw(2, 3, 4, 4)})


@pytest.mark.parametrize("groups", [1, 2])
def test_groups_written_out_lose_channels_or_whole_groups(groups: int) -> None:
    model = model_from_text(
        "g (float[N,3,4,4] x) => (float[N,2,4,4] y) { h = Conv(x, a) k = Relu(h) "
        "p = Reshape(k, i) n = InstanceNormalization(p, s, b) q = Reshape(n, j) "
        "u = Mul(q, w) r = Tanh(u) y = Conv(r, c) }",
        a=draw(8, 3, 1, 1), c=draw(2, 8, 1, 1), s=draw(groups), b=draw(groups),
        i=np.array([0, groups, -1]), j=np.array([0, 8, 4, 4]), w=draw(8, 1, 1) + 2,
    )  # fmt: skip
    compare(model, {"x": draw(2, 3, 4, 4)})


@pytest.mark.parametrize("op_type", ["Mean", "Max", "Min", "Sum", "L1", "L2", "SumSquare"])
@pytest.mark.parametrize("opset", [8, 11, 18])
def test_reductions_over_channels(op_type: str, opset: int) -> None:
    reduce = f"Reduce{op_type}(k, i)" if opset == 18 else f"Reduce{op_type}<axes=[1]>(k)"
    model = model_from_text(
        f"g (float[N,3,4,4] x) => (float[N,1,4,4] y) {{ h = Conv(x, a) k = Tanh(h) y = {reduce} }}",
        opset=opset, a=draw(8, 3, 1, 1), **({"i": np.array([1])} if opset == 18 else {}),
    )  # fmt: skip
    masked = compare(model, {"x": draw(2, 3, 4, 4)})
    assert not any(node.op_type == "Where" for node in masked.graph) or opset > 8


def test_half_precision() -> None:
    model = model_from_text(
        "g (float16[N,3,4,4] x) => (float16[N,2,4,4] y) { h = Conv(x, a) k = Relu(h) "
        "m = ReduceMax<axes=[1]>(k) r = Add(k, m) y = Conv(r, c) }",
        a=draw(8, 3, 1, 1, dtype=np.float16), c=draw(2, 8, 1, 1, dtype=np.float16),
    )  # fmt: skip
    # 16-bit floats have 11 bits, and the order of sums differs
    compare(model, {"x": draw(2, 3, 4, 4, dtype=np.float16)}, share=4e-3)


def test_infinite_numbers_are_masked() -> None:
    model = model_from_text(
        "g (float[N,3] x) => (float[N,2] y) "
        "{ h = MatMul(x, a) k = Reciprocal(h) y = MatMul(k, c) }",
        a=draw(3, 4), c=draw(4, 2),
    )  # fmt: skip
    shapes = observe_shapes(model, Context())
    coupling = couple(model, shapes)
    alive = coupling.all_alive()
    alive[coupling.components[0].atoms[1]] = False
    weights = draw(3, 4)
    weights[:, 1] = 0
    model.graph.initializers["a"].const_value = ir.tensor(weights, name="a")
    mask(model, couple(model, shapes), alive)
    assert np.isfinite(support.run(model, {"x": draw(2, 3)})["y"]).all()
