"""``deduplicate``: equal constants and equal computations, and what only looks equal."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from exact import apply, check
from support import model_from_text, op_types

from converter.core.context import Context
from passes import Deduplicate

ONES = np.ones((4, 4), np.float32)


def test_equal_constants_become_one() -> None:
    model = model_from_text(
        "g (float[2,4] x) => (float[2,4] y) { a = MatMul (x, v) b = Tanh (a) y = MatMul (b, w) }",
        v=ONES,
        w=ONES.copy(),
    )
    outcome = check(Deduplicate(), model)
    assert list(model.graph.initializers) == ["v"]
    assert outcome.counts == {"constants_merged": 1.0}


def test_large_constants_that_differ_in_one_late_byte_stay() -> None:
    first = np.zeros((512, 512), np.float32)
    last = first.copy()
    last[-1, -1] = 1
    model = model_from_text(
        "g (float[2,512] x) => (float[2,512] y) { a = MatMul (x, v) y = MatMul (a, w) }",
        v=first,
        w=last,
    )
    assert not check(Deduplicate(), model).modified


def test_type_shape_and_sign_of_zero_count() -> None:
    model = model_from_text(
        """g (float[2] x) => (float[2] y) {
            a = Add (x, p) b = Add (a, n) c = Add (b, q) d = Cast <to = 1> (i) y = Add (c, d) }""",
        p=np.float32(0.0),
        n=np.float32(-0.0),
        q=np.zeros(1, np.float32),
        i=np.int32(0),
    )
    assert not check(Deduplicate(), model).modified


def test_overridable_and_public_constants_stay() -> None:
    model = model_from_text(
        "g (float[4,4] x, float[4,4] v) => (float[4,4] y, float[4,4] w) "
        "{ a = MatMul (x, v) b = MatMul (a, w) y = MatMul (b, u) }",
        v=ONES,
        w=ONES,
        u=ONES,
    )
    check(Deduplicate(), model)
    assert {"v", "w"} <= set(model.graph.initializers)
    assert model.graph.inputs[1].is_initializer()


def test_constant_nodes_become_initializers() -> None:
    model = model_from_text(
        """g (float[2] x) => (float[2] y) {
            c = Constant <value = float[2] {1.0, 2.0}> () d = Constant <value_float = 3.0> ()
            e = Constant <value_ints = [2]> () f = Reshape (x, e) a = Add (f, c) y = Mul (a, d) }"""
    )
    assert check(Deduplicate(), model).counts["constants_lifted"] == 3
    assert op_types(model) == ["Reshape", "Add", "Mul"]


def test_constants_stay_nodes_where_initializers_must_be_inputs() -> None:
    model = model_from_text(
        '<ir_version: 3, opset_import: ["" : 9]> g (float[2] x) => (float[2] y) '
        "{ c = Constant <value = float[2] {1.0, 2.0}> () y = Add (x, c) }"
    )
    assert not apply(Deduplicate(), model).modified


def test_equal_nodes_become_one_however_deep() -> None:
    model = model_from_text(
        """g (float[2] x) => (float[2] y) {
            a = Relu (x) b = Relu (x) c = Exp (a) d = Exp (b) y = Add (c, d) }"""
    )
    assert check(Deduplicate(), model).counts == {"nodes_merged": 2.0}
    assert op_types(model) == ["Relu", "Exp", "Add"]


def test_attributes_inputs_and_outputs_count() -> None:
    model = model_from_text(
        """g (float[2] x, float[2] z) => (float[2] y, float[2] y1, float[2] y2) {
            a = LeakyRelu <alpha = 0.1> (x) b = LeakyRelu <alpha = 0.2> (x) c = Sub (x, z)
            d = Sub (z, x) y = Sum (a, b, c, d) y1 = Abs (x) y2 = Abs (x) }"""
    )
    assert not check(Deduplicate(), model).modified


def test_public_name_survives_a_merge() -> None:
    model = model_from_text(
        "g (float[2] x) => (float[2] y, float[2] z) { a = Abs (x) y = Abs (x) z = Exp (a) }"
    )
    check(Deduplicate(), model)
    assert op_types(model) == ["Abs", "Exp"]
    assert [value.name for value in model.graph.outputs] == ["y", "z"]


def test_random_unknown_and_inner_graphs_are_never_merged() -> None:
    model = model_from_text(
        """<ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
        g (float[2] x, bool f) => (float[2] y) {
            a = RandomNormal <shape = [2]> () b = RandomNormal <shape = [2]> ()
            c = acme.Next (x) d = acme.Next (x)
            e = If (f) <then_branch = t () => (float[2] u) { u = Abs (x) },
                        else_branch = s () => (float[2] v) { v = Neg (x) }>
            h = If (f) <then_branch = t2 () => (float[2] u2) { u2 = Abs (x) },
                        else_branch = s2 () => (float[2] v2) { v2 = Neg (x) }>
            y = Sum (a, b, c, d, e, h) }"""
    )
    assert not Deduplicate().apply(model, Context()).modified


def test_branches_are_not_merged_with_each_other() -> None:
    model = model_from_text(
        """g (float[2] x, bool f) => (float[2] y) {
            y = If (f) <
                then_branch = t () => (float[2] u) { a = Abs (x) b = Abs (x) u = Add (a, b) },
                else_branch = s () => (float[2] v) { c = Abs (x) v = Neg (c) }> }"""
    )
    check(Deduplicate(), model)
    (node,) = model.graph
    sizes = [len(node.attributes[name].as_graph()) for name in ("then_branch", "else_branch")]
    assert sizes == [2, 2]


def test_large_constants_of_branches_move_to_one_outside() -> None:
    model = model_from_text(
        """g (float[8,8] x, bool f) => (float[8,8] y) {
            h = MatMul (x, w)
            y = If (f) <then_branch = t () => (float[8,8] u) { u = MatMul (h, k) },
                        else_branch = s () => (float[8,8] v) { v = Neg (h) }> }""",
        w=np.ones((8, 8), np.float32),
        k=np.ones((8, 8), np.float32),
    )
    inner = model.graph[1].attributes["then_branch"].as_graph()
    value = model.graph.initializers.pop("k")
    inner.register_initializer(ir.Value(name="k2", const_value=value.const_value))
    inner[0].replace_input_with(1, inner.initializers["k2"])
    check(Deduplicate(), model)
    assert not inner.initializers
    assert inner[0].inputs[1] is model.graph.initializers["w"]


def test_operands_in_any_order() -> None:
    model = model_from_text(
        "g (float[4] x, float[4] z) => (float[4] y) "
        "{ a = Add (x, z) b = Add (z, x) c = Mul (a, x) d = Mul (x, b) e = Sub (x, z) "
        "f = Sub (z, x) h = Add (c, d) i = Mul (e, f) y = Add (h, i) }"
    )
    check(Deduplicate(), model)
    assert op_types(model) == ["Add", "Mul", "Sub", "Sub", "Add", "Mul", "Add"]


def test_inner_nodes_merge_with_those_computed_before_outside() -> None:
    model = model_from_text(
        """g (float[4] x, bool f) => (float[4] y) {
            a = Exp (x)
            b = If (f) <then_branch = t () => (float[4] u) { c = Exp (x) u = Neg (c) },
                        else_branch = e () => (float[4] v) { d = Exp (x) w = Log (a)
                                                             v = Add (d, w) }>
            h = Log (a) y = Add (b, h) }"""
    )
    check(Deduplicate(), model)
    branches = [model.graph[1].attributes[n].as_graph() for n in ("then_branch", "else_branch")]
    assert [[n.op_type for n in g] for g in branches] == [["Neg"], ["Log", "Add"]]
    assert op_types(model) == ["Exp", "If", "Log", "Add"]


def test_equal_sizes_however_computed() -> None:
    model = model_from_text(
        """g (float[N,4] x) => (float[A,4] y) {
            r = Relu (x) s = Shape (x) t = Shape (r) i = Gather (s, zero) j = Gather (t, zero)
            k = Concat <axis = 0> (i, four) l = Concat <axis = 0> (j, four)
            m = Expand (x, k) n = Expand (r, l) y = Add (m, n) }""",
        zero=np.array([0]),
        four=np.array([4]),
    )
    check(Deduplicate(), model)
    assert op_types(model) == ["Relu", "Shape", "Expand", "Expand", "Add"]


def test_sizes_of_two_inputs_are_not_equal() -> None:
    model = model_from_text(
        """g (float[N,4] x, float[N,4] z) => (int64[2] y) {
            s = Shape (x) t = Shape (z) y = Sub (s, t) }"""
    )
    check(Deduplicate(), model)
    assert op_types(model) == ["Shape", "Shape", "Sub"]
