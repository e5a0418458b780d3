"""``inline``: outputs stay equal to the last bit, names stay, what cannot be inlined says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import support
from exact import assert_equal_outputs, context, feed_for, size

from converter.core.context import Context
from converter.core.contract import Outcome
from converter.core.select import Selection
from converter.pipeline.structure import check_structure
from passes import Inline
from passes.inline import inline
from passes.rewriting.work import Work

HEAD = '<ir_version: 10, opset_import: ["" : 18, "f" : 1, "g" : 1]>\n'


def read(text: str, **constants: np.ndarray) -> ir.Model:
    return support.model_from_text(HEAD + text, **constants)


def check(model: ir.Model, pass_: Inline | None = None, **kwargs: object) -> Outcome:
    """Inline in place; outputs must stay equal, the structure valid, and a second run idle."""
    before = model.clone()
    outcome = (pass_ or Inline()).apply(model, Context(**kwargs))  # type: ignore[arg-type]
    check_structure(model, "inline")
    onnx.checker.check_model(ir.to_proto(model))
    for seed in (0, 1):
        assert_equal_outputs(before, model, feed_for(before, seed))
    second = (pass_ or Inline()).apply(model, Context(**kwargs))  # type: ignore[arg-type]
    assert not second.modified
    return outcome


def reasons(outcome: Outcome) -> str:
    return "; ".join(skip.reason for skip in outcome.skipped)


class TestBodies:
    def test_a_call_becomes_the_body_and_keeps_names(self) -> None:
        model = read(
            """m (float[N,4] x) => (float[N,4] y) { h = f.twice (x) y = Neg (h) }
            <domain: "f", opset_import: ["" : 18]>
            twice (x) => (y) { h = Add (x, x) y = Relu (h) }"""
        )
        outcome = check(model)
        assert support.op_types(model) == ["Add", "Relu", "Neg"]
        assert outcome.counts == {"calls_inlined": 1, "functions_removed": 1}
        assert [n.outputs[0].name for n in model.graph] == ["h_1", "h", "y"]
        assert not model.functions

    def test_nested_calls_and_overloads(self) -> None:
        model = read(
            """m (float[N,4] x) => (float[N,4] y) { h = f.outer (x) y = f.inner:b (h) }
            <domain: "f", opset_import: ["" : 18, "f" : 1]>
            outer (a) => (b) { t = f.inner:a (a) b = f.inner:a (t) }
            <domain: "f", opset_import: ["" : 18], overload: "a">
            inner (a) => (b) { b = Add (a, a) }
            <domain: "f", opset_import: ["" : 18], overload: "b">
            inner (a) => (b) { b = Neg (a) }"""
        )
        Inline().apply(model, context())  # onnxruntime runs no overloads that functions call
        assert support.op_types(model) == ["Add", "Add", "Neg"]
        outputs = support.run(model, {"x": np.ones((1, 4), np.float32)})
        np.testing.assert_array_equal(outputs["y"], np.full((1, 4), -4.0, np.float32))

    def test_attributes_given_defaulted_and_left_out(self) -> None:
        model = read(
            """m (float[4,4] x) => (float[4,4] a, float[4,4] b, float[4,4] c) {
                a = f.soft <axis = 0> (x)
                b = f.soft (x)
                c = f.wrap <k = 0> (x)
            }
            <domain: "f", opset_import: ["" : 18, "f" : 1]>
            wrap <k> (x) => (y) { y = f.soft <axis: int = @k> (x) }
            <domain: "f", opset_import: ["" : 18]>
            soft <axis: int = 1> (x) => (y) { y = Softmax <axis: int = @axis> (x) }"""
        )
        check(model)
        assert [n.attributes["axis"].as_int() for n in model.graph] == [0, 1, 0]

    def test_an_attribute_that_a_caller_may_leave_out_stays_in_its_function(self) -> None:
        model = read(
            """m (float[4,4] x) => (float[4,4] y) { y = f.wrap (x) }
            <domain: "f", opset_import: ["" : 18, "f" : 1]>
            wrap <k> (x) => (y) { y = f.soft <axis: int = @k> (x) }
            <domain: "f", opset_import: ["" : 18]>
            soft <axis: int = 0> (x) => (y) { y = Softmax <axis: int = @axis> (x) }"""
        )
        outcome = Inline(exclude=("op:wrap",)).apply(model, context())
        assert not outcome.modified
        assert "may leave out" in reasons(outcome)

    def test_inputs_left_out(self) -> None:
        model = read(
            """m (float[4] x) => (float[4] y) { y = f.limit (x, , top) }
            <domain: "f", opset_import: ["" : 18]>
            limit (a, low, high, more) => (b) { b = Clip (a, low, high) }""",
            top=np.array(0.5, np.float32),
        )
        check(model)
        (node,) = model.graph
        assert [v.name if v else None for v in node.inputs] == ["x", None, "top"]

    def test_outputs_that_are_inputs_or_repeat(self) -> None:
        model = read(
            """m (float[4] x) => (float[4] a, float[4] b, float[4] c) { a, b, c = f.same (x) }
            <domain: "f", opset_import: ["" : 18]>
            same (x) => (x, d, d) { d = Neg (x) }"""
        )
        Inline().apply(model, context())  # onnxruntime runs no such function
        assert sorted(support.op_types(model)) == ["Identity", "Identity", "Neg"]
        outputs = support.run(model, {"x": np.ones(4, np.float32)})
        assert [float(array[0]) for array in outputs.values()] == [1.0, -1.0, -1.0]

    def test_an_output_that_nobody_wants(self) -> None:
        model = read(
            """m (float[4] x) => (float[4] b) { a, b = f.two (x) }
            <domain: "f", opset_import: ["" : 18]>
            two (x) => (p, q) { p = Neg (x) q = Abs (x) }"""
        )
        check(model)
        assert support.op_types(model) == ["Neg", "Abs"]

    def test_names_in_branches_do_not_clash(self) -> None:
        model = read(
            """m (float[4] x, bool c) => (float[4] y) {
                t = Neg (x)
                h = f.choose (x, c)
                k = f.choose (h, c)
                y = Add (k, t)
            }
            <domain: "f", opset_import: ["" : 18]>
            choose (x, c) => (y) {
                k = Abs (x)
                y = If (c) <
                    then_branch = yes () => (float[4] t) { h = Neg (k) t = Add (h, x) },
                    else_branch = no () => (float[4] t) { h = Exp (x) t = Identity (h) }
                >
            }"""
        )
        check(model)
        names = [o.name for n in model.graph.all_nodes() for o in n.outputs]
        assert len(names) == len(set(names))

    def test_calls_in_branches_capture_what_they_need(self) -> None:
        model = read(
            """m (float[4] x, bool c) => (float[4] y) {
                w = Abs (x)
                y = If (c) <
                    then_branch = yes () => (float[4] p) { p = f.twice (w) },
                    else_branch = no () => (float[4] q) { z = f.twice (x) q = f.twice (z) }
                >
            }
            <domain: "f", opset_import: ["" : 18]>
            twice (a) => (b) { b = Add (a, a) }"""
        )
        assert check(model).counts["calls_inlined"] == 3

    def test_loops_and_scans_in_functions(self) -> None:
        model = read(
            """m (float[4] x) => (float[4] y, float[3,4] z) { y, z = f.loop (x) }
            <domain: "f", opset_import: ["" : 18]>
            loop (x) => (y, z) {
                n = Constant <value = int64 {3}> ()
                go = Constant <value = bool {1}> ()
                y, z = Loop (n, go, x) <body = b (int64 i, bool go, float[4] s)
                    => (bool on, float[4] out, float[4] each) {
                    on = Identity (go) out = Add (s, x) each = Neg (out) }>
            }"""
        )
        check(model)

    def test_dimension_names_of_the_function_are_forgotten(self) -> None:
        model = read(
            """m (float[N] x) => (float[N] y) { y = f.two (x) }
            <domain: "f", opset_import: ["" : 18]>
            two (a) => (b) { t = Neg (a) b = Abs (t) }"""
        )
        (function,) = model.functions.values()
        function[0].outputs[0].shape = ir.Shape(["Other"])
        function[0].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        check(model)
        shape = model.graph[0].outputs[0].shape
        assert shape is not None
        assert shape[0] == ir.SymbolicDim(None)


class TestRefusals:
    def test_another_meaning_of_an_operator(self) -> None:
        model = read(
            """m (float[2,4] x) => (float[2,1] y) { y = f.total (x) }
            <domain: "f", opset_import: ["" : 12]>
            total (a) => (b) { b = ReduceSum <axes = [1]> (a) }"""
        )
        outcome = Inline().apply(model, context())
        assert not outcome.modified
        assert "ReduceSum of opset 12, which opset 18 around it" in reasons(outcome)

    def test_another_version_with_the_same_meaning(self) -> None:
        model = read(
            """m (float[2,4] x) => (float[2,4] y) { y = f.wave (x) }
            <domain: "f", opset_import: ["" : 14]>
            wave (a) => (b) { b = Sin (a) }"""
        )
        check(model)
        assert support.op_types(model) == ["Sin"]

    def test_a_function_that_calls_itself(self) -> None:
        model = read(
            """m (float[4] x) => (float[4] y) { y = f.a (x) }
            <domain: "f", opset_import: ["f" : 1]> a (x) => (y) { y = f.b (x) }
            <domain: "f", opset_import: ["f" : 1]> b (x) => (y) { y = f.a (x) }"""
        )
        outcome = Inline().apply(model, context())
        assert not outcome.modified
        assert "calls itself" in reasons(outcome)

    def test_a_function_with_the_name_of_a_standard_operator(self) -> None:
        model = read(
            """m (float[4] x) => (float[4] y) { y = Relu (x) }
            <domain: "", opset_import: ["" : 18]> Relu (x) => (y) { y = Neg (x) }"""
        )
        outcome = Inline().apply(model, context())
        assert not outcome.modified
        assert "standard domain" in reasons(outcome)

    def test_a_bomb_of_nested_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("passes.inline._MOST_NODES", 2000)
        levels = "".join(
            f'<domain: "f", opset_import: ["f" : 1]> l{i} (x) => (y) {{\n'
            + "".join(f"v{j} = f.l{i + 1} ({'x' if not j else f'v{j - 1}'})\n" for j in range(19))
            + f"y = f.l{i + 1} (v18) }}\n"
            for i in range(8)
        )
        model = read(
            f"""m (float[1] x) => (float[1] y) {{ y = f.l0 (x) }} {levels}
            <domain: "f", opset_import: ["" : 18]> l8 (x) => (y) {{ y = Neg (x) }}"""
        )
        outcome = Inline().apply(model, context())
        assert "too large" in reasons(outcome)
        assert len(model.graph) == 20**2


class TestChoice:
    TEXT = """m (float[4] x) => (float[4] y) {
            [first] h = f.twice (x)
            [second] y = f.twice (h)
        }
        <domain: "f", opset_import: ["" : 18]>
        twice (a) => (b) { b = Add (a, a) }"""

    def test_by_name(self) -> None:
        model = read(self.TEXT)
        outcome = check(model, Inline(include=("first",)))
        assert support.op_types(model) == ["Add", "twice"]
        assert outcome.counts == {"calls_inlined": 1}
        assert len(model.functions) == 1

    def test_by_operator(self) -> None:
        model = read(self.TEXT)
        check(model, Inline(exclude=("op:twi*",)))
        assert support.op_types(model) == ["twice", "twice"]

    def test_a_new_operator_set_is_added_unless_the_opset_is_kept(self) -> None:
        text = """<ir_version: 8, opset_import: ["f" : 1]>
            m (float[4] x) => (float[4] y) { y = f.twice (x) }
            <domain: "f", opset_import: ["" : 17]>
            twice (a) => (b) { b = Add (a, a) }"""
        model = support.model_from_text(text)
        kept = check(model, keep_opset=True)
        assert not kept.modified
        assert "import an operator set" in reasons(kept)
        check(model)
        assert model.opset_imports == {"f": 1, "": 17}


class TestOnlyIfSmaller:
    def run(self, model: ir.Model) -> Work:
        before, nbytes = model.clone(), size(model)
        work = Work(model, context(), Selection())
        inline(work, only_if_smaller=True)
        check_structure(model, "inline")
        assert size(model) <= nbytes
        assert_equal_outputs(before, model, feed_for(before))
        return work

    def test_called_once(self) -> None:
        model = read(
            """m (float[4] x) => (float[4] y) { y = f.chain (x) }
            <domain: "f", opset_import: ["" : 18]>
            chain (a) => (b) { c = Neg (a) d = Abs (c) e = Exp (d) g = Sin (e) b = Cos (g) }"""
        )
        work = self.run(model)
        assert not work.edits  # five nodes in the place of one
        assert support.op_types(model) == ["chain"]

    def test_tiny_and_called_twice(self) -> None:
        model = read(TestChoice.TEXT)
        self.run(model)
        assert support.op_types(model) == ["Add", "Add"]

    def test_large_and_called_often(self) -> None:
        chain = " ".join(f"v{i} = Neg (v{i - 1})" for i in range(1, 9))
        model = read(
            f"""m (float[4] x) => (float[4] y) {{ h = f.chain (x) y = f.chain (h) }}
            <domain: "f", opset_import: ["" : 18]>
            chain (v0) => (v8) {{ {chain} }}"""
        )
        work = self.run(model)
        assert not work.edits
        assert support.op_types(model) == ["chain", "chain"]

    def test_long_names_that_would_be_repeated(self) -> None:
        name = "a_very_long_name_of_a_value" * 10
        uses = " ".join(f"b{i} = Add (a, a)" for i in range(9))
        model = read(
            f"""m (float[4] {name}) => (float[4] y) {{ y = f.often ({name}) }}
            <domain: "f", opset_import: ["" : 18]>
            often (a) => (b) {{ {uses} b = Add (a, a) }}"""
        )
        self.run(model)
        assert support.op_types(model) == ["often"]


@pytest.mark.parametrize("count", [400])
def test_many_calls_take_linear_time(count: int) -> None:
    calls = "\n".join(f"v{i} = f.add (v{i - 1})" for i in range(1, count + 1))
    model = read(
        f"""m (float[1] v0) => (float[1] v{count}) {{ {calls} }}
        <domain: "f", opset_import: ["" : 18]>
        add (a) => (b) {{ t = Neg (a) b = Neg (t) }}"""
    )
    outcome = check(model)
    assert outcome.counts["calls_inlined"] == count
    assert len(model.graph) == 2 * count


def test_a_shared_tensor_keeps_its_name() -> None:
    model = read(
        """m (float[4] x, bool c) => (float[4] y) { h = f.pick (x, c) y = f.pick (h, c) }
        <domain: "f", opset_import: ["" : 18]>
        pick (x, c) => (y) { y = If (c) <
            then_branch = yes () => (float[4] t) <float[4] k = {1.0, 2.0, 3.0, 4.0}>
                { t = Add (x, k) },
            else_branch = no () => (float[4] e) { e = Neg (x) } > }"""
    )
    twin = model.clone()
    check(model)
    (function,) = twin.functions.values()
    branch = function[0].attributes["then_branch"].as_graph()
    tensor = branch.initializers["k"].const_value
    assert tensor is not None
    assert tensor.name == "k"


def test_the_file_that_is_written_runs(tmp_path: Path) -> None:
    import converter

    path = tmp_path / "in.onnx"
    path.write_bytes(ir.to_proto(read(TestChoice.TEXT)).SerializeToString())
    converter.convert(path, tmp_path / "out.onnx", passes="inline")
    outputs = support.run(tmp_path / "out.onnx", {"x": np.ones(4, np.float32)})
    np.testing.assert_array_equal(outputs["y"], np.full(4, 4.0, np.float32))
