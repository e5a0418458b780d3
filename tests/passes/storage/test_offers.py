"""Forms of constants: onnxruntime folds them, at both levels, to the very bits that are stated."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support import model_from_text

from converter.core import graph as g
from passes.encoding.build import Builder
from passes.encoding.weights import View
from passes.storage import places
from passes.storage.content import contents
from passes.storage.form import Constant
from passes.storage.offers import offers, pooled
from passes.storage.pool import make_pool, ways

SHAPES = [(16, 3, 3, 3), (32, 16, 3, 3), (24, 32, 3, 3), (10, 64), (5, 7)]
ZEROS = [0.0, 0.5, 0.75, 0.9, 0.97]


def _view(shape: tuple[int, ...]) -> View:
    return View(shape[0], math.prod(shape[1:]), 1)


def _sparse(shape: tuple[int, ...], zeros: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    found = rng.normal(size=shape).astype(np.float32)
    found[rng.random(shape) < zeros] = 0
    return found


def _model(arrays: list[np.ndarray], opset: int) -> tuple[ir.Model, list[ir.Value]]:
    """Every constant flows into an output, through a Reshape that cannot be folded."""
    text = ir.Value(name="x", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    values, nodes, outputs = [], [], []
    for i, array in enumerate(arrays):
        value = ir.Value(
            name=f"w{i}",
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape(array.shape),
            const_value=ir.tensor(array, name=f"w{i}"),
        )
        read = value
        if array.dtype.name in ("int4", "uint4"):  # which cannot be reshaped
            read = ir.Value(name=f"z{i}", type=ir.TensorType(ir.DataType.INT8))
            nodes.append(ir.node("Cast", [value], {"to": int(ir.DataType.INT8)}, outputs=[read]))
        output = ir.Value(name=f"y{i}", type=read.type)
        nodes.append(ir.node("Reshape", [read, text], outputs=[output]))
        values.append(value)
        outputs.append(output)
    graph = ir.Graph(
        [text], outputs, nodes=nodes, initializers=values, opset_imports={"": opset}, name="g"
    )
    return ir.Model(graph, ir_version=10 if opset > 20 else 8), values


def _bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString()


def _folded(model: ir.Model, path: Path, level: str) -> tuple[list[np.ndarray], list[str]]:
    """Run at a level of optimisation; returns the outputs and the operators that are left."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(path / "optimized.onnx")
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(_bytes(model), options, providers=["CPUExecutionProvider"])
    left = [node.op_type for node in onnx.load(path / "optimized.onnx").graph.node]
    return session.run(None, {"x": np.array([-1])}), left


def _install(model: ir.Model, old: ir.Value, new: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(old, new)
    assert old.name is not None
    model.graph.initializers.pop(old.name)


def _verify(
    arrays: list[np.ndarray], opset: int, path: Path, views: Any = None, **how: Any
) -> list[str]:
    """Pool constants, and check bits, folding and the stated size; returns the forms used."""
    model, values = _model(arrays, opset)
    blank = how.pop("blank", 0)
    views = views or [_view(a.shape) if a.dtype.kind == "f" else None for a in arrays]
    constants = [
        Constant(v, a, 1 if view is None else view.rows, blank, view)
        for v, a, view in zip(values, arrays, views, strict=True)
    ]
    before = len(_bytes(model))
    build = Builder(model.graph, g.Names(model), opset, stem="d")
    expected = dict(zip(map(id, values), arrays, strict=True))
    added, forms = 0, []
    pools = pooled(constants, opset, **how)
    for pool in pools:
        for member, new in zip(pool.members, pool.write(build), strict=True):
            old = member.constant.value
            decoded = member.decoded()
            assert decoded.dtype == member.constant.array.dtype
            assert decoded.shape == member.constant.array.shape
            exact = np.array_equal(decoded, member.constant.array, equal_nan=True)
            assert exact == (member.error == 0)
            expected[id(old)] = decoded
            assert new.dtype == old.dtype
            new.type = None
            _install(model, old, new)
            forms.append(member.form)
            added -= member.constant.nbytes
        added += pool.nbytes
        assert pool.nbytes == pytest.approx(sum(m.nbytes for m in pool.members), abs=99)
    for level in ("ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):
        outputs, left = _folded(model, path, level)
        assert left == ["Reshape"] * len(arrays)
        for array, found in zip(expected.values(), outputs, strict=True):
            narrow = array.dtype.name in ("int4", "uint4")
            wanted = array.astype(np.int8) if narrow else array
            assert found.dtype == wanted.dtype
            assert found.tobytes() == wanted.tobytes()
    # The estimate counts nodes, whose names and attributes differ in length, and every pool has
    # tables of its own in it, which they share.
    slack = 150 + 400 * len(pools)
    excess = before + added - len(_bytes(model))
    assert -400 <= excess <= slack, excess
    return forms


@pytest.mark.parametrize("opset", [11, 13, 21])
@pytest.mark.parametrize("values", ["exact", "float16", "int8", "int4"])
def test_floats(opset: int, values: str, tmp_path: Path) -> None:
    arrays = [_sparse(s, z) for s, z in zip(SHAPES, ZEROS, strict=True)]
    forms = _verify(arrays, opset, tmp_path, values=values)
    assert len(forms) >= 4


@pytest.mark.parametrize("kind", [np.float16, np.int8, np.uint8])
@pytest.mark.parametrize("values", ["exact", "int8"])
def test_other_types(kind: type, values: str, tmp_path: Path) -> None:
    floats = [_sparse(s, z) for s, z in zip(SHAPES, ZEROS, strict=True)]
    blank = 128 if kind is np.uint8 else 0
    scale = 1 if kind is np.float16 else 40
    arrays = [np.clip(a * scale + blank, -128, 255 if blank else 127).astype(kind) for a in floats]
    assert _verify(arrays, 17, tmp_path, values=values, blank=blank)


@pytest.mark.parametrize("width", places.WIDTHS[1:])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.99, 1.0])
def test_every_width_holds_any_share_of_zeros(width: int, zeros: float, tmp_path: Path) -> None:
    array = _sparse((37, 53), zeros)
    array[0, 0] = 0
    model, values = _model([array], 13)
    constant = Constant(values[0], array)
    raw = next(iter(contents(constant, "exact")))
    stored = next(way for way in ways(constant, raw) if way.width == width)
    new = make_pool([stored]).write(Builder(model.graph, g.Names(model), 13))[0]
    _install(model, values[0], new)
    for level in ("ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):
        outputs, left = _folded(model, tmp_path, level)
        assert left == ["Reshape"]
        np.testing.assert_array_equal(outputs[0], array.reshape(-1))


@pytest.mark.parametrize("opset", [7, 10])
def test_old_opsets_get_forms_without_positions(opset: int, tmp_path: Path) -> None:
    arrays = [_sparse(s, 0.5) for s in SHAPES[:4]]
    assert _verify(arrays, opset, tmp_path, values="int8") == ["int8"] * 4
    assert _verify(arrays, opset, tmp_path, values="float16") == ["float16"] * 4
    assert _verify(arrays, opset, tmp_path) == []
    assert _verify(arrays, 6, tmp_path, values="int8") == []


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_a_hidden_grid_is_found(bits: int, half: bool, kind: type, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    arrays = []
    for array in (_sparse(s, z) for s, z in zip(SHAPES[:4], ZEROS, strict=False)):
        codes = np.clip(np.round(array * 2 ** (bits - 3)), 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
        scales = rng.uniform(0.01, 0.1, (len(array), *[1] * (array.ndim - 1)))
        scales = scales.astype(np.float16 if half else np.float32).astype(kind)
        arrays.append(codes.astype(kind) * scales)
    forms = _verify(arrays, 17, tmp_path)
    assert len(forms) == 4
    assert all(form.endswith(f"int{bits}") for form in forms)


def test_a_grid_in_blocks_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    codes = np.round(rng.normal(size=(48, 4, 32)) * 3).clip(-8, 7)
    scales = rng.uniform(0.01, 0.1, (48, 4, 1)).astype(np.float16)
    rows = (codes.astype(np.float32) * scales.astype(np.float32)).reshape(48, 128)
    arrays, views = [rows, np.ascontiguousarray(rows.T)], [View(48, 128, 1), View(1, 128, 48)]
    assert _verify(arrays, 13, tmp_path, views) == ["int4"] * 2


@pytest.mark.parametrize("kind", [ml_dtypes.int4, ml_dtypes.uint4])
def test_integers_of_four_bits(kind: type, tmp_path: Path) -> None:
    blank = 8 if kind is ml_dtypes.uint4 else 0
    arrays = [np.round(_sparse(s, 0.8) * 2 + blank).clip(-8 + blank, 7 + blank) for s in SHAPES[:3]]
    assert len(_verify([a.astype(kind) for a in arrays], 21, tmp_path, blank=blank)) == 3


def test_scales_lie_along_any_axis(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shapes = [(12, 20), (3, 12, 20), (6, 4, 5, 5), (20, 8)]
    views = [View(1, 12, 20), View(3, 12, 20), View(1, 6, 100), View(20, 8, 1)]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    forms = _verify(arrays, 13, tmp_path, views, values="int8")
    assert forms == ["int8"] * 4


def test_palettes(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    sizes = (4, 16, 200, 12, 3)
    arrays = []
    for count, shape in zip(sizes, SHAPES, strict=True):
        table = rng.normal(size=count).astype(np.float32)
        table[0] = 0
        arrays.append(rng.choice(table, size=shape))
    forms = _verify(arrays, 17, tmp_path, [None] * 5)
    assert set(forms) == {"palette 2", "palette 4", "palette 8"}
    integers = [np.round(a * 3).astype(np.int8) for a in arrays[:2]]
    assert all(form.endswith("palette 4") for form in _verify(integers, 17, tmp_path))


def test_unusual_elements(tmp_path: Path) -> None:
    array = _sparse((40, 50), 0.6)
    array[0, :7] = [np.nan, np.inf, -np.inf, 65504, 1e-45, 1e30, 3]
    negative = -np.abs(_sparse((40, 50), 0.6))
    assert np.signbit(negative[negative == 0]).all()
    for values in ("exact", "float16", "int8", "int4"):
        # What is not finite is not rounded.
        forms = _verify([array, negative], 13, tmp_path, [_view(array.shape)] * 2, values=values)
        assert len(forms) == 2
        assert forms[0] == "bitmask"
    zeros = [np.zeros((30, 40), np.float32), np.full((30, 40), 7, np.uint8)]
    assert len(_verify(zeros, 13, tmp_path, blank=0)) == 2
    nothing = [np.zeros((0, 4), np.float32), np.float32(3).reshape(()), np.arange(9.0)]
    assert _verify(nothing, 13, tmp_path, [None] * 3) == []


def test_float16_that_float32_holds(tmp_path: Path) -> None:
    array = np.random.default_rng(5).normal(size=(40, 50)).astype(np.float16).astype(np.float32)
    assert _verify([array], 13, tmp_path, [None]) == ["float16"]


def test_vectors_are_rounded_to_float16_where_that_is_close_to_them() -> None:
    rng = np.random.default_rng(5)
    bias = rng.normal(size=4000).astype(np.float32)
    small = bias * np.float32(1e-6)
    text = "g (float[N,4,8,8] x) => (float[N,4000,8,8] y) { y = Conv(x, W, b) }"
    weight = rng.normal(size=(4000, 4, 1, 1)).astype(np.float32)
    for vector, forms in ((bias, ["float16"]), (small, [])):
        value = model_from_text(text, W=weight, b=vector).graph.initializers["b"]
        constant = Constant(value, vector, 4000, 0, View(4000, 1, 1))
        for values in ("float16", "int8", "int4"):
            found = offers(constant, 13, values=values)
            assert [offer.form for offer in found] == forms
            assert all(0 < offer.error < 2**-10 for offer in found)
        assert offers(constant, 13) == []
    # Other operators may use a vector for anything.
    _, values_ = _model([bias], 13)
    assert offers(Constant(values_[0], bias), 13, values="int8") == []


def test_weights_below_the_smallest_scale_are_not_rounded_to_zero() -> None:
    array = (np.random.default_rng(5).normal(size=(32, 64)) * 1e-41).astype(np.float32)
    (value,) = _model([array], 13)[1]
    constant = Constant(value, array, 32, 0, _view(array.shape))
    for values in ("int8", "int4"):
        assert all(offer.error == 0 for offer in offers(constant, 13, values=values))


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_long_rows_are_rounded(values: Any) -> None:
    array = np.random.default_rng(5).normal(size=(8, 8192)).astype(np.float32)
    (value,) = _model([array], 13)[1]
    found = offers(Constant(value, array, 8, 0, _view(array.shape)), 13, values=values)
    assert values in {offer.form for offer in found}


def test_a_pool_holds_no_more_than_it_may(tmp_path: Path) -> None:
    arrays = [_sparse((50, 60), 0.8, seed) for seed in range(5)]
    _, values = _model(arrays, 13)
    constants = [Constant(v, a) for v, a in zip(values, arrays, strict=True)]
    found = pooled(constants, 13, most=6000)
    assert [len(pool.members) for pool in found] == [2, 2, 1]
    assert len(pooled(constants, 13, most=2999)) == 5
    assert len(_verify(arrays, 13, tmp_path, most=6000)) == 5


def test_offers_for_one_constant_come_smallest_first() -> None:
    array = _sparse((64, 128), 0.9)
    _, values = _model([array], 13)
    exact = offers(Constant(values[0], array, 64, 0, _view(array.shape)), 13)
    assert [offer.form for offer in exact] == ["gaps 8"]  # with fewer nodes than gaps 4
    lossy = offers(Constant(values[0], array, 64, 0, _view(array.shape)), 13, values="int4")
    assert [offer.form for offer in lossy] == ["gaps 4 + int4", "gaps 8"]
    assert lossy[0].nbytes < lossy[1].nbytes
    assert 0 < lossy[0].error < 0.3  # half a step of 1/7, more where rare large ones are cut
    assert lossy[1].error == 0


def test_sizes_that_are_promised() -> None:
    for zeros, share in ((0.8, 0.08), (0.5, 0.16)):
        array = _sparse((512, 512), zeros)
        _, values = _model([array], 13)
        best = offers(Constant(values[0], array, 512, 0, _view(array.shape)), 13, values="int8")[0]
        assert best.nbytes <= share * array.nbytes
        assert best.nanoseconds <= 15


def test_writing_twice_gives_the_same_bytes() -> None:
    arrays = [_sparse(s, z) for s, z in zip(SHAPES, ZEROS, strict=True)]
    found = []
    for _ in range(2):
        model, values = _model(arrays, 13)
        constants = [Constant(v, a) for v, a in zip(values, arrays, strict=True)]
        for pool in pooled(constants, 13):
            pool.write(Builder(model.graph, g.Names(model), 13))
        found.append(_bytes(model))
    assert found[0] == found[1]
