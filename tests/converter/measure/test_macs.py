"""Multiply-accumulates of files: sizes inferred, observed, and not to be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from support import model_from_text

from converter.core.context import RunSettings
from converter.measure.macs import Macs, count_macs

W = np.ones((4, 6), np.float32)
X = np.zeros((3, 4), np.float32)


def count(tmp_path: Path, model: ir.Model | onnx.ModelProto, **feed: np.ndarray) -> int | None:
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    return count_macs(path, feed or {"x": X}, RunSettings(workspace=tmp_path))


def test_open_sizes_are_those_of_the_feed(tmp_path: Path) -> None:
    model = model_from_text("g (float[N,4] x) => (float[N,6] y) { y = MatMul(x, w) }", w=W)
    assert count(tmp_path, model) == 3 * 4 * 6


def test_claims_of_the_file_are_not_believed(tmp_path: Path) -> None:
    text = "g (float[N,4] x) => (float[N,6] y) <float[99,4] h> { h = Relu(x) y = MatMul(h, w) }"
    assert count(tmp_path, model_from_text(text, w=W)) == 3 * 4 * 6


def test_computed_sizes_are_observed(tmp_path: Path) -> None:
    text = """g (float[N,4] x) => (float[M,6] y)
    { n = NonZero(x) t = Transpose(n) s = Shape(t) l = Gather(s, zero) r = Range(zero, l, one)
      h = Gather(x, r) y = MatMul(h, w) }"""
    numbers = {"zero": np.asarray(0, np.int64), "one": np.asarray(1, np.int64)}
    model = model_from_text(text, w=W, **numbers)
    x = X.copy()
    x[0, :2] = 1.0
    assert count(tmp_path, model, x=x) == 2 * 4 * 6


def test_operators_of_the_runtime_are_counted(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[N,4] x) => (float[N,6] y) { y = com.microsoft.FusedMatMul <alpha = 2.0> (x, w) }"""
    assert count(tmp_path, model_from_text(text, w=W)) == 3 * 4 * 6


def test_functions_and_branches_are_counted(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    g (float[N,4] x, bool c) => (float[N,6] y) {
      h = If (c) <then_branch = a () => (float[N,6] p) { p = own.f(x, w) },
                  else_branch = b () => (float[N,6] q) { q = MatMul(x, w) }>
      y = Relu(h) }
    <domain: "own", opset_import: ["" : 17]> f (u, v) => (z) { z = MatMul(u, v) }"""
    model = model_from_text(text, w=W)
    assert count(tmp_path, model, x=X, c=np.asarray(True)) == 2 * 3 * 4 * 6


def test_what_cannot_be_known_is_none(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
    g (float[N,4] x) => (float[N,6] y) { h = acme.Secret(x) y = MatMul(h, w) }"""
    assert count(tmp_path, model_from_text(text, w=W)) is None


def test_share_that_is_left() -> None:
    assert Macs(10, 4).ratio == 0.4
    assert Macs(0, 0).ratio is None
