import numpy as np
import pytest

from passes.rounding.codebook import Table, gptq_codebook, kmeans, refit
from passes.rounding.gptq import damage
from passes.rounding.hqq import hqq
from passes.rounding.nearest import asymmetric, refitted, searched, symmetric


def _rows(seed=0, rows=40, columns=32, outliers=False):
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((rows, columns)) + rng.standard_normal((rows, 1))
    if outliers:
        found[:, 0] *= 8
    return found


def _error(rows, grid):
    return np.square(grid.dequantize(grid.quantize(rows)) - rows).sum()


@pytest.mark.parametrize("make", [symmetric, asymmetric])
def test_grids_hold_everything_and_zero(make):
    rows = _rows()
    grid = make(rows, *((-8, 7) if make is symmetric else (0, 15)))
    reach = np.abs(grid.dequantize(grid.quantize(rows)) - rows).max(axis=1)
    # Half a step, and another half where the zero point had to be rounded.
    assert (reach <= grid.scales * 1.001).all()
    assert not grid.dequantize(grid.quantize(np.zeros((40, 3)))).any()
    assert (make(np.zeros((2, 4)), 0 if make is asymmetric else -8, 7).scales == 1).all()


def test_a_searched_grid_is_never_worse_and_better_with_outliers():
    rows = _rows(outliers=True)
    for grid in (symmetric(rows, -8, 7), asymmetric(rows, 0, 15)):
        assert _error(rows, searched(rows, grid)) < _error(rows, grid)
    importance = np.ones(32)
    importance[0] = 0.0
    light = searched(rows, symmetric(rows, -8, 7), importance)
    assert (light.scales <= searched(rows, symmetric(rows, -8, 7)).scales + 1e-6).mean() > 0.9


@pytest.mark.parametrize("zero_points", [True, False])
def test_half_quadratic_grids_beat_those_that_hold_everything(zero_points):
    rows = _rows(outliers=True)
    low, high = (0, 15) if zero_points else (-8, 7)
    plain = (asymmetric if zero_points else symmetric)(rows, low, high)
    grid = hqq(rows, low, high, zero_points=zero_points)
    size = np.power(np.abs(grid.dequantize(grid.quantize(rows)) - rows), 0.7).sum(axis=1)
    before = np.power(np.abs(plain.dequantize(plain.quantize(rows)) - rows), 0.7).sum(axis=1)
    assert (size <= before).all()
    assert size.sum() < 0.98 * before.sum()


def test_refitted_scales_have_less_damage():
    rows = _rows(1)
    inputs = np.random.default_rng(2).standard_normal((200, 32)) @ _rows(3, 32)
    gram = inputs.T @ inputs
    grid = symmetric(rows, -2, 1)
    codes = grid.quantize(rows)
    scales = refitted(rows, codes, gram, grid.scales)
    before, after = (damage(rows - codes * s[:, None], gram).sum() for s in (grid.scales, scales))
    assert after < before


def test_kmeans_finds_clusters_and_gaussian_tables():
    centres = np.array([-3.0, -1.0, 0.5, 4.0])
    rows = centres[np.random.default_rng(0).integers(0, 4, (6, 200))]
    np.testing.assert_allclose(kmeans(rows, 4), np.tile(centres, (6, 1)), rtol=1e-9)
    gauss = np.random.default_rng(1).standard_normal((2, 20000))
    table = Table(kmeans(gauss, 16)[:1])
    found = table.nearest(0, gauss[:1])[1]
    # Max (1960): the best sixteen numbers for a Gaussian leave 0.0095 of its power.
    assert np.square(found - gauss[:1]).mean() == pytest.approx(0.0095, rel=0.06)


def test_kmeans_follows_importance_and_keeps_zero():
    rows = np.concatenate([np.linspace(0, 1, 50), np.linspace(10, 11, 50)])[None]
    heavy = np.concatenate([np.full(50, 100.0), np.full(50, 1e-3)])
    assert (kmeans(rows, 4, heavy) < 5).sum() > (kmeans(rows, 4) < 5).sum()
    table = kmeans(_rows(), 8, keep_zero=True)
    assert (np.abs(table).min(axis=1) == 0).all()
    assert (np.diff(table, axis=1) >= 0).all()


def test_rounding_onto_tables_with_feedback_and_fitting_them():
    rows = _rows(4)
    inputs = np.random.default_rng(5).standard_normal((300, 32)) @ _rows(6, 32)
    gram = inputs.T @ inputs
    book = kmeans(rows.reshape(1, -1), 8)[0]
    plain = book[np.abs(rows[..., None] - book).argmin(axis=2)]
    codes = gptq_codebook(rows, gram, book, sweeps=2)
    fed = damage(rows - book[codes], gram).sum()
    assert fed < 0.6 * damage(rows - plain, gram).sum()
    fitted = refit(codes[None], rows[None], gram[None], np.ones((1, 40)), book)
    assert damage(rows - fitted[codes], gram).sum() < fed
