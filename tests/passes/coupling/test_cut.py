"""What a cut changes beside the constants, case by case."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import support
from support import model_from_text

from converter.core.context import Context
from converter.core.graph import constant_array
from converter.coupling.couple import couple
from converter.coupling.shapes import observe_shapes
from converter.coupling.structure import Coupling
from passes.coupling.cut import cut
from passes.coupling.kept import Kept
from passes.coupling.mask import mask


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


IMAGE = {"x": draw(2, 3, 6, 6)}


def cut_at(model: ir.Model, node: int, gone: list[int], feed: dict) -> tuple[Kept, Coupling]:
    """Remove outputs of a node, compare with the masked original, return what was kept."""
    shapes = observe_shapes(model, Context())
    coupling = couple(model, shapes)
    value = model.graph[node].outputs[0]
    channels = 1 if value.name and len(shapes[value.name]) == 4 else -1
    atoms = coupling.values[value][channels]
    assert atoms is not None, coupling.frozen
    alive = coupling.all_alive()
    assert (atoms[gone] >= 0).all(), coupling.frozen
    alive[atoms[gone]] = False
    masked, before = model.clone(), model.clone()
    mask(masked, couple(masked, shapes), alive)
    kept = cut(model, coupling, alive)
    expected, found = support.run(masked, feed), support.run(model, feed)
    original = support.run(before, feed)
    for name, array in found.items():
        assert array.shape == original[name].shape
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return kept, coupling


def find(model: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == op_type)


def array_of(node: ir.Node, position: int) -> list:
    found = constant_array(node.inputs[position])
    assert found is not None
    return found.tolist()


TWO = "g (float[N,3,6,6] x) => (float[N,5,6,6] y) {{ h = Conv(x, a, b) {} y = Conv(r, c, d) }}"
FOUR_FIVE = {"a": draw(4, 3, 1, 1), "b": draw(4), "d": draw(5)}


def test_weights_lose_what_is_gone_and_names_stay() -> None:
    model = model_from_text(TWO.format("r = Relu(h)"), **FOUR_FIVE, c=draw(5, 4, 1, 1))
    kept, _ = cut_at(model, 0, [1, 2], IMAGE)
    assert sorted(kept) == ["a", "b", "c", "h", "r"]
    assert kept["h"][1].tolist() == [0, 3]
    assert kept["c"][0] is None
    np.testing.assert_array_equal(
        constant_array(model.graph.initializers["a"]), draw(4, 3, 1, 1)[[0, 3]]
    )
    assert [node.outputs[0].name for node in model.graph] == ["h", "r", "y"]


def test_a_constant_that_two_layers_share_by_chance_is_copied() -> None:
    text = """g (float[N,3,6,6] x) => (float[N,4,6,6] y) {
        h = Conv(x, a, b) r = Relu(h) k = Conv(r, c, b) s = Relu(k) y = Conv(s, c, b) }"""
    model = model_from_text(text, a=draw(4, 3, 1, 1), b=draw(4), c=draw(4, 4, 1, 1))
    shapes = observe_shapes(model, Context())
    assert any("output" in frozen.reason for frozen in couple(model, shapes).frozen)
    text = text.replace("k = Conv(r, c, b)", "k = Conv(r, e, b)")
    model = model_from_text(
        text, a=draw(4, 3, 1, 1), b=draw(4), c=draw(4, 4, 1, 1), e=draw(4, 4, 1, 2)[..., :1]
    )
    cut_at(model, 0, [0], IMAGE)
    biases = [node.inputs[2] for node in model.graph if node.op_type == "Conv"]
    assert [value.shape[0] for value in biases] == [3, 4, 4]
    assert len({value.name for value in biases}) == 2
    assert biases[0].name == "b" or biases[1].name == "b"


def test_groups_follow() -> None:
    model = model_from_text(
        TWO.format("r = Conv<group=4>(h, e)"), **FOUR_FIVE, c=draw(5, 4, 1, 1), e=draw(4, 1, 1, 1)
    )
    cut_at(model, 0, [3], IMAGE)
    assert model.graph[1].attributes["group"].as_int() == 3


def test_split_gets_sizes() -> None:
    body = "p, q = Split<axis=1, num_outputs=2>(h) s = Relu(q) r = Concat<axis=1>(s, p)"
    model = model_from_text(TWO.format(body), opset=18, **FOUR_FIVE, c=draw(5, 4, 1, 1))
    cut_at(model, 0, [0], IMAGE)
    split = find(model, "Split")
    assert "num_outputs" not in split.attributes
    assert array_of(split, 1) == [1, 2]


@pytest.mark.parametrize("gone", [[0], [2], [0, 2], [1, 3, 5], [0, 1]])
def test_slices_move(gone: list[int]) -> None:
    model = model_from_text(
        "g (float[N,3,6,6] x) => (float[N,2,6,6] y) "
        "{ h = Conv(x, a) t = Relu(h) r = Slice(t, s, e, i, k) z = Conv(r, c) w = Conv(t, d) "
        "y = Add(z, w) }",
        a=draw(6, 3, 1, 1), c=draw(2, 3, 1, 1), d=draw(2, 6, 1, 1),
        s=np.array([0]), e=np.array([6]), i=np.array([1]), k=np.array([2]),
    )  # fmt: skip
    cut_at(model, 0, gone, IMAGE)
    node = find(model, "Slice")
    left = [i for i in range(6) if i not in gone]
    picked = np.arange(len(left))[
        slice(array_of(node, 1)[0], array_of(node, 2)[0], array_of(node, 4)[0])
    ]
    assert [left[i] for i in picked] == [i for i in (0, 2, 4) if i not in gone]


def test_a_slice_without_a_pattern_gathers_first() -> None:
    model = model_from_text(
        "g (float[N,3,6,6] x) => (float[N,2,6,6] y) "
        "{ h = Conv(x, a) t = Relu(h) r = Slice(t, s, e, i, k) z = Conv(r, c) w = Conv(t, d) "
        "y = Add(z, w) }",
        a=draw(9, 3, 1, 1), c=draw(2, 5, 1, 1), d=draw(2, 9, 1, 1),
        s=np.array([0]), e=np.array([9]), i=np.array([1]), k=np.array([2]),
    )  # fmt: skip
    cut_at(model, 0, [1, 5, 7], IMAGE)
    assert array_of(find(model, "Gather"), 1) == [0, 1, 3, 4, 5]
    assert find(model, "Slice").outputs[0].name == "r"


def test_indices_are_counted_anew() -> None:
    model = model_from_text(
        TWO.format("r = Gather<axis=1>(h, i)"), **FOUR_FIVE, c=draw(5, 4, 1, 1),
        i=np.array([3, 1, -2, 0]),
    )  # fmt: skip
    cut_at(model, 0, [1], IMAGE)
    assert array_of(find(model, "Gather"), 1) == [2, 1, 0]


def test_padding_shrinks_with_its_axis() -> None:
    model = model_from_text(
        "g (float[N,3,6,6] x) => (float[N,5,6,6] y) { h = Conv(x, a, b) r = Pad(h, p) "
        "s = Conv(x, e) t = Add(r, s) y = Conv(t, c, d) }",
        **FOUR_FIVE, c=draw(5, 7, 1, 1), e=draw(7, 3, 1, 1),
        p=np.array([0, 1, 0, 0, 0, 2, 0, 0]),
    )  # fmt: skip
    cut_at(model, 3, [0, 2, 6], IMAGE)
    assert array_of(find(model, "Pad"), 1) == [0, 0, 0, 0, 0, 1, 0, 0]
    assert model.graph.initializers["a"].shape[0] == 3


def test_constant_targets_of_reshape_keep_their_other_entries() -> None:
    body = "f = Reshape(h, t) r = Reshape(f, u)"
    model = model_from_text(
        TWO.format(body), **FOUR_FIVE, c=draw(5, 4, 1, 1),
        t=np.array([0, 4, -1]), u=np.array([-1, 4, 6, 6]),
    )  # fmt: skip
    cut_at(model, 0, [0], IMAGE)
    one, other = (node for node in model.graph if node.op_type == "Reshape")
    assert array_of(one, 1) == [0, 3, -1]
    assert array_of(other, 1) == [-1, 3, 6, 6]


SIZES = "z = Shape(h) n = Gather(z, k0) c1 = Gather(z, k1) n1 = Unsqueeze(n, k) "


def test_computed_targets_follow_by_themselves_or_are_written() -> None:
    body = SIZES + "m1 = Unsqueeze(c1, k) t = Concat<axis=0>(n1, m1, l) r = Reshape(h, t)"
    constants = {"k0": np.array(0), "k1": np.array(1), "k": np.array([0]), "l": np.array([6, 6])}
    model = model_from_text(TWO.format(body), **FOUR_FIVE, c=draw(5, 4, 1, 1), **constants)
    cut_at(model, 0, [0], IMAGE)
    assert find(model, "Reshape").inputs[1] is find(model, "Concat").outputs[0]
    body = SIZES + "t = Concat<axis=0>(n1, l) r = Reshape(h, t)"
    constants["l"] = np.array([4, 6, 6])
    del constants["k1"]
    body = body.replace("c1 = Gather(z, k1) ", "")
    model = model_from_text(TWO.format(body), **FOUR_FIVE, c=draw(5, 4, 1, 1), **constants)
    cut_at(model, 0, [0], IMAGE)
    assert array_of(find(model, "Reshape"), 1) == [0, 3, 6, 6]


def test_targets_that_are_put_together_stay_so_and_are_written_once() -> None:
    model = model_from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        agraph (float[n,t,4] x, int64[n,t] ids) => (float[n,t,3] y)
        <float[4,6] w, float[6,3] v, int64[1] heads = {3}, int64[1] each = {2},
         int64 axis = {0}, int64 second = {1}, int64[1] zero = {0}>
        {
            h = MatMul (x, w)
            sizes = Shape (ids)
            a = Gather (sizes, axis)
            n = Unsqueeze (a, zero)
            b = Gather (sizes, second)
            t = Unsqueeze (b, zero)
            target = Concat <axis = 0> (n, t, heads, each)
            q = Reshape (h, target)
            k = Relu (h)
            r = Reshape (k, target)
            s = Add (q, r)
            whole = Constant <value = int64[3] {0, 0, -1}> ()
            f = Reshape (s, whole)
            y = MatMul (f, v)
        }
        """,
        w=draw(4, 6),
        v=draw(6, 3),
    )
    feed = {"x": draw(2, 5, 4), "ids": np.zeros((2, 5), np.int64)}
    cut_at(model, 0, [2, 3], feed)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("Gather") == 2
    assert kinds.count("Concat") == 1
    targets = {node.inputs[1] for node in model.graph if node.op_type == "Reshape"}
    assert len(targets) == 2
    assert all(value.uses() for value in model.graph.initializers.values())


def test_a_size_that_is_a_number_stays_what_it_was() -> None:
    body = "z = Shape(h) s = Gather(z, k1) f = Cast<to=1>(s) q = Sqrt(f) e = Relu(h) r = Div(e, q)"
    model = model_from_text(
        TWO.format(body), **FOUR_FIVE, c=draw(5, 4, 1, 1), k1=np.array(1)
    )  # fmt: skip
    cut_at(model, 0, [0, 1], IMAGE)
    assert array_of(find(model, "Cast"), 0) == 4


def test_batch_and_heads_on_one_axis_keep_the_batch_free() -> None:
    text = """g (float[N,5,4] x) => (float[N,5,3] y) {
        h = MatMul(x, a) h4 = Reshape(h, s4) t = Transpose<perm=[0,2,1,3]>(h4)
        z = Shape(x) n = Slice(z, k0, k1) m = Mul(n, heads) f = Concat<axis=0>(m, rest)
        q = Reshape(t, f) o = MatMul(q, w) p = Concat<axis=0>(n, heads, rest)
        b = Reshape(o, p) u = Transpose<perm=[0,2,1,3]>(b) e = Reshape(u, flat)
        y = MatMul(e, c) }"""
    model = model_from_text(
        text, a=draw(4, 8), w=draw(2, 2), c=draw(8, 3), s4=np.array([0, 5, 4, 2]),
        k0=np.array([0]), k1=np.array([1]), heads=np.array([4]), rest=np.array([5, 2]),
        flat=np.array([0, 5, -1]),
    )  # fmt: skip
    shapes = observe_shapes(model, Context())
    coupling = couple(model, shapes)
    heads = [c for c in coupling.components if c.atoms.size == 4]
    if not heads:
        pytest.skip("heads stay here: the axis of batch and heads is frozen")
    alive = coupling.all_alive()
    alive[heads[0].atoms[1]] = False
    masked = model.clone()
    mask(masked, couple(masked, shapes), alive)
    cut(model, coupling, alive)
    for batch in (1, 3):
        feed = {"x": draw(batch, 5, 4)}
        one, other = support.run(masked, feed)["y"], support.run(model, feed)["y"]
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_constant_that_a_body_reads_stays_whole() -> None:
    text = """g (float[2,3,6,6] x, bool f) => (float[2,5,6,6] y, float[4] z) {
        h = Conv(x, a, b) r = Relu(h) y = Conv(r, c, d)
        z = If(f) <then_branch = t () => (float[4] t1) { t1 = Identity(b) },
                   else_branch = e () => (float[4] e1) { e1 = Neg(b) }> }"""
    model = model_from_text(text, **FOUR_FIVE, c=draw(5, 4, 1, 1))
    cut_at(model, 0, [1, 3], {**IMAGE, "f": np.array(True)})
    assert model.graph.initializers["b"].shape.numpy() == (4,)
    assert model.graph[0].inputs[2].shape.numpy() == (2,)


def test_declared_shapes_follow() -> None:
    model = model_from_text(TWO.format("r = Relu(h)"), **FOUR_FIVE, c=draw(5, 4, 1, 1))
    value = model.graph[0].outputs[0]
    value.shape = ir.Shape(["N", 4, 6, 6])
    cut_at(model, 0, [1], IMAGE)
    assert list(value.shape) == [ir.SymbolicDim("N"), 3, 6, 6]


def test_squeeze_does_not_take_an_axis_that_became_one() -> None:
    text = """g (float[2,3,1,1] x) => (float[2,5] y) {
        h = Conv(x, a) r = Squeeze(h) y = MatMul(r, c) }"""
    model = model_from_text(text, a=draw(4, 3, 1, 1), c=draw(4, 5))
    cut_at(model, 0, [0, 1, 2], {"x": draw(2, 3, 1, 1)})
    assert array_of(find(model, "Squeeze"), 1) == [2, 3]


def test_an_axis_must_keep_an_index() -> None:
    model = model_from_text(TWO.format("r = Relu(h)"), **FOUR_FIVE, c=draw(5, 4, 1, 1))
    coupling = couple(model, observe_shapes(model, Context()))
    with pytest.raises(ValueError, match="nothing would be left of axis 1 of 'h'"):
        cut(model, coupling, np.zeros(coupling.size, bool))


def test_nothing_to_remove_changes_nothing() -> None:
    model = model_from_text(TWO.format("r = Relu(h)"), **FOUR_FIVE, c=draw(5, 4, 1, 1))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    coupling = couple(model, observe_shapes(model, Context()))
    assert cut(model, coupling, coupling.all_alive()) == {}
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
