"""Files in onnxruntime's own format: made, checked, published or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support import model_from_text, run

import converter
from converter.errors import InvalidModelError, ModelError, UsageError, VerificationError
from converter.io import formats
from converter.verification import export_ort

TEXT = """
g (float[N,8] x) => (float[N,4] y)
{
  h = MatMul(x, w)
  b = Add(h, bias)
  y = Relu(b)
}
"""
RNG = np.random.default_rng(1)
FEED = {"x": RNG.normal(size=(3, 8)).astype(np.float32)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    weights = {"w": RNG.normal(size=(8, 4)).astype(np.float32), "bias": np.ones(4, np.float32)}
    path = tmp_path / "in.onnx"
    formats.save(model_from_text(TEXT, **weights), path)
    return path


def files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_it_gives_the_models_outputs_and_says_what_it_is_bound_to(tmp_path, source):
    import onnxruntime

    target = tmp_path / "m.ort"
    done = converter.convert(source, target, report=tmp_path / "r.json")
    assert target.read_bytes()[4:8] == b"ORTM"
    assert done.path == target
    assert done.report.to_dict()["target"]["bytes"] == target.stat().st_size
    np.testing.assert_array_equal(run(target, FEED)["y"], run(source, FEED)["y"])
    (bound,) = (n for n in done.report.notes if "bound to onnxruntime" in n)
    assert onnxruntime.__version__ in bound
    assert any("opened and run" in n for n in done.report.notes)
    assert files(tmp_path) == {"in.onnx", "m.ort", "r.json"}


def test_save_and_no_verify_only_open_it(tmp_path, source):
    path = converter.save(converter.load(source), tmp_path / "m.ort")
    np.testing.assert_array_equal(run(path, FEED)["y"], run(source, FEED)["y"])
    done = converter.convert(source, tmp_path / "n.ort", verify=False)
    assert any("opened before" in n for n in done.report.notes)
    assert files(tmp_path) == {"in.onnx", "m.ort", "n.ort"}


def test_the_model_as_input_is_refused_with_what_to_do(tmp_path, source):
    converter.save(converter.load(source), tmp_path / "m.ort")
    with pytest.raises(ModelError, match=r"onnxruntime's own format.*\.onnx file"):
        converter.load(tmp_path / "m.ort")


def test_what_onnxruntime_does_not_know_is_refused_and_leaves_nothing(tmp_path):
    strange = model_from_text(
        '<ir_version: 8, opset_import: ["": 17, "strange": 1]>\n'
        "g (float[2] x) => (float[2] y) { y = strange.Thing(x) }"
    )
    with pytest.raises(ModelError, match=r"strange|Thing"):
        converter.save(strange, tmp_path / "m.ort")
    assert files(tmp_path) == set()


def test_other_outputs_are_not_published(tmp_path, source, monkeypatch):
    """When no level of optimization gives the outputs, nothing is written."""
    wrong = converter.load(source).clone()
    wrong.graph.initializers["bias"].const_value = ir.tensor(np.zeros(4, np.float32))
    bad = formats.save(wrong, tmp_path / "wrong.onnx").path
    write = export_ort._write
    tried = []

    def faulty(plain: Path, target: Path, level: str, settings: object) -> None:
        tried.append(level)
        write(bad, target, level, settings)

    def call(function, *args, task):
        return faulty(*args) if function is write else None

    monkeypatch.setattr(export_ort, "_call", call)
    with pytest.raises(VerificationError, match="does not give the model's outputs"):
        converter.convert(source, tmp_path / "m.ort")
    assert tried == list(export_ort._LEVELS)
    assert files(tmp_path) == {"in.onnx", "wrong.onnx"}


def test_optimizations_that_change_outputs_are_left_out(tmp_path, source, monkeypatch):
    write = export_ort._call

    def call(function, *args, task):
        if function is export_ort._write and args[2] == export_ort._LEVELS[0]:
            raise InvalidModelError("this level is broken")
        return write(function, *args, task=task)

    monkeypatch.setattr(export_ort, "_call", call)
    done = converter.convert(source, tmp_path / "m.ort")
    assert any("enable basic" in note for note in done.report.notes)


def test_old_models_do_not_ask_for_their_weights(tmp_path, source):
    """Below IR version 4 every initializer is an input, which onnxruntime would keep as one."""
    import onnxruntime

    proto = onnx.load(source)
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, 1, tensor.dims))
    proto.graph.node[2].input[0] = "z"
    shape = onnx.numpy_helper.from_array(np.int64([-1, 4]), "shape")
    shape_info = onnx.helper.make_tensor_value_info("shape", 7, [2])
    proto.graph.initializer.append(shape)
    proto.graph.input.append(shape_info)
    proto.graph.node.insert(2, onnx.helper.make_node("Reshape", ["b", "shape"], ["z"]))
    del proto.opset_import[:]
    proto.opset_import.add(version=9)
    onnx.save(proto, tmp_path / "old.onnx")
    path = converter.save(converter.load(tmp_path / "old.onnx"), tmp_path / "m.ort")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == ["x"]
    np.testing.assert_allclose(run(path, FEED)["y"], run(source, FEED)["y"], rtol=1e-6)


def test_too_large_for_the_format(tmp_path, source, monkeypatch):
    monkeypatch.setattr(export_ort, "MAX_BYTES", 100)
    with pytest.raises(UsageError, match="too large for a"):
        converter.save(converter.load(source), tmp_path / "m.ort")


def test_the_input_is_not_overwritten(tmp_path, source):
    renamed = source.rename(tmp_path / "in.ort")  # content decides what a file is
    with pytest.raises(UsageError, match="the output is the input"):
        converter.convert(renamed, renamed)
    before = run(renamed.rename(source), FEED)["y"]
    renamed.write_bytes(source.read_bytes())
    converter.convert(renamed, renamed, in_place=True)
    np.testing.assert_array_equal(run(renamed, FEED)["y"], before)
    assert files(tmp_path) == {"in.onnx", "in.ort"}
