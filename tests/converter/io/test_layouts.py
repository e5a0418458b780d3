"""Weights beside the model: shards, safetensors, what a crash leaves, what never grows."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import run

import converter
from converter.core.tensors import MappedTensor
from converter.errors import UsageError, WriteError
from converter.io import atomic, export_onnx, formats, publish
from converter.io.layout import Layout, parse_size

RNG = np.random.default_rng(7)
SHAPES = {"a": (64, 64), "b": (64, 64), "c": (64, 8), "bias": (8,), "d": (8, 64)}
FEED = {"x": RNG.normal(size=(2, 64)).astype(np.float32)}
LAYOUTS = {
    "single": Layout(external_data="no"),
    "external": Layout(external_data="yes"),
    "shards": Layout(shard_size=20_000),
    "safetensors": Layout(weights_format="safetensors"),
    "safetensors shards": Layout(weights_format="safetensors", shard_size=20_000),
}


def make(path: Path) -> Path:
    """Write a chain of MatMuls with a bias, and an If whose branch has a weight of its own."""
    weights = [
        numpy_helper.from_array(RNG.normal(size=s).astype(np.float32) / 8, n)
        for n, s in SHAPES.items()
    ]
    inner = numpy_helper.from_array(np.full((8, 64), 0.5, np.float32), "inner")
    branches = {
        f"{kind}_branch": helper.make_graph(
            [helper.make_node("Add", ["h4", name], [kind])],
            kind,
            [],
            [helper.make_tensor_value_info(kind, 1, [8, 64])],
            [inner] if name == "inner" else [],
        )
        for kind, name in (("then", "inner"), ("else", "d"))
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h1"]),
        helper.make_node("MatMul", ["h1", "b"], ["h2"]),
        helper.make_node("MatMul", ["h2", "c"], ["h3"]),
        helper.make_node("Add", ["h3", "bias"], ["y"]),
        helper.make_node("Identity", ["d"], ["h4"]),
        helper.make_node("If", ["flag"], ["z"], **branches),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [2, 64])],
        [helper.make_tensor_value_info(n, 1, s) for n, s in {"y": [2, 8], "z": [8, 64]}.items()],
        [*weights, numpy_helper.from_array(np.array(True), "flag")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "in.onnx")


def files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def weights_of(model: ir.Model) -> dict[str, bytes]:
    return {n: v.const_value.tobytes() for n, v in model.graph.initializers.items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_round_trip(tmp_path, source, name):
    folder = tmp_path / "out"
    folder.mkdir()
    saved = formats.save(formats.load(source), folder / "m.onnx", layout=LAYOUTS[name])
    assert files(folder) == {p.name for p in (saved.path, *saved.data_paths)}
    assert saved.nbytes == sum(p.stat().st_size for p in folder.iterdir())
    assert weights_of(formats.load(saved.path)) == weights_of(formats.load(source))
    before, after = run(source, FEED), run(saved.path, FEED)
    assert all(np.array_equal(before[n], after[n]) for n in before)
    onnx.checker.check_model(str(saved.path), full_check=True)
    # and back into one file: what was read, byte for byte
    back = formats.save(formats.load(saved.path), tmp_path / "back.onnx", external_data="no")
    assert back.path.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_bytes_every_time(tmp_path, source, name):
    contents = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        formats.save(formats.load(source), folder / "m.onnx", layout=LAYOUTS[name])
        contents.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert contents[0] == contents[1]


def test_shards_keep_to_their_size_and_are_numbered(tmp_path, source):
    saved = formats.save(formats.load(source), tmp_path / "m.onnx", layout=LAYOUTS["shards"])
    count = len(saved.data_paths)
    assert count == 3
    digests = {p.name[: len("m-") + 16] for p in saved.data_paths}
    assert len(digests) == 1
    (stem,) = digests
    assert [p.name for p in saved.data_paths] == [
        f"{stem}-{i:05}-of-{count:05}.data" for i in (1, 2, 3)
    ]
    assert all(p.stat().st_size <= 20_000 for p in saved.data_paths)


def test_one_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path, source):
    saved = formats.save(formats.load(source), tmp_path / "m.onnx", layout=Layout(shard_size=8000))
    sizes = [p.stat().st_size for p in saved.data_paths]
    assert sizes.count(64 * 64 * 4) == 2
    assert all(size <= 8000 for size in sizes if size != 64 * 64 * 4)


@pytest.mark.parametrize("name", ["safetensors", "safetensors shards"])
def test_the_safetensors_library_reads_names_shapes_and_values(tmp_path, source, name):
    from safetensors.numpy import load_file

    model = formats.load(source)
    saved = formats.save(model, tmp_path / "m.onnx", layout=LAYOUTS[name])
    assert len(saved.data_paths) == (1 if name == "safetensors" else 3)
    read: dict[str, np.ndarray] = {}
    for path in saved.data_paths:
        if LAYOUTS[name].shard_size:
            assert path.stat().st_size <= 20_000
        read |= load_file(path)
    assert set(read) == {*SHAPES, "inner"}
    for value in model.graph.initializers.values():
        if value.name != "flag":
            np.testing.assert_array_equal(read[value.name], value.const_value.numpy())


TYPES = {
    "f64": (np.float64, "F64"),
    "f16": (np.float16, "F16"),
    "bf16": (ml_dtypes.bfloat16, "BF16"),
    "f8": (ml_dtypes.float8_e4m3fn, "F8_E4M3"),
    "i64": (np.int64, "I64"),
    "i8": (np.int8, "I8"),
    "u16": (np.uint16, "U16"),
    "bool": (np.bool_, "BOOL"),
    "u4": (ml_dtypes.uint4, "U8"),
    "f8z": (ml_dtypes.float8_e5m2fnuz, "U8"),
}


def test_safetensors_of_every_type(tmp_path):
    from safetensors import safe_open

    values = []
    for name, (kind, _) in TYPES.items():
        array = RNG.integers(0, 2, (40, 60)).astype(kind)
        tensor = ir.Tensor(array, name=name)
        values.append(ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype)))
    graph = ir.Graph(
        [], values[:1], nodes=[], initializers=values, name="g", opset_imports={"": 21}
    )
    path = tmp_path / "m.onnx"
    saved = formats.save(ir.Model(graph, ir_version=10), path, layout=LAYOUTS["safetensors"])
    (data,) = saved.data_paths
    with safe_open(data, "np") as read:
        assert set(read.keys()) == set(TYPES)
        found = {n: read.get_slice(n).get_dtype() for n in TYPES}
        assert found == {n: dtype for n, (_, dtype) in TYPES.items()}
        assert read.get_slice("f16").get_shape() == [40, 60]
        assert read.metadata()["u4"] == "UINT4 [40, 60] as bytes"
    raw = data.read_bytes()
    table = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    ends = sorted(e["data_offsets"] for n, e in table.items() if n != "__metadata__")
    assert [start for start, _ in ends[1:]] == [end for _, end in ends[:-1]]  # no gaps
    again = formats.load(path)
    for name, value in again.graph.initializers.items():
        before = next(v for v in values if v.name == name)
        assert value.const_value.dtype == before.const_value.dtype
        assert value.const_value.tobytes() == before.const_value.tobytes()


def test_shared_tensors_are_stored_once_and_told_in_the_metadata(tmp_path, source):
    from safetensors import safe_open

    model = formats.load(source)
    model.graph.initializers["b"].const_value = model.graph.initializers["a"].const_value
    saved = formats.save(model, tmp_path / "m.onnx", layout=LAYOUTS["safetensors"])
    with safe_open(saved.data_paths[0], "np") as read:
        assert "b" not in read.keys()  # noqa: SIM118 - no mapping
        assert read.metadata()["b"] == "a"
    again = weights_of(formats.load(saved.path))
    assert again["a"] == again["b"]


def test_a_safetensors_file_of_others_is_read_in_place(tmp_path, source):
    from safetensors.numpy import save_file

    proto = onnx.load(source)
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer if t.dims}
    save_file(arrays, tmp_path / "model.safetensors")
    raw = (tmp_path / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8:start])
    for tensor in proto.graph.initializer:
        if tensor.name in arrays:
            first, last = table[tensor.name]["data_offsets"]
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": "model.safetensors", "offset": start + first}
            for key, value in (entries | {"length": last - first}).items():
                tensor.external_data.add(key=key, value=str(value))
    onnx.save(proto, tmp_path / "lean.onnx")
    assert weights_of(formats.load(tmp_path / "lean.onnx")) == weights_of(formats.load(source))


def test_data_packed_without_gaps_does_not_grow(tmp_path):
    """Many tensors of a page and a bit, the shortest of names, and a long name for the output."""
    arrays = [RNG.normal(size=1025).astype(np.float32) for _ in range(50)]
    tensors = []
    for index in range(len(arrays)):
        tensor = TensorProto(name=f"w{index}", data_type=1, dims=[1025])
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": "d", "offset": index * 4100, "length": 4100}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    info = helper.make_tensor_value_info("y", 1, [1025])
    node = helper.make_node("Sum", [t.name for t in tensors], ["y"])
    graph = helper.make_graph([node], "g", [], [info], tensors)
    before = tmp_path / "m.onnx"
    imports = [helper.make_opsetid("", 17)]
    before.write_bytes(
        helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()
    )
    (tmp_path / "d").write_bytes(b"".join(a.tobytes() for a in arrays))
    nbytes = before.stat().st_size + 50 * 4100
    saved = formats.save(formats.load(before), tmp_path / "a_name_that_is_longer.onnx")
    assert saved.nbytes <= nbytes
    assert list(weights_of(formats.load(saved.path)).values()) == [a.tobytes() for a in arrays]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"external_data": "no", "shard_size": 5000}, "--shard-size puts weights beside"),
        ({"external_data": "no", "weights_format": "safetensors"}, "safetensors puts weights"),
        ({"strip_weights": True, "external_data": "yes"}, "nothing to put beside"),
        ({"strip_weights": True, "shard_size": 5000}, "nothing to put beside"),
        ({"external_data": "maybe"}, "'auto', 'yes', 'no'"),
        ({"weights_format": "pickle"}, "'raw', 'safetensors'"),
        ({"shard_size": 100}, "from 4096 bytes"),
    ],
)
def test_what_contradicts_itself_is_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        Layout(**arguments)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("2GB", 2 * 10**9), ("1.5 MiB", 3 << 19), ("500 kB", 500_000), (8192, 8192), ("8192", 8192)],
)
def test_sizes(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "2 GB x", "-1GB", "1e9", "4095", "0", "GB", "2PB", True])
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="shard size"):
        parse_size(text)


@pytest.mark.parametrize("name", ["m.json", "m.ort", "m.txt"])
def test_forms_of_one_file_have_nothing_beside_them(tmp_path, source, name):
    with pytest.raises(UsageError, match="holds everything in one file"):
        converter.save(converter.load(source), tmp_path / name, shard_size="1MB")
    assert files(tmp_path) == {"in.onnx"}


@pytest.mark.parametrize("name", ["m.tflite", "m.safetensors", "m.PT", "m.data"])
def test_other_formats_are_not_faked(tmp_path, source, name):
    with pytest.raises(UsageError, match="files are not written"):
        converter.save(converter.load(source), tmp_path / name)
    assert files(tmp_path) == {"in.onnx"}


# --- replacing ---------------------------------------------------------------------------------


def changed(path: Path) -> ir.Model:
    """Return the model at ``path`` with other weights, still to be computed."""
    model = formats.load(path)
    value = model.graph.initializers["a"]
    value.const_value = MappedTensor(value.const_value, lambda chunk, _: chunk * 2)
    return model


@pytest.mark.parametrize("name", ["external", "shards", "safetensors", "safetensors shards"])
def test_the_old_data_go_when_the_new_model_is_in_place(tmp_path, source, name):
    target = tmp_path / "m.onnx"
    first = formats.save(formats.load(source), target, layout=LAYOUTS["shards"])
    second = formats.save(changed(target), target, layout=LAYOUTS[name], in_place=True)
    assert not {p.name for p in first.data_paths} & {p.name for p in second.data_paths}
    assert files(tmp_path) == {"in.onnx", "m.onnx", *(p.name for p in second.data_paths)}
    one = formats.save(formats.load(target), target, external_data="no", in_place=True)
    assert one.data_paths == ()
    assert files(tmp_path) == {"in.onnx", "m.onnx"}


@pytest.mark.parametrize("name", ["external", "shards", "safetensors shards"])
@pytest.mark.parametrize("last", [False, True])
def test_a_rename_that_fails_takes_everything_back(tmp_path, source, monkeypatch, name, last):
    target = tmp_path / "m.onnx"
    formats.save(formats.load(source), target, layout=LAYOUTS[name])
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    publish_file = atomic.Temporary.publish
    calls = []

    def fail(self: atomic.Temporary, path: Path) -> None:
        calls.append(path)
        if (path == target) if last else (len(calls) == len(before) - 2):
            raise OSError(5, "Input/output error")
        publish_file(self, path)

    monkeypatch.setattr(atomic.Temporary, "publish", fail)
    with pytest.raises(WriteError, match="Input/output error"):
        formats.save(changed(target), target, layout=LAYOUTS[name], in_place=True)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def _killed(target: Path, count: int, name: str) -> None:
    """Save another model and die before the rename with this number."""
    publish_file = atomic.Temporary.publish
    done: list[Path] = []

    def publish_or_die(self: atomic.Temporary, path: Path) -> None:
        if len(done) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        publish_file(self, path)
        done.append(path)

    atomic.Temporary.publish = publish_or_die  # type: ignore[method-assign]
    formats.save(changed(target), target, layout=LAYOUTS[name], in_place=True)


@pytest.mark.parametrize("name", ["external", "safetensors shards"])
@pytest.mark.parametrize("renames", [1, 2])
def test_a_crash_between_the_renames_leaves_the_old_model_whole(tmp_path, source, name, renames):
    target = tmp_path / "m.onnx"
    formats.save(formats.load(source), target, layout=LAYOUTS[name])
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    expected = run(target, FEED)
    count = min(renames, len(before) - 2)
    arguments = (target, count, name)
    child = multiprocessing.get_context("fork").Process(target=_killed, args=arguments)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    after = {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert before.items() <= after.items()
    assert len(after) > len(before)  # new data without a model
    again = run(target, FEED)
    assert all(np.array_equal(expected[n], again[n]) for n in expected)
    # the next write clears away what the crash left
    saved = formats.save(formats.load(source), target, layout=LAYOUTS["external"])
    assert files(tmp_path) == {"in.onnx", "m.onnx", *(p.name for p in saved.data_paths)}


def test_data_that_a_model_refers_to_or_that_has_another_name_is_kept(tmp_path, source):
    target = tmp_path / "m.onnx"
    first = formats.save(formats.load(source), target, layout=LAYOUTS["shards"])
    (tmp_path / "copy.onnx").write_bytes(target.read_bytes())
    foreign = tmp_path / "m-of-somebody.data"
    foreign.write_bytes(b"x")
    formats.save(changed(target), target, layout=LAYOUTS["external"], in_place=True)
    assert {p.name for p in first.data_paths} <= files(tmp_path)
    assert foreign.exists()
    assert publish.own_data(target) != publish.own_data(tmp_path / "copy.onnx")


def test_the_limit_of_one_file_counts_what_stays_inside(tmp_path, source, monkeypatch):
    monkeypatch.setattr(export_onnx, "MAX_FILE_BYTES", 10_000)
    with pytest.raises(UsageError, match="--external-data auto or yes"):
        formats.save(formats.load(source), tmp_path / "m.onnx", external_data="no")
    saved = formats.save(formats.load(source), tmp_path / "m.onnx", layout=LAYOUTS["shards"])
    assert len(saved.data_paths) == 3


# --- every form keeps the rules of writing -----------------------------------------------------

FORMS = {
    "m.onnx": {},
    "s.onnx": {"shard_size": 20_000},
    "t.onnx": {"weights_format": "safetensors"},
    "m.ort": {},
    "m.json": {},
    "m.textproto": {},
    "m.txt": {"strip_weights": True},
}


@pytest.mark.parametrize("name", FORMS)
def test_no_form_writes_through_a_link_or_over_its_source(tmp_path, source, name):
    model = converter.load(source)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / name).symlink_to(victim)
    with pytest.raises(UsageError, match="symbolic link"):
        converter.save(model, tmp_path / name, **FORMS[name])
    (tmp_path / name).unlink()
    assert victim.read_bytes() == b"precious"
    (tmp_path / name).write_bytes(source.read_bytes())
    with pytest.raises(UsageError, match="the output is the input"):
        converter.save(converter.load(tmp_path / name), tmp_path / name, **FORMS[name])
    assert (tmp_path / name).read_bytes() == source.read_bytes()
    converter.save(converter.load(tmp_path / name), tmp_path / name, in_place=True, **FORMS[name])
    assert (tmp_path / name).read_bytes() != source.read_bytes() or not FORMS[name]
    with pytest.raises(UsageError, match="folder does not exist"):
        converter.save(model, tmp_path / "none" / name, **FORMS[name])


@pytest.mark.parametrize("name", FORMS)
def test_a_failing_disk_leaves_the_old_file_and_nothing_else(tmp_path, source, monkeypatch, name):
    model = converter.load(source)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).write_bytes(b"old")
    publish_file = atomic.Temporary.finish

    def fail(self: atomic.Temporary) -> None:
        publish_file(self)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.Temporary, "finish", fail)
    with pytest.raises(WriteError, match="No space left"):
        converter.save(model, folder / name, **FORMS[name])
    assert files(folder) == {name}
    assert (folder / name).read_bytes() == b"old"


@pytest.mark.parametrize("name", FORMS)
def test_convert_recipe_and_save_agree(tmp_path, source, name):
    """The same choices as arguments of save, arguments of convert, and keys of a recipe."""
    contents = []
    choices = {k: str(v) if k == "shard_size" else v for k, v in FORMS[name].items()}
    lines = [f"{k} = {json.dumps(v)}" for k, v in choices.items()]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("\n".join(["version = 1", "[output]", "provenance = false", *lines]))
    for way in ("save", "convert", "recipe"):
        folder = tmp_path / way
        folder.mkdir()
        if way == "save":
            converter.save(converter.load(source), folder / name, **FORMS[name])
        elif way == "convert":
            settings = {"verify": False, "provenance": False}
            converter.convert(source, folder / name, **settings, **FORMS[name])
        else:
            converter.convert(source, folder / name, recipe=recipe, verify=False)
        contents.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert contents[0] == contents[1] == contents[2]
