"""Writing: what may be overwritten, external data, atomicity under failures, determinism."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import obey_interrupts, run

from converter.core.tensors import FileTensor, MappedTensor
from converter.errors import InvalidModelError, UsageError, WriteError
from converter.io import export_onnx, formats
from converter.io.skeleton import to_skeleton

WEIGHT = np.arange(2048, dtype=np.float32).reshape(4, 512)
FEED = {"x": np.ones((1, 4), np.float32)}


def make(path: Path, *, weight: np.ndarray = WEIGHT) -> Path:
    """Write y = (x @ w) @ (w2 in a Constant) with onnx itself."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(WEIGHT[0], "k")),
        helper.make_node("Add", ["h", "c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 4])],
        [helper.make_tensor_value_info("y", 1, ["N", 512])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "in.onnx")


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_one_file_is_what_protobuf_itself_would_write(tmp_path, source):
    saved = formats.save(formats.load(source), tmp_path / "out.onnx")
    assert saved.data_paths == ()
    assert saved.nbytes == saved.path.stat().st_size
    assert saved.path.read_bytes() == source.read_bytes()


def test_same_bytes_every_time(tmp_path, source):
    model = formats.load(source)
    for mode in ("no", "yes"):
        folders = [tmp_path / f"{mode}{i}" for i in range(2)]
        for folder in folders:
            folder.mkdir()
            formats.save(model, folder / "m.onnx", external_data=mode)
        assert files(folders[0]) == files(folders[1])
        for name in files(folders[0]):
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_external_data(tmp_path, source):
    saved = formats.save(formats.load(source), tmp_path / "out.onnx", external_data="yes")
    (data,) = saved.data_paths
    assert data.name.startswith("out-")
    assert data.name.endswith(".data")
    proto = onnx.load(saved.path, load_external_data=False)
    entries = {e.key: e.value for e in proto.graph.initializer[0].external_data}
    assert entries == {"location": data.name, "offset": "0", "length": str(WEIGHT.nbytes)}
    assert proto.graph.node[1].attribute[0].t.raw_data == WEIGHT[0].tobytes()
    np.testing.assert_array_equal(run(saved.path, FEED)["y"], run(source, FEED)["y"])
    onnx.checker.check_model(str(saved.path))


@pytest.mark.parametrize(
    "stem", ["a\\b", "c:d", "new\nline", "x" * 245, "ü" * 120, "bad\udcff", "-"]
)
def test_external_data_of_odd_names_can_be_loaded(tmp_path, source, stem):
    folder = tmp_path / "out"
    folder.mkdir()
    saved = formats.save(formats.load(source), folder / f"{stem}.onnx", external_data="yes")
    tensor = formats.load(saved.path).graph.initializers["w"].const_value
    np.testing.assert_array_equal(tensor.numpy(), WEIGHT)
    again = formats.save(formats.load(source), saved.path)
    assert again.data_paths == ()
    assert len(files(folder)) == 1


def test_external_stays_external_also_for_clones(tmp_path, source):
    saved = formats.save(formats.load(source), tmp_path / "a.onnx", external_data="yes")
    again = formats.save(formats.load(saved.path).clone(), tmp_path / "b.onnx")
    assert [p.name[:2] for p in again.data_paths] == ["b-"]
    single = formats.save(formats.load(saved.path), tmp_path / "c.onnx", external_data="no")
    assert single.data_paths == ()
    assert single.path.read_bytes() == source.read_bytes()


def test_offsets_can_be_mapped(tmp_path):
    model = ir.Model(ir.Graph([], [], nodes=[], name="g", opset_imports={"": 17}), ir_version=8)
    for index, size in enumerate((300, 5000, 7, 3000)):
        tensor = ir.tensor(np.full(size, index, np.float32), name=f"w{index}")
        model.graph.register_initializer(ir.Value(name=f"w{index}", const_value=tensor))
    saved = formats.save(model, tmp_path / "m.onnx", external_data="yes")
    offsets = []
    for tensor in onnx.load(saved.path, load_external_data=False).graph.initializer:
        if tensor.external_data:
            entries = {e.key: int(e.value) for e in tensor.external_data if e.key != "location"}
            offsets.append(entries["offset"])
            assert entries["offset"] % (4096 if entries["length"] >= 4096 else 64) == 0
    assert len(offsets) == 3
    back = onnx.load(saved.path)
    for index, tensor in enumerate(back.graph.initializer):
        assert (numpy_helper.to_array(tensor) == index).all()


def test_shared_tensors_are_stored_once_beside_the_model(tmp_path):
    model = ir.Model(ir.Graph([], [], nodes=[], name="g", opset_imports={"": 17}), ir_version=8)
    tensor = ir.tensor(WEIGHT)
    for name in ("a", "b"):
        model.graph.register_initializer(ir.Value(name=name, const_value=tensor))
    saved = formats.save(model, tmp_path / "m.onnx", external_data="yes")
    assert saved.data_paths[0].stat().st_size == WEIGHT.nbytes
    written = formats.save(model, tmp_path / "n.onnx", external_data="no").path
    assert [t.name for t in onnx.load(written).graph.initializer] == ["a", "b"]


def test_mapped_and_every_element_type(tmp_path):
    arrays = {
        dtype.name: np.arange(3000).astype(dtype.numpy())
        for dtype in (
            ir.DataType.FLOAT16,
            ir.DataType.BFLOAT16,
            ir.DataType.INT4,
            ir.DataType.UINT4,
            ir.DataType.INT64,
            ir.DataType.BOOL,
            ir.DataType.DOUBLE,
            ir.DataType.COMPLEX64,
            ir.DataType.FLOAT8E4M3FN,
        )
    }
    model = ir.Model(ir.Graph([], [], nodes=[], name="g", opset_imports={"": 21}), ir_version=10)
    for name, array in arrays.items():
        tensor = ir.Tensor(array, dtype=ir.DataType[name], name=name)
        model.graph.register_initializer(ir.Value(name=name, const_value=tensor))
    mapped = MappedTensor(ir.tensor(WEIGHT), lambda chunk, _: chunk * 2, name="mapped")
    value = ir.Value(
        name="mapped",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(WEIGHT.shape),
        const_value=mapped,
    )
    model.graph.register_initializer(value)
    model.graph.outputs.append(value)
    for mode in ("no", "yes"):
        saved = formats.save(model, tmp_path / f"{mode}.onnx", external_data=mode)
        back = formats.load(saved.path).graph.initializers
        np.testing.assert_array_equal(back["mapped"].const_value.numpy(), WEIGHT * 2)
        for name, array in arrays.items():
            assert back[name].const_value.numpy().tobytes() == array.tobytes()


def test_a_tensor_that_lies_about_its_size_is_refused(tmp_path, source):
    model = formats.load(source)
    short = MappedTensor(ir.tensor(WEIGHT), lambda chunk, _: chunk[:-1], name="w")
    model.graph.initializers["w"].const_value = short
    for mode in ("no", "yes"):
        with pytest.raises(InvalidModelError, match="bytes"):
            formats.save(model, tmp_path / "out.onnx", external_data=mode)
    assert files(tmp_path) == ["in.onnx"]


def test_saving_does_not_change_the_model(tmp_path, source):
    model = formats.load(source)
    before = ir.to_proto(model)
    formats.save(model, tmp_path / "out.onnx", external_data="yes")
    assert isinstance(model.graph.initializers["w"].const_value, FileTensor)
    assert ir.to_proto(model) == before


def test_too_large_for_one_file_is_refused_before_writing(tmp_path, source, monkeypatch):
    monkeypatch.setattr(export_onnx, "MAX_FILE_BYTES", 4000)
    monkeypatch.setattr(export_onnx, "AUTO_BYTES", 3000)
    model = formats.load(source)
    with pytest.raises(UsageError, match="one file"):
        formats.save(model, tmp_path / "out.onnx", external_data="no")
    assert files(tmp_path) == ["in.onnx"]
    assert formats.save(model, tmp_path / "out.onnx").data_paths


# --- what may be overwritten ------------------------------------------------------------------


def test_the_input_is_replaced_only_in_place(tmp_path, source, monkeypatch):
    model = formats.load(source)
    os.link(source, tmp_path / "hard.onnx")
    monkeypatch.chdir(tmp_path)
    for path in (source, "in.onnx", tmp_path / "hard.onnx", tmp_path / "." / "in.onnx"):
        with pytest.raises(UsageError, match="the output is the input"):
            formats.save(model, path)
    formats.save(model.clone(), tmp_path / "clone.onnx", source=source)
    with pytest.raises(UsageError):
        formats.save(model.clone(), source, source=source)
    expected = source.read_bytes()
    formats.save(model, source, in_place=True)
    assert source.read_bytes() == expected


def test_links_are_never_written_through(tmp_path, source):
    (tmp_path / "link.onnx").symlink_to(source)
    (tmp_path / "dangling.onnx").symlink_to(tmp_path / "nothing")
    for name in ("link.onnx", "dangling.onnx"):
        with pytest.raises(UsageError, match="symbolic link"):
            formats.save(formats.load(source), tmp_path / name)
    assert not (tmp_path / "nothing").exists()


def test_other_targets_are_refused(tmp_path, source):
    model = formats.load(source)
    (tmp_path / "folder.onnx").mkdir()
    os.mkfifo(tmp_path / "pipe.onnx")
    targets = {
        tmp_path / "folder.onnx": "folder",
        tmp_path / "pipe.onnx": "pipe",
        tmp_path / "none" / "out.onnx": "does not exist",
        source / "out.onnx": "not a folder",
        Path("/dev/full"): "device",
        tmp_path / ("x" * 300): "cannot be written",
    }
    for target, reason in targets.items():
        with pytest.raises(UsageError, match=reason):
            formats.save(model, target)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path, source):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    with pytest.raises(UsageError, match="not writable"):
        formats.save(formats.load(source), folder / "out.onnx")


def test_the_inputs_external_data_is_never_the_output(tmp_path, source):
    saved = formats.save(formats.load(source), tmp_path / "a.onnx", external_data="yes")
    model = formats.load(saved.path)
    with pytest.raises(UsageError, match="data files are not written"):
        formats.save(model, saved.data_paths[0])
    before = saved.data_paths[0].stat()
    formats.save(model, saved.path, in_place=True)
    after = saved.data_paths[0].stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_in_place_with_external_data_leaves_one_data_file(tmp_path, source):
    first = formats.save(formats.load(source), tmp_path / "a.onnx", external_data="yes")
    model = formats.load(first.path)
    doubled = MappedTensor(model.graph.initializers["w"].const_value, lambda c, _: c * 2)
    model.graph.initializers["w"].const_value = doubled
    second = formats.save(model, first.path, in_place=True)
    assert first.data_paths != second.data_paths
    assert files(tmp_path) == sorted(["a.onnx", "in.onnx", second.data_paths[0].name])
    loaded = formats.load(second.path).graph.initializers["w"].const_value
    np.testing.assert_array_equal(loaded.numpy(), WEIGHT * 2)


def test_data_that_another_model_uses_is_kept(tmp_path, source):
    first = formats.save(formats.load(source), tmp_path / "a.onnx", external_data="yes")
    (tmp_path / "copy.onnx").write_bytes(first.path.read_bytes())
    make(source, weight=WEIGHT + 1)
    formats.save(formats.load(source), first.path, external_data="yes")
    assert first.data_paths[0].exists()
    onnx.load(tmp_path / "copy.onnx")


def test_foreign_data_files_are_kept(tmp_path, source):
    first = formats.save(formats.load(source), tmp_path / "a.onnx", external_data="yes")
    foreign = tmp_path / "a-0123456789abcdef.data"
    foreign.write_bytes(b"not ours")
    formats.save(formats.load(source), first.path)
    assert foreign.exists()
    assert not first.data_paths[0].exists()


def test_mode_of_a_replaced_file_is_kept_and_new_files_follow_the_umask(tmp_path, source):
    target = tmp_path / "out.onnx"
    old = os.umask(0o027)
    try:
        formats.save(formats.load(source), target)
        assert target.stat().st_mode & 0o777 == 0o640
        target.chmod(0o604)
        formats.save(formats.load(source), target)
        assert target.stat().st_mode & 0o777 == 0o604
    finally:
        os.umask(old)


# --- failures in the middle -------------------------------------------------------------------


def _limited(source: Path, target: Path, mode: str, nbytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))
    try:
        formats.save(formats.load(source), target, external_data=mode)
    except WriteError:
        os._exit(42)
    os._exit(0)


@pytest.mark.parametrize("mode", ["no", "yes"])
@pytest.mark.parametrize("old", [False, True])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path, mode, old):
    source = make(tmp_path / "in.onnx", weight=np.ones((4, 200_000), np.float32))
    target = tmp_path / "out.onnx"
    if old:
        target.write_bytes(b"old")
    before = files(tmp_path)
    arguments = (source, target, mode, 1_000_000)
    child = multiprocessing.get_context("fork").Process(target=_limited, args=arguments)
    child.start()
    child.join(60)
    assert child.exitcode == 42
    assert files(tmp_path) == before
    if old:
        assert target.read_bytes() == b"old"


class _Stop(MappedTensor):
    """A tensor whose first read raises."""

    error: BaseException = KeyboardInterrupt()

    def tofile(self, file: object) -> None:
        raise self.error


@pytest.mark.parametrize("mode", ["no", "yes"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "I/O error"), MemoryError()])
def test_an_interruption_leaves_nothing_behind(tmp_path, source, mode, error):
    model = formats.load(source)
    stop = _Stop(ir.tensor(WEIGHT), lambda chunk, _: chunk, name="w")
    stop.error = error
    model.graph.initializers["w"].const_value = stop
    expected = WriteError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        formats.save(model, tmp_path / "out.onnx", external_data=mode)
    assert files(tmp_path) == ["in.onnx"]


def test_data_is_taken_back_when_the_model_cannot_follow(tmp_path, source, monkeypatch):
    from converter.io.atomic import Temporary

    publish = Temporary.publish

    def fail(self, path):
        if path.suffix == ".onnx":
            raise OSError(28, "No space left on device")
        publish(self, path)

    monkeypatch.setattr(Temporary, "publish", fail)
    with pytest.raises(WriteError, match="No space"):
        formats.save(formats.load(source), tmp_path / "out.onnx", external_data="yes")
    assert files(tmp_path) == ["in.onnx"]


SLOW = """
import sys, time
import onnx_ir as ir
from converter.core.tensors import MappedTensor
from converter.io import formats
def slow(chunk, start):
    print("writing", flush=True)
    time.sleep(60)
    return chunk
model = formats.load(sys.argv[1])
value = model.graph.initializers["w"]
value.const_value = MappedTensor(value.const_value, slow, name="w")
formats.save(model, sys.argv[2], external_data=sys.argv[3])
"""


@pytest.mark.parametrize("mode", ["no", "yes"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_write_leaves_the_old_file_intact(tmp_path, source, mode, number):
    target = make(tmp_path / "out.onnx", weight=WEIGHT + 1)
    old = target.read_bytes()
    root = Path(__file__).resolve().parents[3]
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, source, target, mode],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=obey_interrupts,
    )
    with child:
        assert child.stdout.readline() == b"writing\n"
        child.send_signal(number)
        child.wait(30)
    assert target.read_bytes() == old
    left = [name for name in files(tmp_path) if name.endswith("onnxpress-tmp")]
    assert len(left) == 0 if number == signal.SIGINT else len(left) > 0
    formats.save(formats.load(source), target)
    assert files(tmp_path) == ["in.onnx", "out.onnx"]


def test_a_skeleton_of_a_large_graph_is_quick():
    values = [ir.Value(name="v0", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))]
    nodes = []
    for index in range(20_000):
        node = ir.node("Relu", [values[-1]], name=f"n{index}")
        node.outputs[0].name = f"v{index + 1}"
        values.append(node.outputs[0])
        nodes.append(node)
    graph = ir.Graph(values[:1], values[-1:], nodes=nodes, name="g", opset_imports={"": 17})
    model = ir.Model(graph, ir_version=8)
    start = time.process_time()
    proto, placed = to_skeleton(model)
    assert time.process_time() - start < 1.5
    assert len(proto.graph.node) == 20_000
    assert placed == []


def test_skeleton_placeholders_say_their_length(source):
    proto, placed = to_skeleton(formats.load(source))
    assert [(p.tensor.name, p.attribute) for p in placed] == [("w", False), ("k", True)]
    tensor = proto.graph.initializer[0]
    assert tensor.data_location == TensorProto.EXTERNAL
    assert not tensor.raw_data
    entries = {entry.key: entry.value for entry in tensor.external_data}
    assert entries["length"] == str(WEIGHT.nbytes)
