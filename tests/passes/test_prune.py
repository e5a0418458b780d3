"""Magnitude pruning: exact counts, element types, ties, scopes, what is left alone."""

from __future__ import annotations

import os

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support import model_from_text, run

import converter
from converter.core import graph as g
from converter.core.context import Context
from converter.core.tensors import FileHandle, FileTensor, MappedTensor
from converter.errors import ParameterError
from passes.allocation import order
from passes.importance.magnitude import Magnitude, drop_below
from passes.prune import Prune
from passes.sparsity.layers import MARK

TWO = "g (float[N,8] x) => (float[N,6] y) { h = MatMul(x, W1) r = Relu(h) y = Gemm(r, W2, b) }"
TYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]


def two(seed: int = 0, scale: float = 1.0) -> ir.Model:
    rng = np.random.default_rng(seed)
    return model_from_text(
        TWO,
        W1=rng.standard_normal((8, 16)).astype(np.float32),
        W2=scale * rng.standard_normal((16, 6)).astype(np.float32),
        b=rng.standard_normal(6).astype(np.float32) * 1e-3,
    )


def weight(model: ir.Model, name: str) -> np.ndarray:
    return model.graph.initializers[name].const_value.numpy()


def zeros(*arrays: np.ndarray) -> int:
    return sum(int((a == 0).sum()) for a in arrays)


def expected_global(arrays: list[np.ndarray], sparsity: float) -> list[np.ndarray]:
    """Stable sort by magnitude: the slow and obvious way."""
    flat = np.concatenate([a.reshape(-1).astype(np.float64) for a in arrays])
    index = np.argsort(np.abs(flat), kind="stable")[: round(sparsity * flat.size)]
    flat[index] = 0
    parts = np.split(flat, np.cumsum([a.size for a in arrays])[:-1])
    return [p.reshape(a.shape).astype(a.dtype) for p, a in zip(parts, arrays, strict=True)]


def cut(arrays: list[np.ndarray], plans: list[order.Plan]) -> list[np.ndarray]:
    done = []
    for array, plan in zip(arrays, plans, strict=True):
        tensor = ir.tensor(array)
        done.append(MappedTensor(tensor, plan.cut).numpy() if plan.cut else array)
    return done


@pytest.mark.parametrize("sparsity", [0.0, 0.013, 0.3, 0.5, 0.7, 0.999])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_count_is_exact(sparsity: float, scope: str) -> None:
    model = two(scale=0.01)
    before = [weight(model, "W1"), weight(model, "W2")]
    outcome = Prune(sparsity=sparsity, scope=scope).apply(model, Context())
    after = [weight(model, "W1"), weight(model, "W2")]
    groups = [before] if scope == "global" else [[a] for a in before]
    wanted = [a for group in groups for a in expected_global(group, sparsity)]
    for array, good in zip(after, wanted, strict=True):
        np.testing.assert_array_equal(array, good)
    assert outcome.counts["weights_zeroed"] == zeros(*after)
    assert outcome.counts["weights_total"] == 8 * 16 + 16 * 6
    assert outcome.modified == (zeros(*after) > 0)
    assert outcome.counts["sparsity"] == pytest.approx(zeros(*after) / 224)


def test_global_takes_from_the_smaller_tensor() -> None:
    model = two(scale=1e-4)
    Prune(sparsity=96 / 224, scope="global").apply(model, Context())
    assert zeros(weight(model, "W2")) == 96
    assert zeros(weight(model, "W1")) == 0


def test_model_still_runs_and_shared_buffers_stay() -> None:
    model = two()
    original = weight(model, "W1").copy()
    clone = model.clone()
    Prune(sparsity=0.9).apply(clone, Context())
    np.testing.assert_array_equal(weight(model, "W1"), original)
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    hidden = np.maximum(x @ weight(clone, "W1"), 0)
    expected = hidden @ weight(clone, "W2") + weight(clone, "b")
    np.testing.assert_allclose(run(clone, {"x": x})["y"], expected, rtol=1e-5, atol=1e-5)
    assert zeros(weight(clone, "b")) == 0


def test_second_run_changes_nothing() -> None:
    model = two()
    first = Prune(sparsity=0.6).apply(model, Context())
    again = Prune(sparsity=0.6).apply(model, Context())
    less = Prune(sparsity=0.2).apply(model, Context())
    assert first.modified
    assert not again.modified
    assert not less.modified
    assert again.counts["weights_zeroed"] == 0
    assert again.counts["zeros_before"] == first.counts["zeros_after"]


def test_existing_zeros_count() -> None:
    array = np.zeros((8, 16), np.float32)
    array[0] = np.arange(1, 17)
    array[1, :8] = -0.0
    model = model_from_text(
        "g (float[N,8] x) => (float[N,16] y) { y = MatMul(x, W) }", W=array.copy()
    )
    assert not Prune(sparsity=0.875).apply(model, Context()).modified
    outcome = Prune(sparsity=120 / 128).apply(model, Context())
    assert outcome.counts["weights_zeroed"] == 8
    assert zeros(weight(model, "W")) == 120
    assert weight(model, "W")[0, 8:].tolist() == list(range(9, 17))


def test_threshold_is_strict_and_absolute() -> None:
    array = np.array([[0.01, -0.01, 0.0099999], [-0.009, 0.5, 0.0]], np.float32)
    model = model_from_text("g (float[N,2] x) => (float[N,3] y) { y = MatMul(x, W) }", W=array)
    outcome = Prune(threshold=float(np.float32(0.01))).apply(model, Context())
    assert weight(model, "W").tolist() == [[array[0, 0], array[0, 1], 0], [0, 0.5, 0]]
    assert outcome.counts["weights_zeroed"] == 2
    assert not Prune(threshold=0.0).apply(model, Context()).modified
    # 0.1 is no float32 number: the nearest one lies above it and must stay
    array = np.array([[np.float32(0.1), np.nextafter(np.float32(0.1), 0, dtype=np.float32)]])
    model = model_from_text("g (float[N,1] x) => (float[N,2] y) { y = MatMul(x, W) }", W=array)
    Prune(threshold=0.1).apply(model, Context())
    assert (weight(model, "W") == 0).tolist() == [[False, True]]


@pytest.mark.parametrize("kind", TYPES)
def test_threshold_beyond_the_type(kind: type) -> None:
    array = np.array([[1, -2], [3, 4]]).astype(kind)
    plan = order.plan_below(ir.tensor(array), 1e300)
    assert zeros(*cut([array], [plan])) == 4


def test_parameters_exclude_each_other() -> None:
    with pytest.raises(ParameterError, match="exclude each other"):
        Prune(sparsity=0.5, threshold=0.1)
    with pytest.raises(ParameterError, match="threshold"):
        Prune(threshold=float("inf"))
    with pytest.raises(ParameterError, match=r"(?s)sparsity.*scope"):
        Prune(sparsity=1.0, scope="everywhere")
    with pytest.raises(ParameterError, match=r"pattern=2:4 makes 0\.5"):
        Prune(pattern="2:4", sparsity=0.0)
    with pytest.raises(ParameterError, match="nothing for scope=global to decide"):
        Prune(pattern="2:4", scope="global")
    assert Prune(pattern="2:4", scope="local").sparsity == 0.5
    assert Prune(pattern="1:3", sparsity=0.67) == Prune(pattern="1:3")
    assert Prune(include=["a"]).include == ("a",)
    assert Prune() == Prune(sparsity=0.5)
    assert Prune(threshold=0.1).sparsity is None


@pytest.mark.parametrize("kind", TYPES)
def test_element_types(kind: type) -> None:
    rng = np.random.default_rng(3)
    array = rng.standard_normal((50, 40)).astype(kind)
    array[0, :5] = [0, -0.0, np.finfo(np.float16).smallest_subnormal, np.inf, -np.inf]
    for sparsity in (0.001, 0.25, 0.9):
        plans = order.plan([ir.tensor(array)], sparsity)
        (after,) = cut([array], plans)
        (good,) = expected_global([array], sparsity)
        np.testing.assert_array_equal(after.astype(np.float64), good.astype(np.float64))


def test_mixed_element_types_are_compared_by_value() -> None:
    rng = np.random.default_rng(4)
    arrays = [rng.standard_normal((9, 7 + i)).astype(kind) for i, kind in enumerate(TYPES)]
    for sparsity in np.linspace(0.01, 0.99, 23):
        after = cut(arrays, order.plan([ir.tensor(a) for a in arrays], float(sparsity)))
        good = expected_global(arrays, float(sparsity))
        for a, b in zip(after, good, strict=True):
            np.testing.assert_array_equal(a.astype(np.float64), b.astype(np.float64))


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small tensors take the way of large ones: many chunks, sample, bracket."""
    monkeypatch.setattr(order, "_CHUNK", 1 << 10)
    monkeypatch.setattr(order, "_COLLECT", 2000)
    monkeypatch.setattr(order, "_RUNS", 64)
    monkeypatch.setattr(order, "_RUN", 16)


LARGE = {
    "normal": lambda rng: rng.standard_normal((200, 300)),
    "few distinct": lambda rng: np.round(rng.standard_normal((200, 300)) * 4) / 4,
    "one value": lambda rng: np.where(rng.random((200, 300)) < 0.5, 0.25, -0.25),
    "sorted": lambda rng: np.sort(rng.standard_normal(60_000)).reshape(200, 300),
    "rows of scales": lambda rng: rng.standard_normal((200, 300)) * 10.0 ** rng.integers(-9, 9),
    "half zero": lambda rng: np.maximum(rng.standard_normal((200, 300)), 0),
    "tiny": lambda rng: rng.standard_normal((200, 300)) * 1e-40,
}


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("case", LARGE)
@pytest.mark.parametrize("sparsity", [0.0001, 0.3, 0.7, 0.99999])
def test_streaming_finds_the_same_weights(case: str, sparsity: float) -> None:
    rng = np.random.default_rng(5)
    arrays = [LARGE[case](rng).astype(np.float32) for _ in range(3)]
    after = cut(arrays, order.plan([ir.tensor(a) for a in arrays], sparsity))
    for a, b in zip(after, expected_global(arrays, sparsity), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("kind", TYPES)
def test_radix_search_is_exact(kind: type) -> None:
    rng = np.random.default_rng(6)
    arrays = [rng.standard_normal(5000).astype(kind), rng.standard_normal(3000).astype(kind)]
    tensors = [ir.tensor(a) for a in arrays]
    space = Magnitude.of(tensors)
    keys = np.sort(np.concatenate([space.keys(a) for a in arrays]))
    for rank in (1, 2, 400, 4000, 7999, 8000):
        assert order._radix(tensors, space, rank) == keys[rank - 1]


@pytest.mark.usefixtures("small_steps")
def test_wrong_bracket_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    array = rng.standard_normal((100, 100)).astype(np.float32)
    (good,) = expected_global([array], 0.5)
    for bracket in [(0, 5), (2**30, 2**30 + 9), (0, 2**31 - 1), (7, 7)]:
        monkeypatch.setattr(order, "_bracket", lambda *_, found=bracket: found)
        (after,) = cut([array], order.plan([ir.tensor(array)], 0.5))
        np.testing.assert_array_equal(after, good)


def test_cut_is_pure_and_does_not_depend_on_chunks() -> None:
    array = np.tile(np.array([0.5, -0.5, 1, 2], np.float32), 100)
    (plan,) = order.plan([ir.tensor(array)], 0.2)
    assert plan.cut is not None
    whole = plan.cut(array, 0)
    assert zeros(whole) == 80
    for size in (1, 3, 64, 157):
        parts = [plan.cut(array[i : i + size], i) for i in range(0, array.size, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("kind", TYPES)
def test_drop_below_at_the_ends_of_the_keys(kind: type) -> None:
    space = Magnitude(np.dtype(kind))
    array = np.array([0.0, -1.0, 2.0, np.inf, -np.inf, np.nan]).astype(kind)
    assert drop_below(array, 0).tobytes() == array.tobytes()
    everything = drop_below(array, space.infinity + 1)
    assert zeros(everything[:-1]) == 5
    assert np.isnan(everything[-1].astype(np.float64))


@pytest.mark.usefixtures("small_steps")
def test_reads_files_and_mapped_tensors(tmp_path) -> None:
    rng = np.random.default_rng(8)
    array = rng.standard_normal((400, 50)).astype(np.float32)
    path = tmp_path / "w.bin"
    path.write_bytes(b"12345678" + array.tobytes())
    handle = FileHandle(os.open(path, os.O_RDONLY), str(path))
    lazy = FileTensor(handle, 8, ir.DataType.FLOAT, ir.Shape(array.shape), name="w")
    for tensor in (lazy, MappedTensor(lazy, lambda chunk, _: chunk * 1)):
        (plan,) = order.plan([tensor], 0.7)
        (good,) = expected_global([array], 0.7)
        np.testing.assert_array_equal(MappedTensor(tensor, plan.cut).numpy(), good)


def test_large_weights_are_computed_when_written() -> None:
    rng = np.random.default_rng(9)
    model = model_from_text(
        "g (float[N,200] x) => (float[N,200] y) { y = MatMul(x, W) }",
        W=rng.standard_normal((200, 200)).astype(np.float32),
    )
    Prune(sparsity=0.7).apply(model, Context())
    value = model.graph.initializers["W"]
    assert isinstance(value.const_value, MappedTensor)
    assert value.meta[MARK] is True
    assert zeros(value.const_value.numpy()) == 28_000
    proto = ir.to_proto(model)
    assert zeros(onnx.numpy_helper.to_array(proto.graph.initializer[0])) == 28_000


def test_nan_weights_are_left_alone_and_named() -> None:
    model = two()
    array = weight(model, "W1").copy()
    array[0, 0] = np.nan
    g.set_constant(model.graph.initializers["W1"], array)
    outcome = Prune(sparsity=0.5).apply(model, Context())
    assert [(s.subject, s.reason) for s in outcome.skipped] == [("W1", "holds NaN")]
    assert outcome.counts["weights_total"] == 96
    assert zeros(weight(model, "W2")) == 48
    assert zeros(weight(model, "W1")) == 0


def reasons(outcome) -> dict[str, str]:
    return {s.subject: s.reason for s in outcome.skipped}


def test_include_and_exclude() -> None:
    model = two()
    outcome = Prune(sparsity=0.5, include=("op:Gemm", "nothing/*")).apply(model, Context())
    assert zeros(weight(model, "W1")) == 0
    assert zeros(weight(model, "W2")) == 48
    assert reasons(outcome) == {
        "W1": "not selected by include and exclude",
        "nothing/*": "matches no node",
    }
    model = two()
    Prune(sparsity=0.5, exclude=("y",)).apply(model, Context())
    assert zeros(weight(model, "W2")) == 0


def test_overridable_initializer_is_left_alone() -> None:
    model = model_from_text(
        "g (float[N,8] x, float[8,8] W) => (float[N,8] y) { y = MatMul(x, W) }",
        W=np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32),
    )
    outcome = Prune().apply(model, Context())
    assert not outcome.modified
    assert reasons(outcome) == {
        "W": "it is an input that callers may override (the pass freeze changes that)"
    }


def test_weight_with_another_use_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    model = model_from_text(
        "g (int64[N] i) => (float[N,32] y) { e = Gather(W, i) T = Transpose(W) y = MatMul(e, T) }",
        W=rng.standard_normal((32, 8)).astype(np.float32),
    )
    outcome = Prune().apply(model, Context())
    assert reasons(outcome) == {"W": "also used by Gather"}


@pytest.mark.parametrize("end", ["y = Add(z, T)", "y = Identity(z) v = Identity(T)", ""])
def test_view_with_another_use_is_left_alone(end: str) -> None:
    outputs = "float[8,8] z, float[8,8] T" if not end else "float[8,8] y"
    model = model_from_text(
        f"g (float[8,8] x) => ({outputs}) {{ T = Transpose(W) z = MatMul(x, T) {end} }}",
        W=np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32),
    )
    outcome = Prune().apply(model, Context())
    expected = {"y = Add(z, T)": "also used by Add", "": "also an output of the graph"}
    assert reasons(outcome) == {"W": expected.get(end, "also used by Identity")}
    assert not outcome.modified


def test_shared_weight_counts_once_and_views_are_followed() -> None:
    rng = np.random.default_rng(0)
    model = model_from_text(
        """g (float[N,8] x) => (float[N,8] y) {
        T = Transpose<perm = [1, 0]>(W) a = MatMul(x, T) h = Cast<to = 1>(H)
        c = MatMul(a, h) y = MatMul(c, W) }""",
        W=rng.standard_normal((8, 8)).astype(np.float32),
        H=rng.standard_normal((8, 8)).astype(np.float16),
    )
    outcome = Prune(sparsity=0.25).apply(model, Context())
    assert outcome.counts["weights_total"] == 128
    assert zeros(weight(model, "W"), weight(model, "H")) == 32
    assert weight(model, "H").dtype == np.float16


def test_quantized_parts_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    model = model_from_text(
        """g (float[N,8] x) => (float[N,8] y) {
        w = DequantizeLinear(Q, s) a = MatMul(x, w) y = MatMul(a, F) }""",
        Q=rng.integers(-127, 128, (8, 8)).astype(np.int8),
        s=np.float32(0.1),
        F=rng.standard_normal((8, 8)).astype(np.float32),
    )
    outcome = Prune().apply(model, Context())
    assert outcome.counts["weights_total"] == 64
    assert [s.reason for s in outcome.skipped] == ["already quantized"]
    assert zeros(weight(model, "F")) == 32


def test_subgraphs_functions_and_constant_nodes() -> None:
    rng = np.random.default_rng(0)
    text = """<ir_version: 8, opset_import: ["": 17, "local": 1]>
    g (float[N,4] x, bool c) => (float[N,4] y)
    <float[4,4] W = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}> {
      h = If(c) <then_branch = t () => (float[N,4] a) <float[4,4] V =
        {17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32}> { a = MatMul(x, V) },
        else_branch = e () => (float[N,4] b) { b = MatMul(x, W) }>
      y = local.f(h)
    }
    <domain: "local", opset_import: ["": 17]>
    f (p) => (q) {
      k = Constant<value = float[4,4] {33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48}>()
      q = MatMul(p, k)
    }"""
    model = model_from_text(text)
    outcome = Prune(scope="global", sparsity=40 / 48).apply(model, Context())
    assert outcome.counts["weights_zeroed"] == 40
    x = rng.standard_normal((2, 4)).astype(np.float32)
    kept = np.zeros((4, 4), np.float32)
    kept[2:] = np.arange(41, 49).reshape(2, 4)
    # 40 smallest of 1 to 48: both branches and the first half of the function's constant
    for flag in (True, False):
        result = run(model, {"x": x, "c": np.array(flag)})["y"]
        np.testing.assert_array_equal(result, np.zeros((2, 4)))
    (function,) = model.functions.values()
    np.testing.assert_array_equal(g.constant_array(function[0].outputs[0]), kept)
    assert not Prune(scope="global", sparsity=40 / 48).apply(model, Context()).modified


def test_recurrent_and_convolution_weights() -> None:
    rng = np.random.default_rng(0)
    model = model_from_text(
        """g (float[N,2,6,6] x, float[T,B,3] s) => (y, h) {
        y = Conv(x, C, cb) o, h = GRU<hidden_size = 5>(s, W, R, B) }""",
        C=rng.standard_normal((4, 2, 3, 3)).astype(np.float32),
        cb=np.full(4, 1e-6, np.float32),
        W=rng.standard_normal((1, 15, 3)).astype(np.float32),
        R=rng.standard_normal((1, 15, 5)).astype(np.float32),
        B=np.full((1, 30), 1e-6, np.float32),
    )
    outcome = Prune(sparsity=0.5).apply(model, Context())
    assert outcome.counts["weights_total"] == 72 + 45 + 75
    assert zeros(*(weight(model, n) for n in "CWR")) == 96
    assert zeros(weight(model, "cb"), weight(model, "B")) == 0


def test_model_without_weights() -> None:
    model = model_from_text("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    outcome = Prune().apply(model, Context())
    assert not outcome.modified
    assert outcome.counts["sparsity"] == 0.0


def test_steps_with_data_leave_a_model_alone_in_which_nothing_may_be_pruned() -> None:
    text = """g (float[4,4] x) => (float[4,4] y) {
        T = Transpose (W)
        a = MatMul (x, T)
        y = Add (a, W)
    }"""
    data = {"x": np.ones((16, 4, 4), np.float32)}
    model = model_from_text(text, W=np.arange(16, dtype=np.float32).reshape(4, 4))
    found = converter.convert(model, passes="prune:steps=3", data=data)
    assert not found.report.steps[0].outcome.modified


def test_notes_are_honest() -> None:
    model = two()
    outcome = Prune(sparsity=0.5).apply(model, Context())
    assert any("dense" in note for note in outcome.notes)
    model = two(scale=1e-6)
    outcome = Prune(sparsity=0.5, scope="global").apply(model, Context())
    assert any("zero throughout" in note for note in outcome.notes)
