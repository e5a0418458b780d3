"""``convert_opset``: equal outputs at another version, everything else kept, or a clear reason."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import support
from exact import assert_equal_outputs, feed_for

import converter
from converter.core.context import Context
from converter.core.contract import Outcome
from converter.core.graph import opset, walk
from converter.errors import ParameterError, PreconditionError
from converter.pipeline.structure import check_structure
from passes import ConvertOpset

ZOO = Path(os.environ.get("CONVERTER_ZOO", Path(__file__).parents[2] / ".." / "shared" / "zoo"))


def read(text: str, version: int, ir_version: int = 8, **constants: np.ndarray) -> ir.Model:
    head = f'<ir_version: {ir_version}, opset_import: ["" : {version}]>\n'
    return support.model_from_text(text if text.startswith("<") else head + text, **constants)


def convert(model: ir.Model, to: int | None, *, free: int = 2) -> Outcome:
    """Convert in place; outputs must stay equal, and names, types and shapes of ports."""
    before = model.clone()
    pass_ = ConvertOpset(to=to)
    pass_.requires(model, Context())
    outcome = pass_.apply(model, Context())
    check_structure(model, "convert_opset")
    for kind in ("inputs", "outputs"):
        old, new = (
            [(v.name, str(v.type), str(v.shape)) for v in getattr(m.graph, kind)]
            for m in (before, model)
        )
        assert old == new
    for seed in (0, 1):
        assert_equal_outputs(before, model, feed_for(before, seed, free), tolerance=1e-6)
    return outcome


class TestNodes:
    def test_only_what_changes_is_touched(self) -> None:
        model = read(
            """m (float[2,3] x) => (float[2,1] y) {
                [first] h = Relu (x)
                [sum] y = ReduceSum <axes = [1]> (h)
            }""",
            11,
        )
        node = model.graph[1]
        node.doc_string, node.metadata_props["who"] = "adds", "me"
        first = model.graph[0]
        outcome = convert(model, 17)
        assert outcome.counts == {"nodes_converted": 1}
        assert [n.name for n in model.graph] == ["first", "sum"]
        assert model.graph[0].inputs[0] is not None
        assert model.graph[0].op_type == first.op_type
        assert (model.graph[1].doc_string, model.graph[1].metadata_props["who"]) == ("adds", "me")
        assert list(model.graph.initializers) == ["y_axes"]

    def test_one_constant_for_many_nodes(self) -> None:
        calls = "\n".join(f"h{i} = ReduceSum <axes = [1]> (h{i - 1})" for i in range(1, 6))
        model = read(f"m (float[2,3] h0) => (float[2,1] h5) {{ {calls} }}", 11)
        convert(model, 13)
        assert len(model.graph.initializers) == 1

    @pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax", "Hardmax"])
    @pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, None])
    def test_old_softmax_works_on_two_axes(self, op_type: str, axis: int | None) -> None:
        given = "" if axis is None else f"<axis = {axis}>"
        model = read(f"m (float[2,3,4] x) => (float[2,3,4] y) {{ y = {op_type} {given} (x) }}", 11)
        convert(model, 13)
        assert ("Flatten" in support.op_types(model)) == (axis not in (2, -1))

    @pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax", "Hardmax"])
    @pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, None])
    def test_new_softmax_never_becomes_another(self, op_type: str, axis: int | None) -> None:
        given = "" if axis is None else f"<axis = {axis}>"
        model = read(f"m (float[2,3,4] x) => (float[2,3,4] y) {{ y = {op_type} {given} (x) }}", 13)
        with contextlib.ExitStack() as stack:
            if axis not in (2, -1, None):  # what is no last axis may be refused, never be wrong
                stack.enter_context(contextlib.suppress(PreconditionError))
            convert(model, 11)
        assert opset(model) in ((11,) if axis in (2, -1, None) else (11, 13))

    def test_dropout_with_a_mask(self) -> None:
        model = read(
            "m (float[2,3] x) => (float[2,3] y) { y, mask = Dropout <ratio = 0.3> (x) }", 10
        )
        convert(model, 17)

    def test_upsample_is_gone(self) -> None:
        model = read(
            """m (float[1,1,2,2] x) => (float[1,1,4,6] y) {
                y = Upsample <mode = "nearest"> (x, s) }""",
            9,
            s=np.array([1, 1, 2, 3], np.float32),
        )
        convert(model, 13)
        assert support.op_types(model) == ["Resize"]

    def test_downwards_too(self) -> None:
        model = read(
            "m (float[2,3] x) => (float[2] y) { y = Squeeze (r, a) r = ReduceSum (x, a) }",
            17,
            a=np.array([1], np.int64),
        )
        model.graph.sort()
        convert(model, 11)
        assert opset(model) == 11
        assert "axes" in model.graph[1].attributes

    def test_inner_graphs(self) -> None:
        model = read(
            """m (float[2,3] x, bool c) => (float[2,1] y) {
                h = Neg (x)
                y = If (c) <
                    then_branch = yes () => (float[2,1] t) { t = ReduceSum <axes = [1]> (h) },
                    else_branch = no () => (float[2,1] e) { e = ReduceSum <axes = [-1]> (x) } >
            }""",
            11,
        )
        assert convert(model, 21).counts == {"nodes_converted": 2}

    def test_loops(self) -> None:
        model = read(
            """m (float[2,3] x) => (float[2,3] y) {
                n = Constant <value = int64 {3}> ()
                go = Constant <value = bool {1}> ()
                y = Loop (n, go, x) <body = b (int64 i, bool go2, float[2,3] s)
                    => (bool on, float[2,3] out) {
                    on = Identity (go2)
                    m = ReduceMean <axes = [1]> (s)
                    out = Add (s, m) }>
            }""",
            13,
        )
        convert(model, 18)

    def test_initializers_that_had_to_be_inputs(self) -> None:
        model = read(
            "m (float[2,3] x) => (float[2,1] y) { h = Add (x, w) y = ReduceSum <axes = [1]> (h) }",
            9,
            ir_version=3,
            w=np.ones((2, 3), np.float32),
        )
        outcome = convert(model, 13)
        assert "IR version 3 became 7" in outcome.notes[1]

    def test_names_that_look_like_those_of_fragments(self) -> None:
        model = read(
            """m (float[2,3] i0) => (float[2,1] o0) {
                axes = Neg (i0) o0 = ReduceSum <axes = [1]> (axes) }""",
            11,
        )
        convert(model, 13)

    def test_ranks_in_the_file_are_not_believed(self) -> None:
        model = read("m (float[2,3,4] x) => (float[2,3,4] y) { h = Neg (x) y = Softmax (h) }", 11)
        model.graph[0].outputs[0].shape = ir.Shape([2, 12])
        convert(model, 13)


class TestFunctions:
    TEXT = """<ir_version: 8, opset_import: ["" : 13, "f" : 1]>
        m (float[2,3] x) => (float[2,1] y) { h = f.stay (x) y = f.change (h) }
        <domain: "f", opset_import: ["" : 13]> stay (a) => (b) { b = Relu (a) }
        <domain: "f", opset_import: ["" : 13]>
        change (a) => (b) { b = ReduceMean <axes = [1]> (a) }"""

    def test_only_those_in_the_way_are_inlined(self) -> None:
        model = read(self.TEXT, 13)
        outcome = convert(model, 18)
        assert outcome.counts == {"calls_inlined": 1, "nodes_converted": 1}
        ((_, name, _),) = model.functions
        assert name == "stay"
        assert model.functions["f", "stay", ""].opset_imports[""] == 18

    def test_one_that_cannot_be_inlined(self) -> None:
        model = read(
            self.TEXT.replace(
                'opset_import: ["" : 13]>\n        change',
                'opset_import: ["" : 18]>\n        change',
            ).replace("ReduceMean <axes = [1]> (a)", "Pad (a, a)"),
            13,
        )
        with pytest.raises(PreconditionError, match="function change"):
            ConvertOpset(to=12).apply(model, Context())


class TestRefusals:
    def test_an_operator_that_nobody_knows(self) -> None:
        model = read("m (float[2] x) => (float[2] y) { [crop] y = Crop (x) }", 7)
        with pytest.raises(PreconditionError, match=r"crop \(Crop\): opset 7 has no operator Crop"):
            ConvertOpset(to=13).apply(model, Context())
        assert opset(model) == 7

    def test_what_the_target_cannot_say(self) -> None:
        model = read("m (float[2,3] x, int64[1] a) => (float y) { y = ReduceSum (x, a) }", 13)
        with pytest.raises(PreconditionError, match="ReduceSum"):
            ConvertOpset(to=11).apply(model, Context())

    def test_a_target_that_nobody_runs(self) -> None:
        model = read("m (float[2] x) => (float[2] y) { y = Neg (x) }", 13)
        with pytest.raises(PreconditionError, match="newer than onnxruntime"):
            ConvertOpset(to=99).requires(model, Context())
        with pytest.raises(ParameterError, match=">= 7"):
            ConvertOpset(to=6)

    def test_an_opset_that_is_to_be_kept(self) -> None:
        model = read("m (float[2] x) => (float[2] y) { y = Neg (x) }", 13)
        kept = Context(keep_opset=True)
        with pytest.raises(PreconditionError, match="to be kept"):
            ConvertOpset(to=17).requires(model, kept)
        assert not ConvertOpset().apply(model, kept).modified

    def test_other_domains_stay(self) -> None:
        model = read(
            """<ir_version: 8, opset_import: ["" : 13, "com.microsoft" : 1]>
            m (float[2,3] x) => (float[2,1] y) {
                h = com.microsoft.Gelu (x) y = ReduceMean <axes = [1]> (h) }""",
            13,
        )
        convert(model, 18)
        assert model.opset_imports == {"": 18, "com.microsoft": 1}

    def test_nothing_to_do(self) -> None:
        model = read("m (float[2] x) => (float[2] y) { y = Neg (x) }", 17)
        assert not ConvertOpset(to=17).apply(model, Context()).modified


def test_a_default_target_never_lowers() -> None:
    newer = read("m (float[2] x) => (float[2] y) { y = Neg (x) }", 25)
    assert not ConvertOpset().apply(newer, Context()).modified


def test_large_weights_are_never_read() -> None:
    class Unreadable(ir.Tensor):  # type: ignore[misc]
        def numpy(self) -> np.ndarray:
            raise AssertionError("a weight was read")

        tobytes = numpy  # type: ignore[assignment]

    model = read(
        "m (float[2,64] x) => (float[2,1] y) { h = MatMul (x, w) y = ReduceSum <axes = [1]> (h) }",
        11,
        w=np.ones((64, 64), np.float32),
    )
    value = model.graph.initializers["w"]
    value.const_value = Unreadable(np.ones((64, 64), np.float32), name="w")
    assert ConvertOpset(to=13).apply(model, Context()).modified
    assert value.const_value is model.graph.initializers["w"].const_value


def test_the_file_that_is_written_runs(tmp_path: Path) -> None:
    model = read("m (float[N,3] x) => (float[N,1] y) { y = ReduceSum <axes = [1]> (x) }", 11)
    (tmp_path / "in.onnx").write_bytes(ir.to_proto(model).SerializeToString())
    converter.convert(tmp_path / "in.onnx", tmp_path / "out.onnx", passes="convert_opset:to=17")
    outputs = support.run(tmp_path / "out.onnx", {"x": np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(outputs["y"], np.full((2, 1), 3.0, np.float32))
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))


@pytest.mark.parametrize("name", ["magika_fast_v2_1", "nnsplit_en_bilstm"])
def test_real_models(name: str, tmp_path: Path) -> None:
    path = ZOO / "models" / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    converter.convert(path, tmp_path / "out.onnx", passes="convert_opset:to=21")
    after = ir.load(tmp_path / "out.onnx")
    assert opset(after) == 21
    assert {v.name for node in walk(ir.load(path)) for v in node.outputs} >= {
        v.name for v in after.graph.outputs
    }


@pytest.mark.parametrize("op_type", ["RandomNormal", "RandomUniform", "Multinomial"])
def test_an_operator_that_onnxruntime_would_not_run_any_more_is_named(op_type: str) -> None:
    body = {"Multinomial": "y = Multinomial <sample_size = 2> (x)"}.get(
        op_type, f"r = {op_type} <shape = [1, 3]> () y = Identity (r)"
    )
    kind = "int32" if op_type == "Multinomial" else "float"
    model = read(f"g (float[1,3] x) => ({kind}[1,N] y) {{ {body} }}", 21, 10)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(PreconditionError, match=f"does not compute {op_type} of opset 23"):
        ConvertOpset(to=23).apply(model, Context())
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert ConvertOpset(to=20).apply(model, Context()).modified
