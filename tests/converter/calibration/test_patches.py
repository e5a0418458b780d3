"""Rows of layers: products with the weight equal what onnxruntime computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import support

from converter.calibration.patches import Geometry, patches

RNG = np.random.default_rng(0)
ALL = 1 << 20

CONVS = [
    ((2, 4, 9), (6, 2, 3), "group=2, pads=[1,0], strides=[2]"),
    ((2, 3, 7, 8), (5, 3, 3, 3), "pads=[1,2,0,1], strides=[2,1]"),
    ((1, 4, 9, 9), (4, 1, 3, 3), "group=4, dilations=[2,3], pads=[2,3,2,3]"),
    ((2, 3, 6, 7), (2, 3, 2, 3), 'auto_pad="SAME_UPPER", strides=[2,2]'),
    ((2, 3, 6, 7), (2, 3, 2, 4), 'auto_pad="SAME_LOWER"'),
    ((1, 3, 6, 7), (2, 3, 3, 3), 'auto_pad="VALID"'),
    ((1, 3, 6, 7), (2, 3, 1, 1), "strides=[3,3]"),
    ((2, 2, 4, 5, 6), (3, 2, 2, 3, 1), "strides=[1,2,3], pads=[0,1,0,1,1,0]"),
]


def conv(shape: tuple[int, ...], weight: np.ndarray, attributes: str) -> ir.Model:
    dims = ",".join(map(str, shape))
    free = ",".join(["N", "M", *[f"d{i}" for i in range(len(shape) - 2)]])
    text = f"g (float[{dims}] x) => (float[{free}] y) {{ y = Conv<{attributes}>(x, w) }}"
    return support.model_from_text(text, w=weight)


@pytest.mark.parametrize(("shape", "weight_shape", "attributes"), CONVS)
def test_rows_times_weight_are_the_convolution(
    shape: tuple[int, ...], weight_shape: tuple[int, ...], attributes: str
) -> None:
    x = RNG.standard_normal(shape).astype(np.float32)
    weight = RNG.standard_normal(weight_shape).astype(np.float32)
    model = conv(shape, weight, attributes)
    expected = support.run(model, {"x": x})["y"]
    geometry = Geometry.of(model.graph[0], weight_shape)
    rows = patches(x, geometry, ALL, seed=0)
    matrix = weight.reshape(geometry.groups, -1, rows.shape[2])
    found = np.einsum("rgk,gok->rgo", rows, matrix).reshape(
        shape[0], *expected.shape[2:], weight_shape[0]
    )
    np.testing.assert_allclose(np.moveaxis(found, -1, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (2, 2, 3, 4), (4,)])
def test_dense_rows_are_the_last_axis(shape: tuple[int, ...]) -> None:
    x = RNG.standard_normal(shape).astype(np.float32)
    rows = patches(x, Geometry(), ALL, seed=0)
    np.testing.assert_array_equal(rows, x.reshape(-1, 1, 4))


@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (3, 64, 5)])
def test_two_arrays_of_a_shape_give_rows_of_the_same_positions(shape: tuple[int, ...]) -> None:
    geometry = Geometry((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))) if len(shape) == 4 else Geometry()
    x = RNG.standard_normal(shape).astype(np.float32)
    first, second = patches(x, geometry, 7, seed=3), patches(-x, geometry, 7, seed=3)
    assert len(first) == 7 * shape[0]
    np.testing.assert_array_equal(first, -second)
    assert len(np.unique(first, axis=0)) == len(first)
    assert not np.array_equal(first, patches(x, geometry, 7, seed=4))


def test_an_empty_input_has_no_rows() -> None:
    geometry = Geometry((3,), (1,), (1,), ((1, 1),))
    assert patches(np.zeros((0, 2, 5), np.float32), geometry, 4, 0).shape == (0, 1, 6)
    assert patches(np.zeros((0, 5), np.float32), Geometry(), 4, 0).shape == (0, 1, 5)


def test_operators_without_rows_are_refused() -> None:
    node = ir.node("Gemm", [ir.val("a"), ir.val("b")], {"transA": 1})
    with pytest.raises(ValueError, match="Gemm"):
        Geometry.of(node, (3, 3))
