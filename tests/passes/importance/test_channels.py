"""Scores of channels, heads and hidden units, compared with sums done by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from support import model_from_text

sys.path.insert(0, str(Path(__file__).parents[1] / "affine"))
from samples import context_for

from converter.core.context import Context
from converter.coupling.couple import couple
from converter.coupling.shapes import observe_shapes
from passes.importance.channels import CRITERIA, Evidence, observe_powers, outliers, score


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def coupled(model):
    return couple(model, observe_shapes(model, Context()))


def scores(model, name, index=0, **evidence):
    coupling = coupled(model)
    return score(name, coupling.components[index], coupling, Evidence(**evidence))


PLAIN = "g (float[N,3] x) => (float[N,2] y) { h = Gemm(x, a)  r = Relu(h)  y = MatMul(r, c) }"
RESIDUAL = (
    "g (float[N,3,7,7] x) => (float[N,2,3,3] y) { h = Conv(x, a)  d = Conv<group=4>(h, k)"
    "  e = Conv(x, b)  s = Add(d, e)  r = Relu(s)  y = Conv(r, c) }"
)


def plain():
    return model_from_text(PLAIN, a=draw(3, 4), c=draw(4, 2))


def residual():
    parts = {"a": draw(4, 3, 3, 3), "k": draw(4, 1, 3, 3), "b": draw(4, 3, 5, 5)}
    return parts, model_from_text(RESIDUAL, **parts, c=draw(2, 4, 1, 1))


def relative(numbers):
    return numbers / numbers.mean()


def test_norms_of_one_layer_and_its_reader():
    a, c = draw(3, 4).astype(float), draw(4, 2).astype(float)
    expected = np.sqrt((a**2).sum(axis=0) + (c**2).sum(axis=1))
    np.testing.assert_allclose(scores(plain(), "l2"), relative(expected), rtol=1e-5)
    expected = np.abs(a).sum(axis=0) + np.abs(c).sum(axis=1)
    np.testing.assert_allclose(scores(plain(), "l1"), relative(expected), rtol=1e-5)


def test_norms_over_all_layers_of_a_stream():
    parts, model = residual()
    made = sum((p.astype(float) ** 2).sum(axis=(1, 2, 3)) for p in parts.values())
    read = (draw(2, 4, 1, 1).astype(float) ** 2).sum(axis=(0, 2, 3))
    np.testing.assert_allclose(scores(model, "l2"), relative(np.sqrt(made + read)), rtol=1e-5)


def test_wanda_is_the_share_of_the_readers_power():
    columns = (draw(4, 2).astype(float) ** 2).sum(axis=1)
    model = plain()
    np.testing.assert_allclose(scores(model, "wanda"), columns / columns.sum(), rtol=1e-5)
    feeds = [{"x": draw(5, 3, seed=s)} for s in range(3)]
    coupling = coupled(model)
    powers = observe_powers(model, coupling, coupling.components, context_for(model, feeds=feeds))
    x = np.concatenate([f["x"] for f in feeds]).astype(float)
    weighted = columns * (np.maximum(x @ draw(3, 4), 0) ** 2).mean(axis=0)
    given = score("wanda", coupling.components[0], coupling, Evidence(powers))
    np.testing.assert_allclose(given, weighted / weighted.sum(), rtol=1e-5)


def test_wanda_of_grouped_and_flattened_readers():
    text = (
        "g (float[N,3,5,5] x) => (float[N,6,3,3] y, float[N,2] z) {"
        " h = Conv(x, a)  y = Conv<group=2>(h, c)  f = Flatten(h)  z = Gemm(f, d) }"
    )
    a, c, d = draw(4, 3, 1, 1), draw(6, 2, 3, 3), draw(100, 2)
    model = model_from_text(text, a=a, c=c, d=d)
    coupling = coupled(model)
    # the channels of both groups at one position go together: 0 with 2, 1 with 3
    found = score("wanda", coupling.components[0], coupling, Evidence())
    grouped = (c.astype(float) ** 2).reshape(2, 3, 2, 9).sum(axis=(1, 3)).reshape(-1)
    flat = (d.astype(float) ** 2).reshape(4, 25, 2).sum(axis=(1, 2))
    shares = grouped / grouped.sum() + flat / flat.sum()
    if found.size == 2:
        shares = shares.reshape(2, 2).sum(axis=0)
    np.testing.assert_allclose(found, shares, rtol=1e-5)


def test_scales_of_normalizations():
    text = (
        "g (float[N,3,5,5] x) => (float[N,2,3,3] y) { h = Conv(x, a)"
        "  n = BatchNormalization(h, s, t, t, v)  r = Relu(n)  y = Conv(r, c) }"
    )
    s = np.array([0.1, -2, 0.5, 1], np.float32)
    model = model_from_text(
        text, a=draw(4, 3, 3, 3), s=s, t=draw(4), v=np.ones(4, np.float32), c=draw(2, 4, 1, 1)
    )
    np.testing.assert_allclose(scores(model, "bn"), np.abs(s))
    rows = np.sqrt((draw(3, 4).astype(float) ** 2).sum(axis=0))
    np.testing.assert_allclose(scores(plain(), "bn"), relative(rows), rtol=1e-5)


def test_lipschitz_constants_are_spectral_norms_with_the_normalization_folded_in():
    text = (
        "g (float[N,3,5,5] x) => (float[N,2,3,3] y) { h = Conv(x, a)"
        "  n = BatchNormalization<epsilon=0.0>(h, s, t, t, v)  r = Relu(n)  y = Conv(r, c) }"
    )
    a, s, v = draw(32, 3, 3, 3), draw(32), np.abs(draw(32, seed=1)) + 0.5
    s[7], v[7] = 9, 0.5
    model = model_from_text(text, a=a, s=s, t=draw(32), v=v, c=draw(2, 32, 1, 1))
    constants = np.array([
        np.linalg.svd(kernel.reshape(3, 9).astype(float), compute_uv=False)[0] for kernel in a
    ]) * np.abs(s) / np.sqrt(v)  # fmt: skip
    found = scores(model, "clp")
    np.testing.assert_allclose(
        found, -(constants - constants.mean()) / constants.std(), rtol=1e-4, atol=1e-5
    )
    assert np.flatnonzero(outliers(found)).tolist() == [7]
    assert not outliers(found, 100).any()


def test_random_orders_depend_on_seed_and_component():
    model = residual()[1]
    same = scores(model, "random", seed=3)
    np.testing.assert_array_equal(same, scores(model, "random", seed=3))
    assert not np.array_equal(same, scores(model, "random", seed=4))


def test_quantized_weights_count_as_what_they_stand_for():
    text = (
        "g (float[N,3] x) => (float[N,2] y) { a = DequantizeLinear<axis=1>(q, scale, zero)"
        "  h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, c) }"
    )
    q = np.array([[100, 5, -3, 7], [1, 2, 3, 4], [-9, 8, 7, 6]], np.int8)
    scale = np.array([0.01, 1, 0.5, 0.1], np.float32)
    model = model_from_text(
        text, q=q, scale=scale, zero=np.array([0, 1, 0, 0], np.int8), c=np.zeros((4, 2), np.float32)
    )
    rows = np.sqrt((((q.astype(float) - [0, 1, 0, 0]) * scale) ** 2).sum(axis=0))
    np.testing.assert_allclose(scores(model, "bn"), relative(rows), rtol=1e-5)


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_gives_numbers_for_every_component(name):
    a = draw(3, 4)
    a[:, 2] = 0
    models = [
        plain(),
        residual()[1],
        model_from_text(PLAIN, a=a, c=np.zeros((4, 2), np.float32)),
        model_from_text(
            "g (float[6,N,5] x) => (float[6,1,N,2] y) { h, l = GRU<hidden_size=4>(x, w, r)"
            "  s = Squeeze(h, one)  y, m = GRU<hidden_size=2>(s, u, t) }",
            w=draw(1, 12, 5), r=draw(1, 12, 4), u=draw(1, 6, 4), t=draw(1, 6, 2), one=np.array([1]),
        ),
    ]  # fmt: skip
    for model in models:
        coupling = coupled(model)
        assert coupling.components
        for component in coupling.components:
            found = score(name, component, coupling, Evidence())
            assert found.shape == component.atoms.shape
            assert found.dtype == np.float64
            assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ["l2", "l1", "wanda", "clp"])
def test_channels_with_weights_that_are_no_numbers_stay(name):
    a = draw(4, 3, 3, 3)
    a[1] = np.nan
    parts = {"k": draw(4, 1, 3, 3), "b": draw(4, 3, 5, 5), "c": draw(2, 4, 1, 1)}
    parts["c"][:, 1] = np.nan
    found = scores(model_from_text(RESIDUAL, a=a, **parts), name)
    assert not np.isnan(found).any()
    assert found[1] >= found.max() or name == "clp"
