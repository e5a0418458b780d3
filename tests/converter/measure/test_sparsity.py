"""Patterns of zeros are found where they are, in any layout, and not where chance made them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from converter.core.tensors import MappedTensor
from converter.measure.sparsity import count_zeros, measure_sparsity
from converter.ops.summed import View

ROWS, COLUMNS = 64, 288
Array = np.ndarray[Any, Any]


def weights(seed: int = 0, shape: tuple[int, ...] = (ROWS, COLUMNS)) -> Array:
    return np.random.default_rng(seed).uniform(0.5, 1, shape).astype(np.float32)


def n_of_m(zeros: int, group: int) -> Array:
    found = weights().reshape(-1, group)
    order = np.argsort(weights(1).reshape(-1, group), axis=1)[:, :zeros]
    np.put_along_axis(found, order, 0, axis=1)
    return found.reshape(ROWS, COLUMNS)


def blocks(high: int, wide: int, share: float) -> Array:
    gone = np.random.default_rng(2).random((ROWS // high, COLUMNS // wide)) < share
    return weights() * (1 - np.kron(gone, np.ones((high, wide)))).astype(np.float32)


def both_ways(matrix: Array) -> list[str]:
    """Return the pattern with rows first, as in Conv, and with columns first, as in MatMul."""
    turned = np.ascontiguousarray(matrix.T)
    return [
        measure_sparsity(ir.tensor(matrix), [View(ROWS, COLUMNS, 1)]).pattern,
        measure_sparsity(ir.tensor(turned), [View(1, COLUMNS, ROWS)]).pattern,
    ]


@pytest.mark.parametrize(
    ("zeros", "group"), [(2, 4), (1, 4), (3, 4), (4, 8), (3, 8), (7, 8), (8, 16)]
)
def test_n_of_m(zeros: int, group: int) -> None:
    assert both_ways(n_of_m(zeros, group)) == [f"{zeros}:{group}"] * 2


@pytest.mark.parametrize(
    ("high", "wide"), [(1, 2), (1, 4), (4, 1), (4, 4), (2, 8), (8, 8), (1, 32), (16, 16)]
)
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_blocks(high: int, wide: int, share: float) -> None:
    assert both_ways(blocks(high, wide, share)) == [f"{high}x{wide}"] * 2


def test_whole_rows_and_columns() -> None:
    rows, columns = weights(), weights()
    rows[::3] = 0
    columns[:, 5::9] = 0
    assert both_ways(rows) == ["rows"] * 2
    assert both_ways(columns) == ["columns"] * 2


@pytest.mark.parametrize("share", [0.002, 0.1, 0.5, 0.7, 0.9, 0.97, 0.999])
def test_zeros_by_chance_are_no_pattern(share: float) -> None:
    for seed in range(5):
        found = weights()
        found[np.random.default_rng(seed).random(found.shape) < share] = 0
        assert both_ways(found) == ["unstructured"] * 2


def test_rows_of_different_density_are_no_pattern() -> None:
    found = weights()
    density = np.linspace(0.05, 0.99, ROWS)[:, None]
    found[np.random.default_rng(0).random(found.shape) < density] = 0
    assert both_ways(found) == ["unstructured"] * 2


def test_groups_of_input_channels_are_found_behind_the_usual_view() -> None:
    kernel = weights(shape=(32, 16, 9))
    order = np.argsort(weights(3, (32, 4, 4, 9)), axis=2)[:, :, :2]
    np.put_along_axis(kernel.reshape(32, 4, 4, 9), order, 0, axis=2)
    tensor = ir.tensor(kernel.reshape(32, 16, 3, 3))
    views = [View(32, 144, 1), View(32, 16, 9)]
    assert measure_sparsity(tensor, views[:1]).pattern == "unstructured"
    assert measure_sparsity(tensor, views).pattern == "2:4"


def test_large_tensors_are_read_in_parts() -> None:
    rows = 4 * 1024
    matrix = weights(shape=(rows, 1024))
    groups = matrix.reshape(-1, 4)
    first = np.random.default_rng(4).integers(0, 2, len(groups))
    groups[np.arange(len(groups)), first] = groups[np.arange(len(groups)), first + 2] = 0
    largest = 0

    def part(chunk: Array, start: int) -> Array:
        nonlocal largest
        largest = max(largest, chunk.nbytes)
        return chunk

    tensor = MappedTensor(ir.tensor(matrix), part)
    found = measure_sparsity(tensor, [View(rows, 1024, 1)])
    assert (found.zeros, found.pattern) == (matrix.size // 2, "2:4")
    assert largest <= 1 << 18
    matrix[-1] = 1  # the very last row breaks it
    assert measure_sparsity(ir.tensor(matrix), [View(rows, 1024, 1)]).pattern == "unstructured"


def test_the_edges() -> None:
    empty = measure_sparsity(ir.tensor(np.zeros((0, 4), np.float32)), [View(0, 4, 1)])
    assert (empty.share, empty.pattern) == (0.0, "")
    nothing = measure_sparsity(ir.tensor(np.zeros((16, 16), np.float32)), [View(16, 16, 1)])
    assert (nothing.share, nothing.pattern) == (1.0, "all")
    dense = measure_sparsity(ir.tensor(weights()), [View(ROWS, COLUMNS, 1)])
    assert (dense.zeros, dense.pattern) == (0, "")
    odd = weights(shape=(7, 13))
    odd[:, 3] = 0
    assert measure_sparsity(ir.tensor(odd), [View(7, 13, 1)]).zeros == 7
    shifted = np.full((8, 16), 7, np.uint8)
    shifted[0] = 3
    assert count_zeros(ir.tensor(shifted), 7) == 7 * 16
    unknown = np.array([np.nan, 0, -0.0, np.inf] * 16, np.float32)
    assert measure_sparsity(ir.tensor(unknown)).zeros == 32
