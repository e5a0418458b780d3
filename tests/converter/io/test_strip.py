"""Models without their weights: small, harmless, still models."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import converter
from converter.errors import UsageError
from converter.io import formats, strip
from converter.io.layout import Layout
from converter.io.unknown import messages

SECRET = "/home/somebody/train.py"
STRIPPED = Layout(strip_weights=True)
RNG = np.random.default_rng(3)


def model() -> onnx.ModelProto:
    """Weights of every place: initializers, constants, branches, functions, words, trees."""
    big = RNG.normal(size=(100, 200)).astype(np.float32)
    constant = numpy_helper.from_array(big[:, :50], "constant")
    inner = helper.make_graph(
        [helper.make_node("Add", ["m", "inner"], ["then"], doc_string=SECRET)],
        "then",
        [],
        [helper.make_tensor_value_info("then", 1, [3, 50])],
        [numpy_helper.from_array(big[:3, :50] + 1, "inner")],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["m"], ["else"])],
        "else",
        [],
        [helper.make_tensor_value_info("else", 1, [3, 50])],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "first", doc_string=SECRET),
        helper.make_node("Reshape", ["h", "shape"], ["r"]),
        helper.make_node("Add", ["r", "bias"], ["b"]),
        helper.make_node("Mul", ["b", "scale"], ["s"]),
        helper.make_node("MatMul", ["s", "w2"], ["t"]),
        helper.make_node("Constant", [], ["c"], value=constant),
        helper.make_node("MatMul", ["t", "c"], ["m"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=other),
        helper.make_node("Unsqueeze", ["y", "axes"], ["u"]),
        helper.make_node("Resize", ["u", "", "scales"], ["v"], mode="nearest"),
    ]
    nodes[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value=SECRET)
    weights = {
        "w": big,
        "bias": big[0],
        "w2": big.T.copy(),
        "shape": np.int64([3, 200]),
        "scale": np.float32(0.5),
        "flag": np.array(True),
        "axes": np.int64([0, 1]),
        "scales": np.float32([1, 1, 2, 2]),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [3, 100])],
        [helper.make_tensor_value_info("v", 1, [1, 1, 6, 100])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
        doc_string=SECRET,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made.doc_string = SECRET
    made.graph.initializer[0].doc_string = SECRET
    made.metadata_props.add(key="author", value="somebody")
    onnx.checker.check_model(made, full_check=True)
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    path.write_bytes(model().SerializeToString())
    return path


def nodes_of(model: ir.Model) -> list[tuple[str, str | None, list[str | None]]]:
    found = []
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        names = [None if v is None else v.name for v in (*node.inputs, *node.outputs)]
        found.append((node.op_type, node.name, names))
    return found


@pytest.mark.parametrize("suffix", [".onnx", ".json", ".textproto", ".onnxtxt", ".txt"])
def test_the_graph_stays_and_the_weights_go(tmp_path, source, suffix):
    before = formats.load(source)
    saved = formats.save(before, tmp_path / f"out{suffix}", layout=STRIPPED)
    assert saved.nbytes < 8000
    assert any("nothing was verified after stripping" in note for note in saved.notes)
    text = saved.path.read_bytes()
    for leak in (b"somebody", b"stack_trace", b"author"):
        assert leak not in text
    after = formats.load(saved.path)
    assert nodes_of(after) == nodes_of(before)
    old, new = before.graph.initializers, after.graph.initializers
    assert set(new) == set(old)
    for name, value in old.items():
        assert new[name].const_value.shape == value.const_value.shape
        assert new[name].const_value.dtype == value.const_value.dtype
        kept = name in {"shape", "scale", "flag", "axes", "scales"}
        assert new[name].const_value.numpy().any() == kept
        if kept:
            np.testing.assert_array_equal(new[name].const_value.numpy(), value.const_value.numpy())
    assert [v.shape for v in after.graph.outputs] == [v.shape for v in before.graph.outputs]


def test_onnxruntime_and_the_checker_take_it(tmp_path, source):
    import onnxruntime as ort

    saved = formats.save(formats.load(source), tmp_path / "out.onnx", layout=STRIPPED)
    onnx.checker.check_model(str(saved.path))
    session = ort.InferenceSession(str(saved.path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.ones((3, 100), np.float32)})
    assert found.shape == (1, 1, 6, 100)
    assert not found.any()


def test_saving_does_not_strip_the_model_in_memory(tmp_path, source):
    loaded = formats.load(source)
    formats.save(loaded, tmp_path / "out.onnx", layout=STRIPPED)
    again = formats.save(loaded, tmp_path / "whole.onnx")
    assert again.path.read_bytes() == source.read_bytes()


def test_a_stripped_model_stays_small_through_passes(tmp_path, source):
    stripped = tmp_path / "stripped.onnx"
    first = converter.convert(source, stripped, strip_weights=True, verify=False)
    assert any("stripped" in note for note in first.report.notes)
    size = stripped.stat().st_size
    result = converter.convert(
        stripped, tmp_path / "out.onnx", passes="simplify", provenance=False, verify=False
    )
    assert (tmp_path / "out.onnx").stat().st_size <= size
    assert any("stripped" in note for note in result.report.notes)


def test_words_trees_and_odd_types(tmp_path):
    """What is no float tensor: vocabularies, lists of attributes, 4-bit numbers, texts, blobs."""
    int4 = helper.make_tensor(
        "q", TensorProto.INT4, [512, 512], np.full(512 * 512, 3, ml_dtypes.int4)
    )
    small = helper.make_tensor("p", TensorProto.INT4, [64, 64], np.full(64 * 64, 3, ml_dtypes.int4))
    texts = helper.make_tensor("s", TensorProto.STRING, [3], [b"anna", b"berta", b"cleo"])
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["s"],
            ["y"],
            domain="ai.onnx.ml",
            keys_strings=["anna", "berta"],
            values_floats=list(map(float, range(1, 101))),
        ),
        helper.make_node(
            "EPContext", [], ["z"], domain="com.microsoft", ep_cache_context="x" * 999
        ),
        helper.make_node("DequantizeLinear", ["q", "qs"], ["d"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [],
        [helper.make_tensor_value_info("y", 1, None)],
        [int4, small, texts, numpy_helper.from_array(np.float32(1), "qs")],
    )
    proto = helper.make_model(graph, ir_version=10)
    strip.strip(proto)
    assert strip.is_stripped(proto)
    encoder, context, _ = proto.graph.node
    attributes = {a.name: a for a in encoder.attribute}
    assert list(attributes["keys_strings"].strings) == [b"0", b"1"]
    assert set(attributes["values_floats"].floats) == {0.0}
    assert len(attributes["values_floats"].floats) == 100
    assert context.attribute[0].s == b""
    (sparse,) = proto.graph.sparse_initializer
    assert list(sparse.dims) == [512, 512]
    assert sparse.values.data_type == TensorProto.INT4
    (packed,) = (t for t in proto.graph.initializer if t.name == "p")
    assert packed.raw_data == bytes(64 * 64 // 2)
    (text,) = (t for t in proto.graph.initializer if t.name == "s")
    assert list(text.string_data) == [b"0", b"1", b"2"]


def test_old_constants_without_a_sparse_form_become_zeros():
    value = numpy_helper.from_array(np.ones((20, 20), np.float32))
    node = helper.make_node("Constant", [], ["y"], value=value)
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", 1, [20, 20])])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4)
    strip.strip(proto)
    onnx.checker.check_model(proto)
    assert not numpy_helper.to_array(proto.graph.node[0].attribute[0].t).any()


def test_an_ort_file_keeps_its_weights(tmp_path, source):
    with pytest.raises(UsageError, match="cannot do without its weights"):
        converter.save(converter.load(source), tmp_path / "m.ort", strip_weights=True)


def test_every_zoo_model_can_be_stripped_and_read_again(zoo, tmp_path):
    paths = sorted(zoo.glob("models/*.onnx"))[::4] + sorted(zoo.glob("torture57/*.onnx"))
    assert len(paths) > 50
    for path in paths:
        before = formats.load(path)
        saved = formats.save(before, tmp_path / "out.onnx", layout=STRIPPED)
        after = formats.load(saved.path)
        assert nodes_of(after) == nodes_of(before), path.name
        texts = [m for m in messages(onnx.load(saved.path)) if getattr(m, "doc_string", "")]
        assert not texts, path.name
