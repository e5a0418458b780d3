"""Sparse initializers: only on request, only where smaller, as the specification has them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import run

import converter
from converter.core.tensors import MappedTensor
from converter.errors import UsageError
from converter.io.layout import Layout
from converter.io.sparsify import sparsified

RNG = np.random.default_rng(3)
FEED = {"x": RNG.normal(size=(2, 64)).astype(np.float32)}
ON = Layout(sparse_initializers=True)


def thin(shape: tuple[int, ...], share: float, kind: type = np.float32) -> np.ndarray:
    array = RNG.normal(size=shape)
    array[RNG.random(shape) < share] = 0
    return array.astype(kind)


def make(path: Path, *, ir_version: int = 8) -> Path:
    """Write a net with weights of several densities, one in a branch and one overridable."""
    weights = {
        "most": thin((64, 64), 0.9),
        "half": thin((64, 64), 0.5),
        "given": thin((64, 64), 0.9),
        "inner": thin((64, 64), 0.8),
        "bias": np.zeros(64, np.float32),
    }
    branch = {
        f"{kind}_branch": helper.make_graph(
            [helper.make_node("MatMul", ["h2", name], [kind])],
            kind,
            [],
            [helper.make_tensor_value_info(kind, 1, ["N", 64])],
            [numpy_helper.from_array(weights["inner"], "inner")] if name == "inner" else [],
        )
        for kind, name in (("then", "inner"), ("else", "most"))
    }
    nodes = [
        helper.make_node("MatMul", ["x", "most"], ["h0"]),
        helper.make_node("MatMul", ["h0", "half"], ["h1"]),
        helper.make_node("MatMul", ["h1", "given"], ["h"]),
        helper.make_node("Add", ["h", "bias"], ["h2"]),
        helper.make_node("If", ["flag"], ["y"], **branch),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", 1, ["N", 64]),
            helper.make_tensor_value_info("given", 1, [64, 64]),
        ],
        [helper.make_tensor_value_info("y", 1, ["N", 64])],
        [
            *(numpy_helper.from_array(weights[n], n) for n in ("most", "half", "given", "bias")),
            numpy_helper.from_array(np.array(True), "flag"),
        ],
    )
    model = helper.make_model(
        graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", 17)]
    )
    onnx.save(model, path)
    return path


def outputs(path: Path) -> np.ndarray:
    return run(onnx.load(path), FEED)["y"]


def test_what_is_smaller_is_written_sparse_and_read_back(tmp_path: Path) -> None:
    source = make(tmp_path / "m.onnx")
    made = converter.convert(source, tmp_path / "s.onnx", sparse_initializers=True)
    proto = onnx.load(tmp_path / "s.onnx")
    onnx.checker.check_model(proto)
    assert [s.values.name for s in proto.graph.sparse_initializer] == ["most"]
    (sparse,) = proto.graph.sparse_initializer
    places = numpy_helper.to_array(sparse.indices)
    assert places.dtype == np.int64
    assert (np.diff(places) > 0).all()
    inner = next(a for n in proto.graph.node for a in n.attribute if a.name == "then_branch")
    assert [s.values.name for s in inner.g.sparse_initializer] == ["inner"]
    assert (tmp_path / "s.onnx").stat().st_size < 0.8 * source.stat().st_size
    assert np.array_equal(outputs(tmp_path / "s.onnx"), outputs(source))
    notes = " ".join(made.report.notes)
    assert "2 tensors written as sparse" in notes
    assert "quantize_dynamic" in notes
    dense = converter.load(tmp_path / "s.onnx").graph.initializers["most"].const_value
    assert dense is not None
    assert np.array_equal(
        dense.numpy(), converter.load(source).graph.initializers["most"].const_value
    )
    converter.convert(tmp_path / "s.onnx", tmp_path / "t.onnx", provenance=False)
    assert len(onnx.load(tmp_path / "t.onnx").graph.sparse_initializer) == 1


def test_nothing_is_sparse_unless_asked_for(tmp_path: Path) -> None:
    converter.convert(make(tmp_path / "m.onnx"), tmp_path / "d.onnx")
    assert not onnx.load(tmp_path / "d.onnx").graph.sparse_initializer


def test_equal_bytes_from_files_and_from_computed_tensors(tmp_path: Path) -> None:
    model = converter.load(make(tmp_path / "m.onnx"))
    converter.save(model, tmp_path / "a.onnx", sparse_initializers=True)
    value = model.graph.initializers["most"]
    assert value.const_value is not None
    value.const_value = MappedTensor(value.const_value, lambda part, _: part.copy())
    converter.save(model, tmp_path / "b.onnx", sparse_initializers=True)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert value.const_value.__class__ is MappedTensor  # the caller's model is not changed


@pytest.mark.parametrize(
    "kind", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8, np.int32]
)
def test_element_types_that_onnxruntime_reads(tmp_path: Path, kind: type) -> None:
    weight = np.abs(10 * thin((64, 64), 0.95)).astype(kind)
    node = helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)
    graph = helper.make_graph(
        [node, helper.make_node("Identity", ["x"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [2, 64])],
        [
            helper.make_tensor_value_info("y", 1, [64, 64]),
            helper.make_tensor_value_info("z", 1, [2, 64]),
        ],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "m.onnx")
    converter.save(
        converter.load(tmp_path / "m.onnx"), tmp_path / "s.onnx", sparse_initializers=True
    )
    proto = onnx.load(tmp_path / "s.onnx")
    assert len(proto.graph.sparse_initializer) == 1
    assert np.array_equal(run(proto, FEED)["y"], weight.astype(np.float32))


def test_a_negative_zero_is_kept(tmp_path: Path) -> None:
    model = converter.load(make(tmp_path / "m.onnx"))
    weight = np.zeros((64, 64), np.float32)
    weight[3, 4] = -0.0
    value = model.graph.initializers["most"]
    assert value.const_value is not None
    value.const_value = MappedTensor(
        value.const_value, lambda part, start: weight.reshape(-1)[start : start + part.size].copy()
    )
    converter.save(model, tmp_path / "s.onnx", sparse_initializers=True)
    found = converter.load(tmp_path / "s.onnx").graph.initializers["most"].const_value
    assert found is not None
    assert found.numpy().tobytes() == weight.tobytes()


def test_notes_where_nothing_can_be_done(tmp_path: Path) -> None:
    old = converter.load(make(tmp_path / "old.onnx", ir_version=5))
    assert "IR version 6" in sparsified(old)[1][0]
    model = converter.load(Path(__file__).parents[3] / "fixtures" / "digits_resnet.onnx")
    same, notes = sparsified(model)
    assert same is model
    assert "no tensor was written sparse" in notes[0]


def test_json_holds_them_and_other_forms_refuse(tmp_path: Path) -> None:
    model = converter.load(make(tmp_path / "m.onnx"))
    converter.save(model, tmp_path / "s.json", sparse_initializers=True)
    again = converter.load(tmp_path / "s.json")
    assert again.graph.initializers["most"].const_value.__class__.__name__ == "SparseTensor"
    for suffix in (".ort", ".onnxtxt"):
        with pytest.raises(UsageError, match="no sparse initializers"):
            converter.save(model, tmp_path / f"s{suffix}", sparse_initializers=True)
    for other in ({"strip_weights": True}, {"weights_format": "safetensors"}):
        with pytest.raises(UsageError, match="leave out"):
            Layout(sparse_initializers=True, **other)


def test_with_weights_beside_the_model(tmp_path: Path) -> None:
    source = make(tmp_path / "m.onnx")
    made = converter.convert(
        source, tmp_path / "s.onnx", sparse_initializers=True, external_data="yes"
    )
    assert made.verdict is not None
    assert made.verdict.passed
    proto = onnx.load(tmp_path / "s.onnx", load_external_data=False)
    assert [s.values.name for s in proto.graph.sparse_initializer] == ["most"]
    assert any(t.external_data for t in proto.graph.initializer)
    assert np.array_equal(outputs(tmp_path / "s.onnx"), outputs(source))
