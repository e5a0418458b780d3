"""Sessions, and running IR models in a child process."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support import model_from_text

from converter.core.context import Limits, RunSettings
from converter.errors import (
    BatchError,
    InvalidModelError,
    LimitExceededError,
    ModelError,
    UnsupportedOperatorError,
)
from converter.execution.runner import materialize, run_model
from converter.execution.session import Session
from converter.io.formats import load
from converter.io.meta import PATH

RELU = "g (float[N,3] x) => (float[N,3] y) { h = Neg(x)  y = Relu(h) }"


def write(path, text, opset=21):
    model = ir.to_proto(model_from_text(text, opset=opset))
    model.ir_version = 10
    onnx.save(model, path)
    return path


def test_run_and_ports(tmp_path):
    session = Session(write(tmp_path / "m.onnx", RELU))
    assert [(n.name, n.type, n.shape) for n in session.inputs] == [("x", "tensor(float)", ("N", 3))]
    found = session.run({"x": np.float32([[-1, 2, -3]])})
    np.testing.assert_array_equal(found["y"], [[1, 0, 3]])
    assert session.run({"x": np.zeros((2, 3), np.float32)}, ["y"])["y"].shape == (2, 3)


@pytest.mark.parametrize(
    ("onnx_type", "kind"),
    [
        ("bfloat16", ml_dtypes.bfloat16),
        ("float8e4m3fn", ml_dtypes.float8_e4m3fn),
        ("float8e5m2", ml_dtypes.float8_e5m2),
        ("float16", np.float16),
    ],
)
def test_types_unknown_to_numpy(tmp_path, onnx_type, kind):
    nodes = "{ y = Identity(x)  z = Cast<to=1>(x) }"
    text = f"g ({onnx_type}[N] x) => ({onnx_type}[N] y, float[N] z) {nodes}"
    session = Session(write(tmp_path / "m.onnx", text))
    x = np.array([1, -2, 0.5], kind)
    found = session.run({"x": x})
    assert found["y"].dtype == kind
    np.testing.assert_array_equal(found["y"].astype(np.float32), [1, -2, 0.5])
    np.testing.assert_array_equal(found["z"], [1, -2, 0.5])
    assert session.run({"x": x[:0]})["y"].shape == (0,)


def test_sequences_strings_and_empty_outputs(tmp_path):
    text = (
        "g (float[N] x, string[2] s) => (seq(float[N]) q, string[2] t, float[0] e) {"
        " q = SequenceConstruct(x, x)  t = Identity(s)"
        " e = Constant<value = float[0] {}>() }"
    )
    found = Session(write(tmp_path / "m.onnx", text)).run(
        {"x": np.zeros(2, np.float32), "s": np.array(["a", "b"], object)}
    )
    assert [a.shape for a in found["q"]] == [(2,), (2,)]
    assert found["t"].tolist() == ["a", "b"]
    assert found["e"].shape == (0,)


def test_wrong_feeds(tmp_path):
    session = Session(write(tmp_path / "m.onnx", RELU))
    for feed in (
        {},
        {"x": np.zeros((1, 4), np.float32)},
        {"x": np.zeros((1, 3))},
        {"x": np.zeros((1, 3), np.float32), "z": np.zeros(1)},
    ):
        with pytest.raises(BatchError):
            session.run(feed)


def test_unknown_operators_are_named(tmp_path):
    model = model_from_text(RELU)
    model.graph.node(1).op_type = "Fancy"
    onnx.save(ir.to_proto(model), tmp_path / "a.onnx")
    with pytest.raises(UnsupportedOperatorError, match=r"Fancy.*--custom-op-library"):
        Session(tmp_path / "a.onnx")
    text = "g (int4[N] x) => (int4[N] y) { y = Identity(x) }"
    with pytest.raises(UnsupportedOperatorError, match=r"Identity"):
        Session(write(tmp_path / "b.onnx", text))


def test_broken_models(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"nonsense")
    with pytest.raises(InvalidModelError):
        Session(tmp_path / "a.onnx")
    with pytest.raises(ModelError):
        Session(tmp_path / "missing.onnx")
    good = write(tmp_path / "b.onnx", RELU)
    with pytest.raises(ModelError):
        Session(good, custom_op_library=tmp_path / "no.so")


def settings(tmp_path, **limits):
    return RunSettings(limits=Limits(**limits), workspace=tmp_path)


def test_run_model_gives_outputs_and_inner_values(tmp_path):
    model = model_from_text(RELU)
    feeds = [{"x": np.float32([[1, -2, 3]])}, {"x": np.zeros((2, 3), np.float32)}]
    found = run_model(model, feeds, settings=settings(tmp_path))
    np.testing.assert_array_equal(found[0]["y"], [[0, 2, 0]])
    assert found[1]["y"].shape == (2, 3)
    inner = run_model(model, feeds[:1], ["h", "y"], settings=settings(tmp_path))
    np.testing.assert_array_equal(inner[0]["h"], [[-1, 2, -3]])
    assert [o.name for o in model.graph.outputs] == ["y"]
    assert list(tmp_path.iterdir()) == []


def test_a_crash_stays_in_the_child(tmp_path):
    text = "g (int32[N] x, int32[N] z) => (int32[N] y) { y = Div(x, z) }"
    feed = {"x": np.array([-(2**31)], np.int32), "z": np.array([-1], np.int32)}
    with pytest.raises(ModelError):
        run_model(model_from_text(text), [feed], settings=settings(tmp_path))
    text = "g (int64 n) => (int64 y) { t = Constant<value=bool {1}>()" \
           " y = Loop(n, t, n) <body = b (int64 i, bool c, int64 a) => (bool d, int64 e)" \
           " { d = Identity(c)  e = Add(a, i) }> }"  # fmt: skip
    feed = {"n": np.int64(2**50)}
    with pytest.raises(LimitExceededError):
        run_model(model_from_text(text), [feed], settings=settings(tmp_path, seconds=1.0))


def test_materialize_reuses_the_file_of_a_loaded_model_only(tmp_path):
    source = write(tmp_path / "m.onnx", RELU)
    model = ir.load(source)
    model.meta[PATH] = str(source)
    assert materialize(model, tmp_path) == source
    other = materialize(model.clone(), tmp_path)
    assert other != source
    onnx.checker.check_model(str(other))


def test_linked_external_data_is_copied_for_onnxruntime(tmp_path):
    text = "g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }"
    model = ir.to_proto(model_from_text(text, w=np.eye(64, dtype=np.float32)))
    (tmp_path / "store").mkdir()
    (tmp_path / "work").mkdir()
    source = tmp_path / "store" / "m.onnx"
    onnx.save(model, source, save_as_external_data=True, location="w.data", size_threshold=0)
    assert materialize(load(source), tmp_path / "work") == source
    for name in ("m.onnx", "w.data"):
        (tmp_path / name).symlink_to(tmp_path / "store" / name)
    linked = load(tmp_path / "m.onnx", allow_links=True)
    path = materialize(linked, tmp_path / "work")
    assert path.is_relative_to(tmp_path / "work")
    x = np.ones((1, 64), np.float32)
    np.testing.assert_array_equal(Session(path).run({"x": x})["y"], x)
