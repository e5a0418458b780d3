"""Patterns, and the matrices they lie on, against checkers that know neither."""

from __future__ import annotations

import numpy as np
import pytest

from converter.core import graph as g
from converter.core.context import Context
from converter.core.select import Selection
from converter.errors import ParameterError
from passes.prune import Prune
from passes.sparsity import masks
from passes.sparsity.layers import find
from passes.sparsity.matrix import matrix_of
from passes.sparsity.patterns import Pattern, parse
from tests.support import model_from_text


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("unstructured", Pattern()),
        (" 2:4 ", Pattern("n:m", 2, 4)),
        ("4:8", Pattern("n:m", 4, 8)),
        ("1:2", Pattern("n:m", 1, 2)),
        ("1x4", Pattern("block", 1, 4)),
        ("16X16", Pattern("block", 16, 16)),
        ("1x1", Pattern()),
        ("row", Pattern("row")),
    ],
)
def test_forms(text: str, pattern: Pattern) -> None:
    assert parse(text) == pattern
    assert parse(pattern.text) == pattern


@pytest.mark.parametrize(
    "text", ["", "2", "4:4", "4:2", "0:4", "2:0", "0x4", "2:4:8", "-1:4", "2.5:4", "rows", "9999x1"]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="2:4 or 4:8"):
        Prune(pattern=text)


def layer_of(text: str, **constants: np.ndarray):
    layers, _ = find(model_from_text(text, **constants), Selection((), ()))
    return layers[0]


def numbers(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


CONV = numbers(4, 3, 2, 2)
DEEP = numbers(4, 3, 2, 2)  # ConvTranspose: two groups of 2 inputs and 3 outputs
RECURRENT = numbers(2, 12, 5)
VIEWS = {
    "conv": (
        "g (float[1,3,9,9] x) => (y) { y = Conv(x, w) }",
        CONV,
        [CONV[o].reshape(-1) for o in range(4)],
    ),
    "transposed": (
        "g (float[1,4,9,9] x) => (y) { y = ConvTranspose<group=2>(x, w) }",
        DEEP,
        [DEEP[2 * k : 2 * k + 2, o, i, j] for k in range(2) for o in range(3)
         for i in range(2) for j in range(2)],
    ),
    "right": ("g (float[N,5] x) => (y) { y = MatMul(x, w) }", numbers(5, 7), list(numbers(5, 7).T)),
    "left": ("g (float[5,N] x) => (y) { y = MatMul(w, x) }", numbers(7, 5), list(numbers(7, 5))),
    "batched": (
        "g (float[2,N,5] x) => (y) { y = MatMul(x, w) }",
        numbers(2, 5, 3),
        [numbers(2, 5, 3)[b, :, o] for b in range(2) for o in range(3)],
    ),
    "gemm": (
        "g (float[N,5] x) => (y) { y = Gemm<transB=1>(x, w) }",
        numbers(7, 5),
        list(numbers(7, 5)),
    ),
    "gemm left": (
        "g (float[5,N] x) => (y) { y = Gemm<transA=1>(w, x) }",
        numbers(5, 7),
        list(numbers(5, 7).T),
    ),
    "recurrent": (
        "g (float[T,1,5] x) => (y) "
        '{ y, h = GRU<hidden_size=4, direction="bidirectional">(x, w, r) }',
        RECURRENT,
        list(RECURRENT.reshape(24, 5)),
    ),
    "einsum": (
        'g (float[N,3,5] x) => (y) { y = Einsum<equation="nij,jki->nk">(x, w) }',
        numbers(5, 7, 3),
        [numbers(5, 7, 3)[:, k].reshape(-1) for k in range(7)],
    ),
    "turned": (
        "g (float[N,5] x) => (y) { t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }",
        numbers(7, 5),
        list(numbers(7, 5)),
    ),
    "shaped": (
        "g (float[N,6] x) => (y) <int64[2] s = {0, -1}> "
        "{ f = Reshape(w, s) t = Transpose(f) y = MatMul(x, t) }",
        numbers(4, 3, 2),
        list(numbers(4, 6)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VIEWS)
def test_rows_are_outputs_and_columns_are_summed(name: str) -> None:
    text, weight, rows = VIEWS[name]
    more = {"r": numbers(2, 12, 4)} if name == "recurrent" else {}
    matrix = matrix_of(layer_of(text, w=weight, **more))
    found = matrix.forward(weight)
    assert found.shape == (matrix.rows, matrix.columns)
    np.testing.assert_array_equal(found, np.stack(rows))
    np.testing.assert_array_equal(matrix.backward(found), weight)


def check_groups(rows: np.ndarray, keep: int, group: int) -> None:
    """Walk along every row and compare each group with its sorted magnitudes."""
    before, after = rows
    for one, two in zip(before, after, strict=True):
        whole = len(one) - len(one) % group
        for start in range(0, whole, group):
            there = [i for i in range(start, start + group) if two[i] != 0]
            order = sorted(range(start, start + group), key=lambda i: (-abs(one[i]), -i))
            assert there == sorted(order[:keep])
        np.testing.assert_array_equal(two[whole:], one[whole:])


@pytest.mark.parametrize("text", ["2:4", "1:4", "4:8", "3:5", "1:2"])
@pytest.mark.parametrize("seed", range(4))
def test_n_of_m(text: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keep, group = (int(part) for part in text.split(":"))
    inputs, outputs = rng.integers(3, 40, 2)
    weight = rng.choice(np.arange(1, 9), (outputs, inputs, 1, 3)).astype(np.float32)
    weight *= rng.choice([-1, 1], weight.shape)
    model = model_from_text(
        f"g (float[1,{inputs},4,9] x) => (y) {{ y = Conv(x, w) }}", w=weight.copy()
    )
    outcome = Prune(pattern=text).apply(model, Context())
    after = g.constant_array(model.graph.initializers["w"])
    check_groups((weight.reshape(outputs, -1), after.reshape(outputs, -1)), keep, group)
    assert outcome.counts["zeros_after"] == np.count_nonzero(after == 0)


def test_n_of_m_runs_along_the_inputs_of_a_product() -> None:
    weight = np.random.default_rng(0).standard_normal((16, 6)).astype(np.float32)
    model = model_from_text("g (float[N,16] x) => (y) { y = MatMul(x, w) }", w=weight.copy())
    Prune(pattern="2:4", sparsity=0.5).apply(model, Context())
    after = g.constant_array(model.graph.initializers["w"])
    check_groups((weight.T, after.T), 2, 4)


def test_a_share_that_the_pattern_does_not_give_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"makes 0.5 of the weights zero"):
        Prune(pattern="2:4", sparsity=0.7)
    with pytest.raises(ParameterError, match="nothing for allocation"):
        Prune(pattern="2:4", allocation="lamp")


@pytest.mark.parametrize("text", ["1x4", "4x4", "2x3", "3x1", "row"])
@pytest.mark.parametrize("share", [0.25, 0.6])
def test_blocks_go_as_a_whole(text: str, share: float) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((10, 21)).astype(np.float32)
    model = model_from_text("g (float[N,21] x) => (y) { y = Gemm<transB=1>(x, w) }", w=weight)
    Prune(pattern=text, sparsity=share).apply(model, Context())
    after = g.constant_array(model.graph.initializers["w"])
    high, wide = (1, 21) if text == "row" else (int(part) for part in text.split("x"))
    means, zeros = [], []
    for i in range(0, 10, high):
        for j in range(0, 21, wide):
            one, two = weight[i : i + high, j : j + wide], after[i : i + high, j : j + wide]
            assert not two.any() or (two == one).all()
            means.append(float(np.abs(one).mean(dtype=np.float64)))
            zeros.append(not two.any())
    assert max(m for m, z in zip(means, zeros, strict=True) if z) < min(
        m for m, z in zip(means, zeros, strict=True) if not z
    )
    assert abs(np.count_nonzero(after == 0) - share * 210) <= high * wide / 2


def test_blocks_of_several_layers_come_near_to_the_total() -> None:
    rng = np.random.default_rng(2)
    weights = {f"w{i}": rng.standard_normal((8, 8)).astype(np.float32) for i in range(5)}
    body = " ".join(f"h{i + 1} = MatMul(h{i}, w{i})" for i in range(5))
    model = model_from_text(f"g (float[N,8] h0) => (float[N,8] h5) {{ {body} }}", **weights)
    outcome = Prune(pattern="4x4", sparsity=0.37).apply(model, Context())
    assert abs(outcome.counts["zeros_after"] - 0.37 * 320) <= 8
    assert not Prune(pattern="4x4", sparsity=0.37).apply(model, Context()).modified


def test_equal_weights_go_by_index() -> None:
    ones = np.ones((2, 8), np.float32)
    assert masks.lowest(ones, 3).reshape(-1).nonzero()[0].tolist() == [0, 1, 2]
    assert parse("2:4").densest(ones)[0].tolist() == [True, True, False, False] * 2
    assert masks.lowest_units(ones, 8, parse("1x4"))[0].all()
    assert masks.lowest(np.array([np.nan, 1, np.nan, 0.5]), 3).tolist() == [True, True, False, True]
