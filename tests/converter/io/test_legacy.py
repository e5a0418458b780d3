"""Models below IR version 4: listed defaults are constants in memory and inputs in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import support

import converter
from converter.io.formats import load, save


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A model of IR version 3 whose inputs stand in an unusual order."""
    proto = onnx.parser.parse_model(
        """<ir_version: 3, opset_import: ["" : 8]>
        g (float[4,3] w, float[2,4] x, float[3] b) => (float[2,3] y) {
            h = MatMul (x, w)
            y = Add (h, b)
        }"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "b"))
    path = tmp_path / "old.onnx"
    onnx.save(proto, path)
    return path


def test_defaults_are_constants_in_memory(old: Path) -> None:
    assert [v.name for v in load(old).graph.inputs] == ["x"]


def test_the_file_lists_them_in_the_old_order(old: Path, tmp_path: Path) -> None:
    save(load(old), tmp_path / "new.onnx")
    new = onnx.load(tmp_path / "new.onnx")
    assert new.graph.input == onnx.load(old).graph.input
    assert {t.name for t in new.graph.initializer} == {"w", "b"}


def test_new_constants_are_listed_and_removed_ones_are_not(old: Path, tmp_path: Path) -> None:
    model = load(old)
    graph = model.graph
    value = ir.Value(name="c", const_value=ir.tensor(np.float32([1, 2, 3]), name="c"))
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([3])
    graph.register_initializer(value)
    graph.node(1).replace_input_with(1, value)
    del graph.initializers["b"]
    save(model, tmp_path / "new.onnx")
    proto = onnx.load(tmp_path / "new.onnx")
    onnx.checker.check_model(proto)
    assert [i.name for i in proto.graph.input] == ["w", "x", "c"]
    feed = {"x": np.ones((2, 4), np.float32)}
    np.testing.assert_allclose(support.run(proto, feed)["y"], [[5, 6, 7]] * 2)


def test_passes_work_on_them(old: Path, tmp_path: Path) -> None:
    artifact = converter.convert(old, tmp_path / "new.onnx", passes="prune:sparsity=0.5")
    assert artifact.run.steps[0].outcome.counts["weights_zeroed"] == 6
    assert onnx.load(tmp_path / "new.onnx").ir_version == 3


def test_later_versions_keep_their_overridable_inputs(old: Path, tmp_path: Path) -> None:
    proto = onnx.load(old)
    proto.ir_version = 4
    onnx.save(proto, tmp_path / "four.onnx")
    assert [v.name for v in load(tmp_path / "four.onnx").graph.inputs] == ["w", "x", "b"]
