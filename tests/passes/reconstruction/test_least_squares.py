"""Ridge regression and activation-aware targets against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest

from passes.reconstruction.activation import Activation
from passes.reconstruction.least_squares import Map, System, Triangle
from passes.reconstruction.moments import matched, shifted

RNG = np.random.default_rng(3)


def problem(rows: int = 400, inputs: int = 12, outputs: int = 5) -> tuple[np.ndarray, ...]:
    x = (RNG.standard_normal((rows, inputs)) + RNG.standard_normal(inputs)).astype(np.float32)
    t = RNG.standard_normal((rows, outputs)).astype(np.float32) + 3
    return x, t, RNG.standard_normal((outputs, inputs)), RNG.standard_normal(outputs)


def by_hand(x: np.ndarray, t: np.ndarray, prior: np.ndarray, ridge: float) -> Map:
    """Ridge regression with a bias column that is not penalised."""
    centred = x - x.mean(axis=0, dtype=np.float64)
    gram = centred.T @ centred / len(x)
    r = ridge * np.trace(gram) / len(gram)
    full = np.column_stack([x.astype(np.float64), np.ones(len(x))])
    pull = full.T @ t / len(x)
    penalty = np.diag([r] * x.shape[1] + [0.0])
    pull[:-1] += r * prior.T
    found = np.linalg.solve(full.T @ full / len(x) + penalty, pull)
    return Map(found[:-1].T, found[-1])


def test_agrees_with_the_normal_equations() -> None:
    x, t, prior, bias = problem()
    system = System(x, Map(prior, bias))
    system.factorise(0.05)
    found, expected = system.solve(system.pull(t)), by_hand(x, t, prior, 0.05)
    np.testing.assert_allclose(found.weight, expected.weight, atol=1e-5)
    np.testing.assert_allclose(found.bias, expected.bias, atol=1e-5)


def test_large_ridge_keeps_weights_but_moves_the_bias() -> None:
    x, t, prior, bias = problem()
    system = System(x, Map(prior, bias))
    system.factorise(1e9)
    found = system.solve(system.pull(t))
    np.testing.assert_allclose(found.weight, prior, atol=1e-6)
    np.testing.assert_allclose(found(x).mean(axis=0), t.mean(axis=0), atol=1e-4)


def test_without_a_bias_it_stays() -> None:
    x, t, prior, bias = problem()
    system = System(x, Map(prior, bias), bias=False)
    system.factorise(1e-9)
    found = system.solve(system.pull(t))
    expected = np.linalg.lstsq(x.astype(np.float64), t - bias, rcond=None)[0].T
    np.testing.assert_allclose(found.weight, expected, atol=1e-4)
    assert found.bias is bias


@pytest.mark.parametrize("share", [0.4, 0.04])
def test_masked_weights_are_the_solution_of_every_row_alone(share: float) -> None:
    x, t, prior, bias = problem()
    mask = RNG.random(prior.shape) > share
    mask[0, 1] = False
    prior = prior * mask
    system = System(x, Map(prior, bias), mask=mask)
    system.factorise(1e-3)
    found = system.solve(system.pull(t))
    assert not found.weight[~mask].any()
    scale = system.scale
    for row, (inside, target) in enumerate(zip(mask, t.T, strict=True)):
        part = x[:, inside].astype(np.float64)
        part -= part.mean(axis=0)
        gram = part.T @ part / len(x) + 1e-3 * scale * np.eye(inside.sum())
        pull = part.T @ (target - target.mean()) / len(x) + 1e-3 * scale * prior[row, inside]
        np.testing.assert_allclose(
            found.weight[row, inside], np.linalg.solve(gram, pull), atol=1e-3
        )


def test_constant_inputs_leave_weights_alone() -> None:
    _, t, prior, bias = problem()
    x = np.ones((len(t), prior.shape[1]), np.float32)
    system = System(x, Map(prior, bias))
    system.factorise(1e-3)
    found = system.solve(system.pull(t))
    np.testing.assert_array_equal(found.weight, prior)
    np.testing.assert_allclose(found(x).mean(axis=0), t.mean(axis=0), atol=1e-4)


def test_what_is_no_number_is_refused() -> None:
    x, _, prior, bias = problem()
    x[3, 2] = np.nan
    with pytest.raises(np.linalg.LinAlgError):
        System(x, Map(prior, bias)).factorise(1e-3)


@pytest.mark.parametrize("size", [1, 95, 96, 97, 250])
def test_triangle_solves_in_blocks(size: int) -> None:
    root = RNG.standard_normal((size, size)) / np.sqrt(size) + 2 * np.eye(size)
    square, right = root @ root.T, RNG.standard_normal((size, 3))
    found = Triangle(np.linalg.cholesky(square)).solve(right)
    np.testing.assert_allclose(square @ found, right, atol=1e-9)


@pytest.mark.parametrize(
    "activation", [Activation(0.0), Activation(0.0, 1.0), Activation(0.0, slope=0.2)]
)
def test_targets_never_raise_the_error_behind_the_activation(activation: Activation) -> None:
    wanted = RNG.standard_normal(5000).astype(np.float32) * 2
    present = RNG.standard_normal(5000).astype(np.float32) * 2
    goal = activation.targets(wanted, present)

    def error(values: np.ndarray) -> np.ndarray:
        return np.abs(activation(values) - activation(wanted))

    assert (error(goal) <= error(present) + 1e-6).all()
    half = (goal + present) / 2  # least squares goes a part of the way
    assert (error(half) <= error(present) + 1e-6).all()
    assert error(goal).mean() < 0.9 * error(present).mean()


def test_moments() -> None:
    x, t, prior, bias = problem()
    layer = Map(prior, bias)
    found = matched(layer, layer(x), t)(x)
    np.testing.assert_allclose(found.mean(axis=0), t.mean(axis=0), atol=1e-4)
    inside = t.std(axis=0) / layer(x).std(axis=0) > 0.2
    np.testing.assert_allclose(found.std(axis=0)[inside], t.std(axis=0)[inside], rtol=1e-4)
    moved = shifted(layer, layer(x), t)
    np.testing.assert_array_equal(moved.weight, prior)
    np.testing.assert_allclose(moved(x).mean(axis=0), t.mean(axis=0), atol=1e-4)
