"""The closed forms: least-squares target, rounding and bias of one layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import support

from converter.core.select import Selection
from passes.affine.placement import place
from passes.tuning.fit import Recipe, fit, shrunk_mean
from passes.tuning.layer import Layer, Moments, as_rows, from_rows


def layer_of(weight: np.ndarray, bias: np.ndarray, op: str = "Gemm <transB = 1>") -> Layer:
    model = support.model_from_text(
        f"one (float[N,{weight.shape[1]}] x) => (float[N,{weight.shape[0]}] y) "
        f"{{ y = {op} (x, w, b) }}",
        w=weight,
        b=bias,
    )
    (unit,) = place(model, Selection((), ())).units
    return Layer.of(unit, per_channel=True)


def moments_of(layer: Layer, floats: np.ndarray, students: np.ndarray) -> Moments:
    found = Moments(np.ascontiguousarray(layer.weight.swapaxes(1, 2), np.float32), second=True)
    for start in range(0, len(floats), 50):
        part = slice(start, start + 50)
        found.update(floats[part, None, :], students[part, None, :], samples=5)
    return found


@pytest.fixture
def data() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((12, 12))
    floats = (rng.standard_normal((400, 12)) @ mixing + 1.0).astype(np.float32)
    students = (np.round(floats * 2) / 2 + 0.2).astype(np.float32)
    weight = rng.standard_normal((6, 12)).astype(np.float32)
    return {"floats": floats, "students": students, "layer": layer_of(weight, np.ones(6, "f4"))}


def error(data: dict[str, Any], recipe: Recipe) -> float:
    layer = data["layer"]
    moments = moments_of(layer, data["floats"], data["students"])
    found = fit(layer, moments, recipe, input_scale=0.01)
    rounded = found.integers[0] * found.scales[:, None].astype(np.float64)
    wanted = data["floats"] @ layer.weight[0].T + layer.bias
    given = data["students"] @ rounded.T + found.bias
    return float(np.square(wanted - given).mean())


def test_each_step_makes_the_layer_more_exact(data: dict[str, Any]) -> None:
    plain = error(data, Recipe("nearest", "none", bits=4))
    means = error(data, Recipe("nearest", "student", bits=4))
    best = error(data, Recipe("gptq", "student", ridge=0.01, bits=4))
    assert means < 0.8 * plain
    assert best < 0.75 * means


def test_a_strong_ridge_stays_at_the_weight(data: dict[str, Any]) -> None:
    layer = data["layer"]
    moments = moments_of(layer, data["floats"], data["students"])
    near = fit(layer, moments, Recipe("gptq", "none", ridge=1e6), 0.01)
    plain = fit(layer, moments, Recipe("nearest", "none"), 0.01)
    assert np.array_equal(near.integers, plain.integers)
    assert np.allclose(near.scales, plain.scales, rtol=1e-4)


def test_zeros_stay_zero(data: dict[str, Any]) -> None:
    weight = data["layer"].weight[0].astype(np.float32)
    weight[::2, ::3] = 0.0
    layer = layer_of(weight, np.zeros(6, "f4"))
    moments = moments_of(layer, data["floats"], data["students"])
    for recipe in (Recipe(), Recipe("nearest"), Recipe(bits=4)):
        assert not fit(layer, moments, recipe, 0.01).integers[0][weight == 0].any()


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_inputs_without_spread_are_no_obstacle(data: dict[str, Any], value: float) -> None:
    constant = np.full_like(data["floats"], value)
    layer = data["layer"]
    found = fit(layer, moments_of(layer, constant, constant), Recipe(), 0.01)
    rounded = found.integers[0] * found.scales[:, None].astype(np.float64)
    assert np.abs(rounded - layer.weight[0]).max() <= found.scales.max() * 0.51
    wanted = layer.weight[0].sum(axis=1) * value + layer.bias
    # float32 of a bias of a few tens
    assert np.allclose(rounded.sum(axis=1) * value + found.bias, wanted, atol=1e-5)


def test_a_shift_that_may_be_chance_is_left_alone() -> None:
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((50, 200))
    clear = noise + 3.0
    assert np.abs(shrunk_mean(noise)).mean() < 0.6 * np.abs(noise.mean(axis=0)).mean()
    assert np.allclose(shrunk_mean(clear), clear.mean(axis=0), rtol=0.01)


@pytest.mark.parametrize(("axis", "groups", "shape"), [(0, 2, (6, 4, 3)), (1, 1, (5, 7))])
def test_rows_and_back(axis: int, groups: int, shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(2).standard_normal(shape)
    rows = as_rows(weight, axis, groups)
    assert rows.shape == (groups, shape[axis] // groups, weight.size // shape[axis])
    assert np.array_equal(from_rows(rows, axis, shape), weight)
