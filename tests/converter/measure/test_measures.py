"""Differences, class scores, size, latency: figures checked against plain numpy."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support import model_from_text

from converter.core.context import RunSettings
from converter.data.sources import open_data
from converter.errors import FormatError, UsageError
from converter.measure.accuracy import ScoreMeter, as_scores
from converter.measure.difference import DifferenceMeter
from converter.measure.latency import bench, interleave, summarize
from converter.measure.size import measure_size

RNG = np.random.default_rng(0)


def difference(*pairs, random=False):
    meter = DifferenceMeter("y", random=random)
    for old, new in pairs:
        meter.update(old, new)
    return meter.result()


def test_figures_over_batches_of_varying_shape():
    old = [RNG.standard_normal(s).astype(np.float32) for s in ((2, 3), (1, 3), (4, 3))]
    new = [a + np.float32(0.01) * RNG.standard_normal(a.shape).astype(np.float32) for a in old]
    found = difference(*zip(old, new, strict=True))
    a = np.concatenate([x.ravel() for x in old]).astype(np.float64)
    b = np.concatenate([x.ravel() for x in new]).astype(np.float64)
    assert found.max_abs == pytest.approx(np.abs(a - b).max())
    assert found.max_rel == pytest.approx(np.abs(a - b).max() / np.abs(a).max())
    assert found.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()))
    assert found.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert (found.elements, found.unequal, found.equal) == (21, 21, False)


def test_equal_and_zero_outputs():
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    same = difference((one, one))
    assert (same.sqnr_db, same.cosine, same.equal) == (math.inf, 1.0, True)
    assert difference((zero, zero)).cosine == 1.0
    gone = difference((one, zero))
    assert (gone.sqnr_db, gone.cosine) == (0.0, 0.0)
    born = difference((zero, one))
    assert (born.sqnr_db, born.max_rel) == (-math.inf, math.inf)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_scalars_and_empty_outputs(shape):
    found = difference((np.ones(shape, np.float32), np.ones(shape, np.float32)))
    assert found.equal
    assert found.sqnr_db == math.inf


def test_nan_and_infinity():
    nan, inf = np.float32([1, np.nan]), np.float32([np.inf, -np.inf])
    assert difference((nan, nan), (inf, inf)).equal
    assert "NaN or infinity where" in difference((np.float32([1, 2]), nan)).broken
    assert "finite where" in difference((nan, np.float32([1, 2]))).broken
    assert difference((inf, -inf)).broken
    assert difference((np.float32([np.nan, 2]), np.float32([np.nan, 3]))).max_abs == 1


def test_shape_type_and_structure():
    a = np.zeros(2, np.float32)
    assert "shape" in difference((a, a[:1])).broken
    assert "type" in difference((a, a.astype(np.float64))).broken
    assert difference(([a, a], [a, a])).equal
    assert "parts" in difference(([a, a], [a])).broken
    assert difference((None, None)).equal
    assert not difference(([{1: 0.5}], [{1: 0.25}])).equal
    assert difference(([{1: 0.5}], [{1: 0.5}])).equal


def test_exact_kinds():
    for dtype in (np.int64, np.uint8, bool):
        found = difference((np.array([1, 0], dtype), np.array([1, 1], dtype)))
        assert (found.kind, found.unequal) == ("exact", 1)
    big = np.array([2**62], np.int64)
    assert difference((big, big + 1)).unequal == 1
    text = np.array(["a", "b"], object)
    assert difference((text, text)).equal
    assert difference((text, text[::-1])).unequal == 2


def test_half_precision_does_not_overflow():
    a = np.full(1000, 60000, np.float16)
    assert difference((a, -a)).max_abs == 120000


def test_random_outputs_are_compared_in_shape_and_type():
    a, b = RNG.standard_normal((2, 3)), RNG.standard_normal((2, 3))
    assert difference((a, b), random=True).equal
    assert difference((a, b[:1]), random=True).broken


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((4, 10), np.float32, (4, 10)),
        ((4, 10, 1, 1), np.float16, (4, 10)),
        ((4, 1, 10), np.int8, (4, 10)),
        ((4, 1), np.float32, None),
        ((10,), np.float32, None),
        ((4, 10, 2), np.float32, None),
        ((4, 10), np.int64, None),
        ((4, 10), bool, None),
    ],
)
def test_what_looks_like_class_scores(shape, dtype, expected):
    found = as_scores(np.zeros(shape, dtype))
    assert (None if found is None else found.shape) == expected


def test_accuracy_agreement_and_flips():
    labels = np.array([0, 1, 2, 0])
    old = np.eye(3, dtype=np.float32)[[0, 1, 2, 1]]
    new = np.eye(3, dtype=np.float32)[[0, 2, 2, 0]]
    meter = ScoreMeter("y")
    meter.update(old[:2], new[:2], labels[:2], 2)
    meter.update(old[2:], new[2:], labels[2:], 2)
    found = meter.result()
    assert (found.samples, found.agreement, found.flips) == (4, 0.5, 0.5)
    assert (found.accuracy_original, found.accuracy_converted) == (0.75, 0.75)
    assert (found.lost, found.gained) == (1, 1)


def test_a_length_is_no_number_of_classes():
    meter = ScoreMeter("y")
    for size in (4, 5):
        meter.update(np.zeros((1, size)), np.zeros((1, size)), None, 1)
    assert meter.result() is None


def save(path, text, **constants):
    onnx.save(ir.to_proto(model_from_text(text, **constants)), path)
    return path


TEXT = "g (float[N,4] x) => (float[N,4] y) { h = MatMul(x, w)  y = Relu(h) }"
W = np.ones((4, 4), np.float32)


def test_size(tmp_path):
    path = save(tmp_path / "a.onnx", TEXT, w=W)
    found = measure_size(path)
    assert (found.nbytes, found.nodes, found.parameters) == (path.stat().st_size, 2, 16)
    other = tmp_path / "b.onnx"
    onnx.save(
        onnx.load(path), other, save_as_external_data=True, location="b.data", size_threshold=0
    )
    found = measure_size(other)
    assert found.nbytes == other.stat().st_size + 64
    assert found.parameters == 16
    (tmp_path / "c.onnx").write_bytes(b"\xff" * 20)
    with pytest.raises(FormatError):
        measure_size(tmp_path / "c.onnx")


def test_interleaving_and_ratios():
    calls = []
    times = interleave([lambda: calls.append(0), lambda: calls.append(1)], seconds=0, repeat=4)
    assert calls == [0, 1] * 2 + [0, 1, 1, 0] * 2
    assert [len(t) for t in times] == [4, 4]
    first, second = summarize(["a", "b"], [[2.0, 4.0, 2.0], [1.0, 2.0, 4.0]])
    assert (first.median, first.ratio, second.median, second.fastest) == (2.0, 1.0, 2.0, 1.0)
    assert (second.ratio, second.ratio_fastest) == (0.5, 0.5)


def test_bench(tmp_path):
    small = save(tmp_path / "a.onnx", TEXT, w=W)
    dataset = open_data("synthetic", ir.load(small), batch=2)
    found = bench([small, small], dataset, settings=RunSettings(), repeat=5).to_dict()
    assert [m["model"] for m in found["models"]] == ["a.onnx", "a.onnx"]
    assert all(0 < m["min_ms"] <= m["median_ms"] and m["runs"] == 5 for m in found["models"])
    assert found["models"][0]["ratio"] == 1.0
    assert found["samples_per_run"] == 2
    with pytest.raises(UsageError):
        bench([], dataset, settings=RunSettings())
