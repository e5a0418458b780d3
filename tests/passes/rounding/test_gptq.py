import numpy as np
import pytest

from passes.rounding.gptq import Steps, damage, descend, gptq, sequential
from passes.rounding.target import least_squares


def _layer(seed=0, channels=24, size=90, samples=400):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((size, size)) * np.geomspace(1, 0.01, size)
    inputs = rng.standard_normal((samples, size)) @ mixing
    weight = rng.standard_normal((channels, size)) * 0.1
    return weight, inputs.T @ inputs


def _scales(weight, high):
    return np.abs(weight).max(axis=-1) / high


def test_feedback_beats_rounding_to_nearest_and_the_descent_beats_feedback():
    weight, gram = _layer()
    scales = _scales(weight, 7)
    nearest = np.clip(np.rint(weight / scales[:, None]), -8, 7) * scales[:, None]
    codes, numbers = sequential(weight, gram, Steps(scales, -8, 7))
    _, better = sequential(weight, gram, Steps(scales, -8, 7), sweeps=4)
    plain, fed, swept = (damage(weight - n, gram).sum() for n in (nearest, numbers, better))
    assert fed < 0.45 * plain
    assert swept < fed
    np.testing.assert_allclose(codes * scales[:, None], numbers, rtol=0, atol=1e-12)


def test_it_is_the_textbook_algorithm():
    weight, gram = _layer(1, channels=5, size=12)
    scales = _scales(weight, 7)
    order = np.argsort(-np.diag(gram), kind="stable")
    work = weight[:, order].copy()
    damped = gram + 0.01 * np.diag(gram).mean() * np.eye(12)
    inverse = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    expected = np.empty(weight.shape)
    for k in range(12):
        code = np.clip(np.rint(work[:, k] / scales), -8, 7)
        expected[:, order[k]] = code
        error = (work[:, k] - code * scales) / inverse[k, k]
        work[:, k:] -= np.outer(error, inverse[k, k:])
    np.testing.assert_array_equal(gptq(weight, gram, scales, -8, 7), expected)


def test_several_layers_at_once_are_each_alone():
    layers = [_layer(seed, channels=3, size=20) for seed in range(4)]
    # One order serves all layers, so the same one must suit each of them.
    weights = np.stack([w for w, _ in layers])
    grams = np.stack([g * np.outer(s, s) for _, g in layers for s in [np.geomspace(1, 1e-4, 20)]])
    together = gptq(weights, grams, _scales(weights, 7), -8, 7)
    for at in range(4):
        alone = gptq(weights[at], grams[at], _scales(weights[at], 7), -8, 7)
        np.testing.assert_array_equal(together[at], alone)


def test_depthwise_kernels_have_one_channel_each():
    weight, gram = _layer(2, channels=6, size=9)
    codes = gptq(weight[:, None], np.stack([gram] * 6), _scales(weight, 7)[:, None], -8, 7)
    assert codes.shape == (6, 1, 9)
    np.testing.assert_array_equal(codes[:, 0], gptq(weight, gram, _scales(weight, 7), -8, 7))


def test_blocks_have_their_own_scales():
    weight, gram = _layer(3, size=64)
    blocks = np.abs(weight.reshape(24, 2, 32)).max(axis=2) / 7
    codes = gptq(weight, gram, blocks, -8, 7)
    numbers = codes * np.repeat(blocks, 32, axis=1)
    one = gptq(weight, gram, _scales(weight, 7), -8, 7) * _scales(weight, 7)[:, None]
    assert damage(weight - numbers, gram).sum() < damage(weight - one, gram).sum()


def test_zero_points_move_the_grid():
    weight, gram = _layer(4)
    shifted = np.abs(weight)
    scales = shifted.max(axis=1) / 15
    lattice = Steps(scales, 0, 15, zeros=np.zeros(24))
    codes, numbers = sequential(shifted, gram, lattice)
    assert codes.min() >= 0
    assert codes.max() <= 15
    coarse = gptq(shifted, gram, _scales(shifted, 7), -8, 7) * _scales(shifted, 7)[:, None]
    assert damage(shifted - numbers, gram).sum() < damage(shifted - coarse, gram).sum()


def test_pruned_weights_stay_zero_and_the_others_make_up_for_them():
    weight, gram = _layer(5)
    mask = np.random.default_rng(0).random(weight.shape) < 0.5
    codes = gptq(weight, gram, _scales(weight, 7), -8, 7, mask)
    assert not codes[mask].any()
    plain = gptq(np.where(mask, 0, weight), gram, _scales(weight, 7), -8, 7, mask)
    errors = [weight - c * _scales(weight, 7)[:, None] for c in (codes, plain)]
    assert damage(errors[0], gram).sum() < damage(errors[1], gram).sum()


@pytest.mark.parametrize("gram", [np.zeros((16, 16)), np.eye(16), np.diag([1.0] + [0.0] * 15)])
def test_without_correlations_it_rounds_to_nearest(gram):
    weight, _ = _layer(6, size=16)
    scales = _scales(weight, 7)
    expected = np.clip(np.rint(weight / scales[:, None]), -8, 7)
    np.testing.assert_array_equal(gptq(weight, gram, scales, -8, 7), expected)


def test_singular_and_slightly_indefinite_matrices_are_survived():
    weight, _ = _layer(7, size=40)
    rows = np.random.default_rng(1).standard_normal((3, 40))
    gram = rows.T @ rows
    assert damage(weight - _numbers(weight, gram), gram).sum() < 0.2 * _plain(weight, gram)
    indefinite = gram - 0.05 * np.trace(gram) / 40 * np.eye(40)
    assert np.isfinite(_numbers(weight, indefinite)).all()


def _numbers(weight, gram):
    return gptq(weight, gram, _scales(weight, 7), -8, 7) * _scales(weight, 7)[:, None]


def _plain(weight, gram):
    scales = _scales(weight, 7)[:, None]
    return damage(weight - np.rint(weight / scales) * scales, gram).sum()


def test_empty_weights_and_wide_integers():
    assert gptq(np.zeros((3, 0)), np.zeros((0, 0)), np.ones(3), -8, 7).shape == (3, 0)
    assert gptq(np.ones((2, 4)), np.eye(4), np.full(2, 0.001), -2000, 2000).dtype == np.int32


def test_a_matrix_with_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        gptq(np.ones((2, 2)), np.full((2, 2), np.nan), np.ones(2), -8, 7)


def test_the_descent_never_makes_it_worse():
    weight, gram = _layer(8)
    start = np.zeros_like(weight)
    last = damage(weight - start, gram).sum()
    for _ in range(3):
        _, start = descend(weight, gram, Steps(_scales(weight, 7), -8, 7), start)
        now = damage(weight - start, gram).sum()
        assert now <= last
        last = now


def test_least_squares_makes_up_for_other_inputs():
    rng = np.random.default_rng(9)
    real = rng.standard_normal((500, 30)) @ rng.standard_normal((30, 30))
    seen = real + 0.3 * rng.standard_normal((500, 30))
    weight = rng.standard_normal((8, 30))
    gram, cross = seen.T @ seen, seen.T @ real
    found = least_squares(weight, gram, cross, 1e-9)
    best, *_ = np.linalg.lstsq(seen, real @ weight.T, rcond=None)
    np.testing.assert_allclose(found, best.T, rtol=1e-5, atol=1e-7)
    near = least_squares(weight, gram, cross, 1e6)
    np.testing.assert_allclose(near, weight, rtol=0, atol=1e-4)


def test_least_squares_leaves_equal_inputs_alone_and_takes_several_layers():
    weight, gram = _layer(10, channels=2, size=9)
    both = np.stack([gram, gram * 2])
    twice = np.stack([weight, weight])
    np.testing.assert_array_equal(least_squares(twice, both, both, 0.1), twice)
    nothing = np.zeros_like(gram)
    np.testing.assert_array_equal(least_squares(weight, nothing, nothing, 0.1), weight)


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_a_ridge_is_above_zero(ridge):
    with pytest.raises(ValueError, match="above zero"):
        least_squares(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)), ridge)
