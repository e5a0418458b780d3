"""Load and save without passes gives the same model, up to how tensors are stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from converter.io import formats, import_onnx, meta

TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def messages(message: Any) -> Iterator[Any]:
    yield message
    for field, content in message.ListFields():
        if field.message_type is not None:
            for inner in [content] if isinstance(content, Message) else content:
                yield from messages(inner)


def ordered(field: Any, key: str) -> None:
    items = sorted(field, key=lambda item: getattr(item, key))
    del field[:]
    field.extend(items)


def canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop differences without meaning: raw or typed storage, empty text, order of declarations."""
    for message in list(messages(model)):
        kind = message.DESCRIPTOR.name
        if kind == "TensorProto":
            _raw(message)
        if kind in {"GraphProto", "FunctionProto"}:
            ordered(message.value_info, "name")
        if kind == "GraphProto":
            ordered(message.quantization_annotation, "tensor_name")
        if kind == "TensorAnnotation":
            ordered(message.quant_parameter_tensor_names, "key")
        if kind == "ModelProto" and not message.model_version:
            message.ClearField("model_version")
        for field, content in message.ListFields():
            if content == "" or (field.name, kind, content) == ("domain", "NodeProto", "ai.onnx"):
                message.ClearField(field.name)
    return model


def _raw(tensor: TensorProto) -> None:
    if tensor.data_type != TensorProto.STRING and not tensor.HasField("raw_data"):
        tensor.raw_data = numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
        for name in TYPED:
            tensor.ClearField(name)
    if tensor.data_location == TensorProto.DEFAULT:
        tensor.ClearField("data_location")


def round_trip(source: Path | onnx.ModelProto, folder: Path) -> tuple[Any, Path, list[str]]:
    """Return the source's proto, the written file and the notes of loading."""
    if isinstance(source, onnx.ModelProto):
        original, source = source, folder / "source.onnx"
        source.write_bytes(original.SerializeToString())
    target = folder / "target.onnx"
    model = formats.load(source)
    formats.save(model.clone(), target)
    return onnx.load(source), target, model.meta[meta.NOTES]


def assert_same(source: Path | onnx.ModelProto, folder: Path) -> list[str]:
    original, target, notes = round_trip(source, folder)
    assert canonical(onnx.load(target)) == canonical(original)
    return notes


@pytest.fixture
def trusting(monkeypatch):
    """Leave validation to its own tests: here every file counts that can be parsed."""
    monkeypatch.setattr(import_onnx, "validate", lambda *_: None)


EXPLAINED = ("topological order", "imported more than once", "made dense", "renamed")


@pytest.mark.usefixtures("trusting")
def test_zoo(zoo, tmp_path):
    """Every model keeps everything; where something had to change, a note says so."""
    files = sorted(zoo.glob("models/*.onnx")) + sorted(zoo.glob("torture*/**/*.onnx"))
    assert len(files) > 100
    changed = []
    for path in files:
        original, target, notes = round_trip(path, tmp_path)
        if any(word in note for note in notes for word in EXPLAINED):
            changed.append(path.name)
        elif canonical(onnx.load(target)) != canonical(original):
            pytest.fail(f"{path} changed: {notes}")
        target.unlink()
    assert len(changed) < 20


@pytest.mark.usefixtures("trusting")
@pytest.mark.filterwarnings("ignore")  # making the cases overflows on purpose
def test_node_models_that_onnx_ships(tmp_path):
    from onnx.backend.test.case.node import collect_testcases

    models = [case.model for case in collect_testcases(None) if case.model is not None]
    assert len(models) > 1000
    for model in models:
        assert_same(model, tmp_path)


def tiny(**kwargs: Any) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["h"], "r"), helper.make_node("Add", ["h", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 2])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.ones(2, np.float32), "w")],
    )
    imports = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **kwargs)


def test_map_types_survive(tmp_path):
    model = tiny()
    model.opset_import.add(domain="ai.onnx.ml", version=3)
    zipmap = helper.make_node(
        "ZipMap", ["y"], ["m"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]
    )
    model.graph.node.append(zipmap)
    kind = model.graph.output.add(name="m").type.sequence_type.elem_type.map_type
    kind.key_type = TensorProto.INT64
    kind.value_type.tensor_type.elem_type = TensorProto.FLOAT
    assert_same(model, tmp_path)


def test_stale_and_repeated_declarations_survive(tmp_path):
    model = tiny()
    info = helper.make_tensor_value_info
    model.graph.value_info.append(info("gone", 1, [3]))
    model.graph.value_info.append(info("y", 1, ["N", 2]))
    model.graph.value_info.append(info("x", 1, ["N", 2]))
    model.graph.value_info.append(info("w", 1, [2]))
    model.graph.value_info.append(info("h", 1, ["N", 2]))
    model.graph.value_info.append(onnx.ValueInfoProto(name="bare"))
    assert_same(model, tmp_path)


def test_initializers_gain_no_declaration(tmp_path):
    _, target, _ = round_trip(tiny(), tmp_path)
    assert not onnx.load(target).graph.value_info


def test_annotations_survive(tmp_path):
    model = tiny()
    for name in ("x", "w", "h", "y", "elsewhere"):
        note = model.graph.quantization_annotation.add(tensor_name=name)
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    model.graph.quantization_annotation.add(tensor_name="x2")
    assert_same(model, tmp_path)


def test_metadata_does_not_grow(tmp_path):
    model = tiny()
    tensor = model.graph.initializer[0]
    for owner in (tensor, model, model.graph, model.graph.node[0], model.graph.input[0]):
        owner.metadata_props.add(key="k", value="v")
    path = tmp_path / "a.onnx"
    path.write_bytes(model.SerializeToString())
    sizes = []
    for step in range(3):
        target = tmp_path / f"{step}.onnx"
        formats.save(formats.load(path), target)
        sizes.append(target.read_bytes())
        path = target
    assert sizes[0] == sizes[1] == sizes[2]
    assert canonical(onnx.load(path)) == canonical(model)


def test_training_information_survives_with_a_note(tmp_path):
    model = tiny()
    info = model.training_info.add()
    info.algorithm.CopyFrom(helper.make_graph([], "a", [], []))
    info.initialization_binding.add(key="w", value="v")
    notes = assert_same(model, tmp_path)
    assert any("training" in note for note in notes)


def test_unknown_fields_survive_or_are_refused(tmp_path):
    from converter.errors import InvalidModelError
    from converter.io.wire import delimited

    model = tiny()
    newer = delimited(900, b"future")
    model.MergeFromString(newer)
    model.graph.MergeFromString(newer)
    model.graph.node[0].MergeFromString(newer + b"\xa8\x38\x05")
    _, target, notes = round_trip(model, tmp_path)
    assert any("newer format" in note for note in notes)
    assert onnx.load(target).ByteSize() == model.ByteSize()
    assert target.read_bytes().count(b"future") == 3
    model.graph.input[0].MergeFromString(newer)
    with pytest.raises(InvalidModelError, match="ValueInfoProto"):
        round_trip(model, tmp_path)


@pytest.mark.parametrize(
    "value",
    [1, 2.5, "text", [1, 2], [1.5, 2.0], ["a", "b"], np.arange(4.0), np.arange(2000.0)],
    ids=str,
)
def test_attributes_of_every_kind(tmp_path, value):
    model = tiny()
    made = numpy_helper.from_array(value, "t") if isinstance(value, np.ndarray) else value
    model.graph.node.append(helper.make_node("Op", [], ["z"], domain="custom", a=made))
    model.opset_import.add(domain="custom", version=1)
    assert_same(model, tmp_path)


def test_sparse_tensors_are_dense_in_memory_and_sparse_in_files(tmp_path):
    model = tiny()
    sparse = onnx.SparseTensorProto(dims=[2, 3])
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([5, 7]), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.int64([[0, 1], [1, 2]])))
    model.graph.sparse_initializer.append(sparse)
    model.graph.node.append(helper.make_node("Constant", [], ["c"], sparse_value=sparse))
    assert assert_same(model, tmp_path) == []
    loaded = formats.load(tmp_path / "target.onnx")
    dense = np.float32([[0, 5, 0], [0, 0, 7]])
    tensor = loaded.graph.initializers["s"].const_value
    np.testing.assert_array_equal(tensor.numpy(), dense)
    assert tensor.tobytes() == dense.tobytes()
    np.testing.assert_array_equal(loaded.graph[-1].attributes["value"].value.numpy(), dense)


def test_a_large_sparse_tensor_stays_in_its_file(tmp_path):
    model = tiny()
    sparse = onnx.SparseTensorProto(dims=[1 << 14, 1 << 14])  # 1 GiB when it is dense
    values = np.arange(1, 1001, dtype=np.float32)
    sparse.values.CopyFrom(numpy_helper.from_array(values, "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(1000, dtype=np.int64)))
    model.graph.sparse_initializer.append(sparse)
    assert assert_same(model, tmp_path) == []
    assert (tmp_path / "target.onnx").stat().st_size < 20_000


def test_repeated_node_names_become_unique(tmp_path):
    model = tiny()
    model.graph.node[1].name = "r"
    model.graph.node.append(helper.make_node("Relu", ["y"], ["z"], "r_1"))
    _, target, notes = round_trip(model, tmp_path)
    assert [n.name for n in onnx.load(target).graph.node] == ["r", "r_2", "r_1"]
    assert any("renamed" in note for note in notes)


@pytest.mark.usefixtures("trusting")
def test_attribute_types_that_old_files_omit_are_filled_in(tmp_path):
    model = tiny()
    model.graph.node.append(helper.make_node("Op", [], ["z"], domain="custom", a=[1, 2], b=1.0))
    model.opset_import.add(domain="custom", version=1)
    model.ir_version = 1
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    for attribute in model.graph.node[-1].attribute:
        attribute.ClearField("type")
    _, target, _ = round_trip(model, tmp_path)
    assert canonical(onnx.load(target)) == canonical(expected)


def test_functions_keep_declarations_and_large_constants(tmp_path):
    model = tiny()
    value = numpy_helper.from_array(np.arange(3000.0), "k")
    function = helper.make_function(
        "d",
        "F",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["k"], value=value),
            helper.make_node("Add", ["a", "k"], ["b"]),
        ],
        [helper.make_opsetid("", 17)],
        overload="o",
        value_info=[helper.make_tensor_value_info("k", 11, [3000])],
    )
    function.value_info.append(helper.make_tensor_value_info("stale", 1, [1]))
    model.functions.append(function)
    model.ir_version = 10
    model.opset_import.add(domain="d", version=1)
    assert_same(model, tmp_path)


def test_repeated_entries_are_merged_with_a_note(tmp_path):
    model = tiny()
    for value in ("1", "2"):
        model.graph.node[0].metadata_props.add(key="k", value=value)
        model.graph.value_info.append(helper.make_tensor_value_info("h", 1, ["N", int(value)]))
    _, target, notes = round_trip(model, tmp_path)
    written = onnx.load(target)
    assert [entry.value for entry in written.graph.node[0].metadata_props] == ["2"]
    assert written.graph.value_info[0].type.tensor_type.shape.dim[1].dim_value == 2
    assert len(notes) == 2


def odd_models() -> dict[str, onnx.ModelProto]:
    """Rare but valid things that a file may hold."""
    models = {name: tiny() for name in ("denotation", "device", "string", "attribute type", "bits")}
    models["denotation"].graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    models["denotation"].graph.initializer[0].doc_string = "text \x1b[31m é"
    models["denotation"].model_version = -1
    device = models["device"]
    device.ir_version = 11
    device.configuration.add(name="c", num_devices=2)
    configuration = device.graph.node[0].device_configurations.add(configuration_id="c")
    configuration.sharding_spec.add(tensor_name="x").device.append(0)
    text = numpy_helper.from_array(np.array([b"a", b"\xff"], object), "s")
    models["string"].graph.initializer.append(text)
    node = models["attribute type"].graph.node.add(op_type="Optional", output=["o"])
    kind = node.attribute.add(name="type", type=onnx.AttributeProto.TYPE_PROTO).tp.map_type
    kind.key_type = TensorProto.INT64
    kind.value_type.tensor_type.elem_type = TensorProto.FLOAT
    for dtype, values in ((TensorProto.INT8, [-1] * 2000), (TensorProto.FLOAT16, [1.5] * 2000)):
        made = helper.make_tensor(str(dtype), dtype, [2000], values)
        models["bits"].graph.initializer.append(made)
    return models


@pytest.mark.parametrize("name", odd_models())
def test_odd_models(tmp_path, name):
    assert assert_same(odd_models()[name], tmp_path) == []


def test_nothing_is_longer_than_it_was(tmp_path):
    """Numbers that a list holds in fewer bytes, and imports that leave the domain out."""
    model = tiny()
    numbers = helper.make_tensor("n", TensorProto.INT64, [4000], range(4000))
    model.graph.initializer.append(numbers)
    model.functions.append(
        helper.make_function("f", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [])
    )
    for imports in (model.opset_import, model.functions[0].opset_import):
        del imports[:]
        imports.add(version=17)
    model.opset_import.add(domain="f", version=1)
    assert not len(numbers.raw_data)
    before = tmp_path / "in.onnx"
    before.write_bytes(model.SerializeToString())
    saved = formats.save(formats.load(before), tmp_path / "out.onnx")
    assert saved.nbytes <= before.stat().st_size
    again = onnx.load(saved.path)
    assert numpy_helper.to_array(again.graph.initializer[-1]).tolist() == list(range(4000))
    assert not any(item.HasField("domain") for item in again.functions[0].opset_import)
