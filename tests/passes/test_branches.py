"""Control flow that is decided in advance: outputs stay equal, names stay, no file grows."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import support
from exact import assert_equal_outputs, context, feed_for, size

from converter.core.graph import walk
from converter.core.select import Selection
from converter.pipeline.interface import interface_of
from converter.pipeline.structure import check_structure
from passes.rewriting.branches import RULES
from passes.rewriting.work import Work


def run(model: ir.Model) -> Work:
    """Apply the rules; everything that any model must keep is checked."""
    before, nbytes, ports = model.clone(), size(model), interface_of(model)
    work = Work(model, context(), Selection())
    work.sweep(RULES)
    work.refresh()
    check_structure(model, "branches")
    onnx.checker.check_model(ir.to_proto(model))
    assert size(model) <= nbytes
    assert interface_of(model) == ports
    for seed in (0, 1):
        assert_equal_outputs(before, model, feed_for(before, seed))
    return work


def read(text: str, **constants: np.ndarray) -> ir.Model:
    return support.model_from_text(text, **constants)


YES, NO = np.array(True), np.array(False)


class TestIf:
    TEXT = """m (float[N] x) => (float[N] y) {
        h = Abs (x)
        y = If (c) <
            then_branch = yes () => (float[M] t) { p = Neg (h) t = Exp (p) },
            else_branch = no () => (float[M] t) { p = Sin (h) t = Cos (p) }
        >
    }"""

    def test_each_branch(self) -> None:
        for condition, expected in ((YES, ["Neg", "Exp"]), (NO, ["Sin", "Cos"])):
            model = read(self.TEXT, c=condition)
            work = run(model)
            assert support.op_types(model) == ["Abs", *expected]
            assert work.counts["branches_chosen"] == 1
            assert model.graph[-1].outputs[0].name == "y"

    def test_a_condition_that_callers_may_override(self) -> None:
        model = read(self.TEXT.replace("(float[N] x)", "(float[N] x, bool c)", 1), c=YES)
        assert not run(model).edits

    def test_outputs_that_are_captured_constant_or_repeated(self) -> None:
        model = read(
            """m (float[4] x) => (float[4] a, float[4] b, float[4] d, float[4] e) {
                h = Abs (x)
                a, b, d, f = If (c) <
                    then_branch = yes () => (float[4] i, float[4] k, float[4] n, float[4] o)
                        <float[4] k = {1.0, 2.0, 3.0, 4.0}> {
                        i = Identity (h) n = Neg (x) o = Abs (n) },
                    else_branch = no () => (float[4] i, float[4] j, float[4] n, float[4] o) {
                        i = Exp (h) j = Exp (x) n = Exp (j) o = Exp (n) }
                >
                e = Neg (f)
            }""",
            c=YES,
        )
        run(model)
        assert "If" not in support.op_types(model)

    def test_names_that_the_graph_around_it_needs(self) -> None:
        model = read(
            """m (float[4] x, bool d) => (float[4] y) {
                h = If (c) <
                    then_branch = a () => (float[4] t) <float[4] k = {1.0, 2.0, 3.0, 4.0}>
                        { p = Neg (x) t = Add (p, k) },
                    else_branch = b () => (float[4] t) { p = Sin (x) t = Cos (p) }
                >
                y = If (d) <
                    then_branch = a2 () => (float[4] t) <float[4] k = {5.0, 2.0, 3.0, 4.0}>
                        { p = Mul (h, k) t = Exp (p) },
                    else_branch = b2 () => (float[4] t) { p = Sin (h) t = Cos (p) }
                >
            }""",
            c=YES,
        )
        run(model)
        assert support.op_types(model) == ["Neg", "Add", "If"]

    def test_a_shared_tensor_keeps_its_name(self) -> None:
        model = read(
            """m (float[4] x) => (float[4] y, float[4] z) {
                y = If (c) < then_branch = a () => (float[4] t)
                        <float[4] k = {1.0, 2.0, 3.0, 4.0}> { t = Add (x, k) },
                    else_branch = b () => (float[4] t) { t = Cos (x) } >
                z = If (c) < then_branch = a2 () => (float[4] t)
                        <float[4] k = {5.0, 2.0, 3.0, 4.0}> { t = Add (x, k) },
                    else_branch = b2 () => (float[4] t) { t = Cos (x) } >
            }""",
            c=YES,
        )
        twin = model.clone()
        run(model)
        assert support.op_types(model) == ["Add", "Add"]
        kept = [v.const_value for g in twin.graph.subgraphs() for v in g.initializers.values()]
        assert [tensor.name for tensor in kept if tensor is not None] == ["k", "k"]

    def test_nested_and_in_a_loop(self) -> None:
        model = read(
            """m (float[4] x) => (float[4] y) {
                n = Constant <value = int64 {3}> ()
                y = Loop (n, c, x) <body = b (int64 i, bool go, float[4] s)
                    => (bool on, float[4] out) {
                    on = Identity (go)
                    out = If (c) <
                        then_branch = yes () => (float[4] t) {
                            t = If (c) <
                                then_branch = yes2 () => (float[4] u) { u = Add (s, x) },
                                else_branch = no2 () => (float[4] u) { u = Neg (s) } > },
                        else_branch = no () => (float[4] t) { t = Neg (s) } >
                }>
            }""",
            c=YES,
        )
        work = run(model)
        assert work.counts["branches_chosen"] == 2
        assert "If" not in {node.op_type for node in walk(model)}

    def test_in_a_function_constants_become_nodes(self) -> None:
        model = read(
            """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
            m (float[4] x) => (float[4] y) { y = f.pick (x) }
            <domain: "f", opset_import: ["" : 17]>
            pick (x) => (y) {
                c = Constant <value = bool {1}> ()
                y = If (c) <
                    then_branch = yes () => (float[4] t) <float[4] k = {1.0, 2.0, 3.0, 4.0}>
                        { t = Add (x, k) },
                    else_branch = no () => (float[4] t) { e = Exp (x) t = Neg (e) } >
            }"""
        )
        run(model)
        (function,) = model.functions.values()
        assert [n.op_type for n in function] == ["Constant", "Add"]


class TestLoop:
    TEXT = """m (float[4] x) => (float[4] y, float[4] z) {
        h = Neg (x)
        y, q, z = Loop (n, c, x, h, h) <body = b (int64 i, bool go, float[4] s, float[4] r,
                float[4] w)
            => (bool on, float[4] out, float[4] r2, float[4] w2) {
            on = Identity (go) out = Add (s, s) r2 = Neg (r) w2 = Neg (w) }>
    }"""

    def test_no_trips(self) -> None:
        model = read(self.TEXT, n=np.array(0, np.int64), c=YES)
        assert run(model).counts["loops_skipped"] == 1
        assert "Loop" not in support.op_types(model)

    def test_condition_is_false(self) -> None:
        model = read(self.TEXT.replace("Loop (n,", "Loop (,"), c=NO)
        assert run(model).counts["loops_skipped"] == 1

    def test_loops_that_run_stay(self) -> None:
        model = read(self.TEXT, n=np.array(2, np.int64), c=YES)
        assert not run(model).edits

    def test_collected_outputs_in_use(self) -> None:
        model = read(
            """m (float[4] x) => (float[K,4] y) {
                z, y = Loop (n, c, x) <body = b (int64 i, bool go, float[4] s)
                    => (bool on, float[4] out, float[4] each) {
                    on = Identity (go) out = Add (s, s) each = Neg (s) }>
            }""",
            n=np.array(0, np.int64),
            c=YES,
        )
        work = run(model)
        assert not work.edits
        assert "collects" in work.outcome().skipped[0].reason
