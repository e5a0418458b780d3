"""Loading: laziness, external data, files that are something else, text forms."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from google.protobuf import json_format, text_format
from onnx import TensorProto, helper, numpy_helper

from converter.core.tensors import FileTensor
from converter.errors import FormatError, InvalidModelError, LimitExceededError, ModelError
from converter.io import bulk, formats, meta
from converter.io.limits import LoadLimits

WEIGHT = np.arange(2048, dtype=np.float32).reshape(2, 1024)


def model_with(*tensors: TensorProto, nodes: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes or [helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", 1, None)],
        list(tensors),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def weight(name: str = "w") -> TensorProto:
    return numpy_helper.from_array(WEIGHT, name)


def external(location: str = "w.bin", name: str = "w", **entries: object) -> TensorProto:
    tensor = TensorProto(name=name, data_type=1, dims=WEIGHT.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def write(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_large_tensors_stay_in_the_file(tmp_path):
    path = write(model_with(weight()), tmp_path / "m.onnx")
    model = formats.load(path)
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, FileTensor)
    np.testing.assert_array_equal(tensor.numpy(), WEIGHT)
    assert model.meta[meta.PATH] == str(path)


def test_a_loaded_model_outlives_its_file(tmp_path):
    path = write(model_with(weight()), tmp_path / "m.onnx")
    model = formats.load(path)
    path.unlink()
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), WEIGHT)


def test_packed_float_lists_stay_in_the_file_too(tmp_path):
    tensor = helper.make_tensor("w", TensorProto.FLOAT, WEIGHT.shape, WEIGHT.ravel().tolist())
    model = formats.load(write(model_with(tensor), tmp_path / "m.onnx"))
    loaded = model.graph.initializers["w"].const_value
    assert isinstance(loaded, FileTensor)
    np.testing.assert_array_equal(loaded.numpy(), WEIGHT)


def test_large_constants_and_subgraph_tensors_stay_in_the_file(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["o"])],
        "b",
        [],
        [helper.make_tensor_value_info("o", 1, None)],
        [weight("inner")],
    )
    nodes = [
        helper.make_node("Constant", [], ["c"], value=weight("k")),
        helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=body),
    ]
    flag = numpy_helper.from_array(np.array(True), "flag")
    model = formats.load(write(model_with(flag, nodes=nodes), tmp_path / "m.onnx"))
    constant, branch = list(model.graph)
    assert isinstance(constant.attributes["value"].as_tensor(), FileTensor)
    inner = branch.attributes["then_branch"].as_graph().initializers["inner"].const_value
    assert isinstance(inner, FileTensor)
    np.testing.assert_array_equal(inner.numpy(), WEIGHT)


@pytest.mark.parametrize("bare", [False, True])
def test_external_data(tmp_path, monkeypatch, bare):
    (tmp_path / "w.bin").write_bytes(bytes(64) + WEIGHT.tobytes())
    write(model_with(external(offset=64, length=WEIGHT.nbytes)), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    model = formats.load("m.onnx" if bare else tmp_path / "m.onnx")
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), WEIGHT)
    assert model.graph.meta[meta.DATA_FILES] == (str(tmp_path / "w.bin"),)
    assert model.meta[meta.PATH] == str(tmp_path / "m.onnx")


def test_external_data_without_length_ends_where_the_shape_says(tmp_path):
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes() + bytes(100))
    model = formats.load(write(model_with(external()), tmp_path / "m.onnx"))
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), WEIGHT)


def test_external_data_in_functions_is_found_beside_the_model(tmp_path, monkeypatch):
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    model = model_with(nodes=[helper.make_node("F", [], ["y"], domain="d")])
    constant = helper.make_node("Constant", [], ["o"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(external())
    imports = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("d", "F", [], ["o"], [constant], imports))
    model.opset_import.add(domain="d", version=1)
    path = write(model, tmp_path / "m.onnx")
    monkeypatch.chdir("/")
    (node,) = next(iter(formats.load(path).functions.values()))
    np.testing.assert_array_equal(node.attributes["value"].as_tensor().numpy(), WEIGHT)


BAD_ENTRIES = {
    "offset beyond": {"offset": 1 << 20},
    "negative offset": {"offset": -4},
    "text offset": {"offset": "1_0"},
    "short length": {"length": 4},
    "long length": {"length": WEIGHT.nbytes * 2},
    "negative length": {"length": -1},
    "absolute": {"location": "/etc/passwd"},
    "dots": {"location": "../w.bin"},
    "empty": {"location": ""},
}


@pytest.mark.parametrize("case", BAD_ENTRIES)
@pytest.mark.parametrize("bare", [False, True])
def test_bad_external_data_is_refused(tmp_path, monkeypatch, case, bare):
    folder = tmp_path / "inner"
    folder.mkdir()
    for place in (tmp_path, folder):
        (place / "w.bin").write_bytes(WEIGHT.tobytes())
    write(model_with(external(**BAD_ENTRIES[case])), folder / "m.onnx")
    monkeypatch.chdir(folder)
    with pytest.raises(InvalidModelError):
        formats.load("m.onnx" if bare else folder / "m.onnx")


def test_missing_external_data(tmp_path):
    with pytest.raises(ModelError, match="missing"):
        formats.load(write(model_with(external()), tmp_path / "m.onnx"))


@pytest.mark.parametrize("dims", [[2, 1023], [2, 1025], [1 << 40], [1 << 32, 1 << 32]])
def test_raw_data_must_fit_the_shape(tmp_path, dims):
    tensor = weight()
    tensor.dims[:] = dims
    with pytest.raises((InvalidModelError, LimitExceededError)):
        formats.load(write(model_with(tensor), tmp_path / "m.onnx"))


def test_the_sum_of_all_tensors_is_bounded(tmp_path):
    path = write(model_with(weight(), weight("v")), tmp_path / "m.onnx")
    with pytest.raises(LimitExceededError):
        formats.load(path, limits=LoadLimits(tensor_bytes=WEIGHT.nbytes + 100))


def test_a_sparse_bomb_is_refused(tmp_path):
    model = model_with()
    sparse = model.graph.sparse_initializer.add(dims=[1 << 40])
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([1]), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.int64([5])))
    with pytest.raises(LimitExceededError):
        formats.load(write(model, tmp_path / "m.onnx"))
    assert bulk.DENSE_BYTES < 1 << 40


def test_sparse_indices_out_of_range_are_refused(tmp_path):
    model = model_with()
    sparse = model.graph.sparse_initializer.add(dims=[10])
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([1]), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.int64([10])))
    with pytest.raises(InvalidModelError):
        formats.load(write(model, tmp_path / "m.onnx"))


OTHERS = {
    "zip": (b"PK\x03\x04rest", "zip"),
    "pickle": (b"\x80\x04\x95....", "pickle"),
    "tflite": (b"\x1c\x00\x00\x00TFL3....", "TensorFlow Lite"),
    "ort": (b"\x28\x00\x00\x00ORTM....", "onnxruntime"),
    "safetensors": (b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "safetensors"),
    "html": (b"\n<!DOCTYPE html><html>", "HTML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs"),
    "gzip": (b"\x1f\x8b\x08", "compressed"),
    "gguf": (b"GGUF\x03", "GGUF"),
    "empty": (b"", "empty"),
    "text": (b"hello world, this is text", "not an ONNX model"),
    "zeros": (bytes(100), "not an ONNX model"),
    "other protobuf": (b"\x0a\x03abc\x12\x03abc", "no ONNX graph"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_named(tmp_path, kind):
    content, expected = OTHERS[kind]
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=expected):
        formats.load(path)


def test_truncated_files_are_refused(tmp_path):
    data = model_with(weight()).SerializeToString()
    path = tmp_path / "m.onnx"
    for size in (10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ModelError):
            formats.load(path)


def test_missing_model_folder_and_pipe(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        formats.load(tmp_path / "none.onnx")
    with pytest.raises(ModelError):
        formats.load(tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelError):
        formats.load(tmp_path / "pipe.onnx")


@pytest.mark.parametrize("suffix", [".onnx.json", ".json", ".textproto", ".pbtxt"])
def test_text_forms_round_trip(tmp_path, suffix):
    source = write(model_with(weight()), tmp_path / "m.onnx")
    written = tmp_path / f"m{suffix}"
    formats.save(formats.load(source), written)
    back = formats.load(written)
    np.testing.assert_array_equal(back.graph.initializers["w"].const_value.numpy(), WEIGHT)
    (tmp_path / "renamed.onnx").write_bytes(written.read_bytes())
    assert ir.to_proto(formats.load(tmp_path / "renamed.onnx")) == ir.to_proto(back)


def test_onnx_syntax_is_read_and_written_when_nothing_is_lost(tmp_path):
    text = (
        '<ir_version: 8, opset_import: ["" : 17]>\ng (float[N] x) => (float[N] y) { y = Relu(x) }'
    )
    (tmp_path / "m.onnxtxt").write_text(text)
    model = formats.load(tmp_path / "m.onnxtxt")
    assert [node.op_type for node in model.graph] == ["Relu"]
    formats.save(model, tmp_path / "out.onnxtxt")
    assert formats.load(tmp_path / "out.onnxtxt").graph.outputs[0].name == "y"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.json", "{"),
        ("m.json", '{"unknownField": 1}'),
        ("m.json", "[" * 100_000),
        ("m.json", '{"graph":' * 300 + "{}" + "}" * 300),
        ("m.textproto", "graph {"),
        ("m.textproto", "graph { node { attribute { g {" * 2000),
        ("m.onnxtxt", "garbage"),
        ("m.onnxtxt", '<ir_version: 8, opset_import: ["" : 17]> g ('),
        ("m.onnxtxt", "<ir_version: 8>" + "seq(" * 50_000),
        ("m.json", "\udcff"),
    ],
)
def test_broken_text_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError):
        formats.load(tmp_path / name)


HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.json", '{"irVersion": 8,\n "graph": {"node": [}]}}', "line 2, column 21"),
        ("m.json", '{"irVersion": 8,\n "graph": {"noode": []}}', '"noode".*line 2'),
        ("m.json", "[1, 2]", "m.json"),
        ("m.textproto", "ir_version: 8\ngraph {\n  noode { }\n}", "line 3, column 3"),
        ("m.textproto", b"ir_version: 8\n# \xff", "not UTF-8.*line 2"),
        ("m.onnxtxt", HEADER + "g (float[N] x) => (float[N] y) {\n y = Relu(x\n}", "line 4, col"),
        ("m.txt", HEADER + f"g (float[{'9' * 30}] x) => (float[N] y) {{ }}", "number is too long"),
    ],
)
def test_broken_text_is_refused_with_the_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError, match=words):
        formats.load(tmp_path / name)


@pytest.mark.parametrize("suffix", [".json", ".textproto"])
def test_brackets_in_strings_are_no_nesting(tmp_path, suffix):
    content = np.frombuffer(b"{[(<\"'" * 1000, np.int8)
    proto = model_with(numpy_helper.from_array(content, "w"))
    proto.doc_string = "[(\\\"'#" * 1000
    source = write(proto, tmp_path / "m.onnx")
    formats.save(formats.load(source), tmp_path / f"m{suffix}")
    again = formats.load(tmp_path / f"m{suffix}")
    assert again.graph.initializers["w"].const_value.tobytes() == content.tobytes()
    assert again.doc_string == proto.doc_string


@pytest.mark.parametrize(
    "content", ['"\\' * 2_000_000, '"' + '\\"' * 2_000_000, "'\"#\n" * 999_999]
)
@pytest.mark.parametrize("name", ["m.json", "m.textproto"])
def test_strings_without_an_end_take_no_time(tmp_path, name, content):
    (tmp_path / name).write_text('{"graph": ' + content)
    started = time.process_time()
    with pytest.raises(ModelError):
        formats.load(tmp_path / name)
    assert time.process_time() - started < 5


def test_the_largest_float_survives_json(tmp_path):
    extreme = float(np.finfo(np.float32).max)
    nodes = [helper.make_node("Constant", [], ["y"], value_floats=[-extreme, 1.0, extreme])]
    source = write(model_with(weight(), nodes=nodes), tmp_path / "m.onnx")
    formats.save(formats.load(source), tmp_path / "m.json")
    (node,) = formats.load(tmp_path / "m.json").graph
    assert list(node.attributes["value_floats"].value) == [-extreme, 1.0, extreme]


def test_what_is_in_a_file_counts_more_than_its_name(tmp_path):
    source = write(model_with(weight()), tmp_path / "m.onnx")
    expected = ir.to_proto(formats.load(source))
    formats.save(formats.load(source), tmp_path / "m.json")
    for content in (source, tmp_path / "m.json"):
        for name in ("a.txt", "a.textproto", "a.json", "a.onnx", "a"):
            (tmp_path / name).write_bytes(content.read_bytes())
            assert ir.to_proto(formats.load(tmp_path / name)) == expected, (content, name)


@pytest.mark.parametrize("suffix", [".json", ".textproto"])
def test_external_data_of_texts_is_held_to_the_same_rules(tmp_path, suffix):
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    proto = model_with(external("w.bin"))
    render = {".json": json_format.MessageToJson, ".textproto": text_format.MessageToString}
    (tmp_path / f"m{suffix}").write_text(render[suffix](proto))
    loaded = formats.load(tmp_path / f"m{suffix}")
    np.testing.assert_array_equal(loaded.graph.initializers["w"].const_value.numpy(), WEIGHT)
    proto.graph.initializer[0].external_data[0].value = "../w.bin"
    (tmp_path / f"m{suffix}").write_text(render[suffix](proto))
    with pytest.raises(ModelError, match="leaves the folder"):
        formats.load(tmp_path / f"m{suffix}")


def test_unsorted_nodes_are_sorted_with_a_note(tmp_path):
    nodes = [
        helper.make_node("Relu", ["a"], ["y"]),
        helper.make_node("Identity", ["w"], ["a"]),
    ]
    model = formats.load(write(model_with(weight(), nodes=nodes), tmp_path / "m.onnx"))
    assert [node.op_type for node in model.graph] == ["Identity", "Relu"]
    assert any("sorted" in note for note in model.meta[meta.NOTES])


def test_cycles_are_refused(tmp_path):
    nodes = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Relu", ["y"], ["a"])]
    with pytest.raises(InvalidModelError):
        formats.load(write(model_with(nodes=nodes), tmp_path / "m.onnx"))


def test_an_output_that_is_an_input_of_another_type_is_refused(tmp_path):
    model = model_with(weight())
    model.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]))
    model.graph.output.append(helper.make_tensor_value_info("x", TensorProto.INT8, [1]))
    with pytest.raises(InvalidModelError):
        formats.load(write(model, tmp_path / "m.onnx"))


@pytest.mark.parametrize("part", ["op", "input", "attribute", "metadata"])
def test_text_that_is_not_utf8_is_refused(tmp_path, part):
    node = helper.make_node("Elu", ["w"], ["y"], alpha=1.0)
    node.metadata_props.add(key="mark", value="metadata")
    data = model_with(weight(), nodes=[node]).SerializeToString()
    mark = {"op": b"Elu", "input": b"\x01w\x12", "attribute": b"alpha", "metadata": b"mark"}[part]
    assert mark in data
    broken = mark[:1] + b"\xff" + mark[2:]
    (tmp_path / "m.onnx").write_bytes(data.replace(mark, broken))
    with pytest.raises(FormatError):
        formats.load(tmp_path / "m.onnx")


def test_placeholders_cannot_be_smuggled_in(tmp_path):
    tensor = external("converter:0123456789abcdef/0", offset=0, length=WEIGHT.nbytes)
    with pytest.raises(ModelError):
        formats.load(write(model_with(tensor), tmp_path / "m.onnx"))
