"""LAMP by passes over tensors, against the definition."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from converter.core.tensors import MappedTensor
from passes.sparsity import lamp


def slow(arrays, wanted):
    """Sort every tensor, divide by the sums of the rest, take the lowest of all."""
    scores, owner, places = [], [], []
    for index, array in enumerate(arrays):
        squares = np.square(array.reshape(-1).astype(np.float64))
        order = np.argsort(squares, kind="stable")
        tail = np.cumsum(squares[order][::-1])[::-1]
        with np.errstate(invalid="ignore"):
            scores.append(np.where(squares[order] > 0, squares[order] / tail, 0.0))
        owner.append(np.full(array.size, index))
        places.append(order)
    chosen = np.argsort(np.concatenate(scores), kind="stable")[:wanted]
    owners, where = np.concatenate(owner)[chosen], np.concatenate(places)[chosen]
    masks = []
    for index, array in enumerate(arrays):
        mask = np.zeros(array.size, bool)
        mask[where[owners == index]] = True
        masks.append(mask.reshape(array.shape))
    return masks


def pruned(arrays, wanted):
    tensors = [ir.tensor(array) for array in arrays]
    found = lamp.lamp_cuts(tensors, wanted)
    results = []
    for tensor, array, (zeros, cut) in zip(tensors, arrays, found, strict=True):
        result = array if cut is None else MappedTensor(tensor, cut).numpy()
        assert int(np.count_nonzero(result == 0)) == zeros
        results.append(result)
    return results


def layers(kind, seed=0):
    rng = np.random.default_rng(seed)
    scales = (1.0, 0.02, 5.0, 1e-3)
    shapes = ((64, 27), (31, 100), (300, 7), (5, 5))
    return [
        (rng.standard_normal(shape) * scale * np.exp(rng.standard_normal(shape) / 2)).astype(kind)
        for shape, scale in zip(shapes, scales, strict=True)
    ]


KINDS = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.7, 0.99])
@pytest.mark.parametrize("kind", KINDS)
def test_like_the_definition(kind, share) -> None:
    arrays = layers(kind)
    wanted = round(share * sum(a.size for a in arrays))
    for result, array, mask in zip(
        pruned(arrays, wanted), arrays, slow(arrays, wanted), strict=True
    ):
        # half precision has equal weights: their order among tensors is the same, too
        np.testing.assert_array_equal(result, np.where(mask | (array == 0), 0, array))


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_sample_and_two_passes_find_the_same(monkeypatch, share) -> None:
    rng = np.random.default_rng(1)
    arrays = [
        (rng.standard_normal(size) * scale).astype(np.float32).reshape(-1, 50)
        for size, scale in ((200_000, 1.0), (300_000, 0.1), (1_000, 3.0))
    ]
    wanted = round(share * sum(a.size for a in arrays))
    expected = pruned(arrays, wanted)
    monkeypatch.setattr(lamp, "_WHOLE", 1)
    monkeypatch.setattr(lamp, "_WAITING", 1000)
    for one, two in zip(pruned(arrays, wanted), expected, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missed_bracket_is_found_out(monkeypatch, kind) -> None:
    arrays = layers(kind, seed=3)
    wanted = round(0.6 * sum(a.size for a in arrays))
    expected = pruned(arrays, wanted)
    monkeypatch.setattr(lamp, "_WHOLE", 1)
    top = lamp.Magnitude(np.dtype(kind)).infinity
    for ends in ((5, 6), (0, 1), (top - 3, top), (0, top)):
        monkeypatch.setattr(lamp, "guessed", lambda *_, ends=ends: [ends] * 4)
        for one, two in zip(pruned(arrays, wanted), expected, strict=True):
            np.testing.assert_array_equal(one, two)


def test_sorted_tensors_mislead_no_sample(monkeypatch) -> None:
    rng = np.random.default_rng(2)
    arrays = [np.sort(rng.standard_normal(100_000)).astype(np.float32) for _ in range(2)]
    arrays[1] = np.where(np.arange(100_000) < 99_000, arrays[1] * 1e-6, 1.0).astype(np.float32)
    wanted = 120_000
    expected = pruned(arrays, wanted)
    monkeypatch.setattr(lamp, "_WHOLE", 1)
    for one, two in zip(pruned(arrays, wanted), expected, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("whole", [True, False])
def test_few_distinct_values(monkeypatch, whole) -> None:
    rng = np.random.default_rng(4)
    arrays = [
        rng.choice(np.array([-1, 0, 1], np.float32), 30_000),
        rng.choice(np.array([-0.5, 0.25, 2], np.float32), 20_000),
    ]
    if not whole:
        monkeypatch.setattr(lamp, "_WHOLE", 1)
    for wanted in (1_000, 9_000, 25_000, 40_000, 49_999):
        for result, array, mask in zip(
            pruned(arrays, wanted), arrays, slow(arrays, wanted), strict=True
        ):
            np.testing.assert_array_equal(result, np.where(mask | (array == 0), 0, array))


def test_the_ends_of_the_numbers() -> None:
    arrays = [
        np.array([0, -0.0, 1e-45, 1e-30, 3e38, np.inf, -np.inf, 1], np.float32),
        np.zeros(4, np.float32),
    ]
    results = pruned(arrays, 9)
    assert np.isinf(results[0]).sum() == 2
    assert results[0][4] == np.float32(3e38)
    assert not results[1].any()
    assert lamp.sum_of_squares(np.full(5000, 1e-30, np.float32)) == pytest.approx(5e-57)
    assert lamp.sum_of_squares(np.full(5000, 1e30, np.float32)) == pytest.approx(5e63)
