"""``fold_constants``: what is computed in advance, what is not, and that files never grow."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from exact import InProcess, apply, check, context
from support import model_from_text, op_types

from converter.core.context import Context, Limits, RunSettings
from converter.errors import ModelError
from passes import FoldConstants


def reasons(outcome: object) -> str:
    return " ".join(skip.reason for skip in outcome.skipped)  # type: ignore[attr-defined]


def test_arithmetic_of_constants() -> None:
    model = model_from_text(
        "g (float[4] x) => (float[4] y) { c = Add (a, b) d = Exp (c) y = Mul (x, d) }",
        a=np.arange(4, dtype=np.float32),
        b=np.ones(4, np.float32),
    )
    outcome = check(FoldConstants(), model)
    assert op_types(model) == ["Mul"]
    assert outcome.counts == {"nodes_folded": 2.0}
    assert list(model.graph.initializers) == ["d"]


def test_everything_is_computed_in_one_run() -> None:
    body = " ".join(f"c{i} = Add (a, b{i}) h{i} = Mul (h{i - 1}, c{i})" for i in range(1, 40))
    constants = {f"b{i}": np.float32(i) for i in range(1, 40)}
    model = model_from_text(
        f"g (float[4] h0) => (float[4] h39) {{ {body} }}", a=np.float32(1), **constants
    )
    services = InProcess()
    FoldConstants().apply(model, Context(services=services))
    assert op_types(model) == ["Mul"] * 39
    assert services.runs == 1


def test_shape_of_a_fixed_input() -> None:
    model = model_from_text(
        """g (float[2,3,4] x) => (float[6,4] y) {
            s = Shape (x) a = Gather (s, i) b = Gather (s, j) c = Mul (a, b)
            d = Concat <axis = 0> (c, m) y = Reshape (x, d) }""",
        i=np.array([0]),
        j=np.array([1]),
        m=np.array([4]),
    )
    services = InProcess()
    FoldConstants().apply(model, Context(services=services))
    assert op_types(model) == ["Reshape"]
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [6, 4]
    assert services.runs == 0


def test_partly_known_targets_become_zero_and_minus_one() -> None:
    model = model_from_text(
        """g (float[N,3,M,4] x) => (float[A,3,B,2,2] y) {
            r = Relu (x) s = Shape (r) a = Gather (s, i) b = Gather (s, j)
            d = Concat <axis = 0> (a, three, b, two, two) y = Reshape (r, d) }""",
        i=np.array([0]),
        j=np.array([2]),
        three=np.array([3]),
        two=np.array([2]),
    )
    check(FoldConstants(), model)
    assert op_types(model) == ["Relu", "Reshape"]
    assert model.graph[1].inputs[1].const_value.numpy().tolist() == [0, 3, 0, 2, 2]


def test_a_moved_size_becomes_minus_one_only_if_no_other_can_be_zero() -> None:
    text = """g (float[N,3,M] x) => (float[A,B,C] y) {{
        s = Shape (x) a = Gather (s, i) b = Gather (s, j) c = Gather (s, k)
        d = Concat <axis = 0> ({order}) y = Reshape (x, d) }}"""
    constants = {"i": np.array([0]), "j": np.array([1]), "k": np.array([2])}
    model = model_from_text(text.format(order="a, c, b"), **constants)
    outcome = check(FoldConstants(), model)
    assert "more than one size" in reasons(outcome)
    model = model_from_text(
        """g (float[N,3,5] x) => (float[3,A,5] y) {
        s = Shape (x) a = Gather (s, i) d = Concat <axis = 0> (t, a, f) y = Reshape (x, d) }""",
        i=np.array([0]),
        t=np.array([3]),
        f=np.array([5]),
    )
    check(FoldConstants(), model)
    assert op_types(model) == ["Reshape"]
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [3, -1, 5]


NOT_FOLDED = {
    "random": ("r = RandomNormal <shape = [4]> () y = Add (x, r)", {}, "random"),
    "weights in 8 bits": (
        "r = DequantizeLinear (q, s) y = Add (x, r)",
        {"q": np.arange(4, dtype=np.int8), "s": np.float32(0.1)},
        "fewer bits",
    ),
    "larger than its inputs": (
        "r = Expand (c, s) t = MatMul (x, r) y = MatMul (t, r)",
        {"c": np.float32(1), "s": np.array([4, 4])},
        "bigger",
    ),
    "half precision weights stored for size": (
        "r = Cast <to = 1> (c) a = MatMul (x, r) b = Transpose (r) y = MatMul (a, b)",
        {"c": np.ones((4, 4), np.float16)},
        "bigger",
    ),
    "integer division by zero": (
        "r = Div (a, b) t = Cast <to = 1> (r) y = Add (x, t)",
        {"a": np.ones(4, np.int32), "b": np.zeros(4, np.int32)},
        "divides",
    ),
    "smallest integer by minus one": (
        "r = Mod (a, b) t = Cast <to = 1> (r) y = Add (x, t)",
        {"a": np.full(4, -(2**31), np.int32), "b": np.full(4, -1, np.int32)},
        "divides",
    ),
    "inner graphs": (
        """r = If (c) <then_branch = a () => (float t) { t = Constant <value_float = 1.0> () },
               else_branch = b () => (float e) { e = Constant <value_float = 2.0> () }>
           y = Add (x, r)""",
        {"c": np.array(True)},
        "inner graphs",
    ),
}


@pytest.mark.parametrize("case", NOT_FOLDED)
def test_what_is_not_folded_and_why(case: str) -> None:
    body, constants, reason = NOT_FOLDED[case]
    model = model_from_text(f"g (float[4] x) => (float[4] y) {{ {body} }}", **constants)
    outcome = apply(FoldConstants(), model)
    assert not outcome.modified
    assert reason in reasons(outcome)


def test_a_large_step_on_the_way_to_a_small_result() -> None:
    model = model_from_text(
        "g (float[4] x) => (float[4] y) { r = Expand (c, s) t = ReduceSum (r) y = Add (x, t) }",
        c=np.float32(1),
        s=np.array([64, 64]),
    )
    check(FoldConstants(), model)
    assert op_types(model) == ["Add"]


def test_what_is_before_a_result_that_is_too_large() -> None:
    model = model_from_text(
        "g (float[64,64] x) => (float[64,64] y) "
        "{ a = Exp (c) b = Neg (a) r = Expand (b, s) y = Add (x, r) z = Mul (y, r) }",
        c=np.float32(1),
        s=np.array([64, 64]),
    )
    outcome = apply(FoldConstants(), model)
    assert op_types(model) == ["Expand", "Add", "Mul"]
    assert "bigger" in reasons(outcome)


def test_results_that_are_no_numbers_stay_what_they_are() -> None:
    model = model_from_text(
        "g (float[3] x) => (float[3] y) { r = Div (a, b) y = Add (x, r) }",
        a=np.array([0, 1, -1], np.float32),
        b=np.zeros(3, np.float32),
    )
    check(FoldConstants(), model)
    assert op_types(model) == ["Add"]


GROWING = "g (float[1024] x) => (float[1024] y) { r = Expand (c, s) y = Add (x, r) }"


@pytest.mark.parametrize(
    ("largest", "growth", "folds"),
    [(1 << 20, 8192, True), (1024, 8192, False), (1 << 20, 0, False)],
)
def test_growth_is_allowed_on_request(largest: int, growth: int, folds: bool) -> None:
    model = model_from_text(GROWING, c=np.float32(1), s=np.array([1024]))
    outcome = FoldConstants(largest=largest, growth=growth).apply(model, context())
    assert op_types(model) == (["Add"] if folds else ["Expand", "Add"])
    assert folds or "bytes" in reasons(outcome) or "bigger" in reasons(outcome)


def test_a_large_weight_folds_when_the_file_does_not_grow() -> None:
    model = model_from_text(
        "g (float[2,600] x) => (float[2,600] y) { a = Transpose (w) y = MatMul (x, a) }",
        w=np.zeros((600, 600), np.float32),
    )
    assert model.graph.initializers["w"].const_value.nbytes > 1 << 20
    check(FoldConstants(), model)
    assert op_types(model) == ["MatMul"]


def test_two_transposes_of_one_weight_would_store_it_twice() -> None:
    model = model_from_text(
        """g (float[2,64] x) => (float[2,64] y) {
            a = Transpose (w) b = MatMul (x, a) c = Transpose <perm = [1, 0]> (w)
            d = MatMul (b, c) e = MatMul (d, w) y = Relu (e) }""",
        w=np.ones((64, 64), np.float32),
    )
    outcome = apply(FoldConstants(), model)
    assert not outcome.modified
    assert "bigger" in reasons(outcome)


def test_one_transpose_of_a_weight() -> None:
    model = model_from_text(
        "g (float[2,8] x) => (float[2,4] y) { a = Transpose (w) y = MatMul (x, a) }",
        w=np.arange(32, dtype=np.float32).reshape(4, 8),
    )
    check(FoldConstants(), model)
    assert op_types(model) == ["MatMul"]


def test_node_that_onnxruntime_refuses_does_not_stop_the_others() -> None:
    model = model_from_text(
        """g (float[4] x) => (float[4] y) {
            a = Add (o, o) r = Gather (p, i) s = Add (r, q) b = Add (x, a) y = Add (b, s) }""",
        o=np.ones(4, np.float32),
        p=np.ones(4, np.float32),
        q=np.ones(4, np.float32),
        i=np.array(9),
    )
    outcome = FoldConstants().apply(model, Context(services=InProcess()))
    assert "Gather" in op_types(model)
    assert "onnxruntime cannot compute it" in reasons(outcome)
    assert outcome.counts["nodes_folded"] == 1


def test_without_services_nothing_is_run() -> None:
    model = model_from_text(
        "g (float[4] x) => (float[4] y) { c = Add (a, a) y = Add (x, c) }",
        a=np.ones(4, np.float32),
    )
    outcome = FoldConstants().apply(model, Context())
    assert not outcome.modified
    assert "nothing can run it" in reasons(outcome)


def test_limit_of_one_constant() -> None:
    model = model_from_text(
        "g (float[640] x) => (float[640] y) { c = Expand (a, s) y = Add (x, c) }",
        a=np.ones(1, np.float32),
        s=np.array([640]),
    )
    settings = RunSettings(limits=Limits(fold_bytes=100))
    outcome = FoldConstants().apply(model, Context(services=InProcess(), settings=settings))
    assert not outcome.modified
    assert "larger than 100 bytes" in reasons(outcome)


def test_public_result_becomes_a_constant_node() -> None:
    model = model_from_text(
        "g (float[64] x) => (float[64] y, float[64] z) "
        "{ y = Relu (x) a = Add (c, c) z = Add (a, d) }",
        c=np.ones(64, np.float32),
        d=np.ones(64, np.float32),
    )
    check(FoldConstants(), model)
    assert sorted(op_types(model)) == ["Constant", "Relu"]
    assert [value.name for value in model.graph.outputs] == ["y", "z"]


def test_functions_get_constant_nodes() -> None:
    model = model_from_text(
        """<ir_version: 8, opset_import: ["" : 17, "l" : 1]>
        g (float[4] x) => (float[4] y) { y = l.f (x) }
        <domain: "l", opset_import: ["" : 17]>
        f (a) => (d) { b = Constant <value = float[2] {1.0, 2.0}> ()
            c = Constant <value = float[2] {3.0, 4.0}> () e = Add (b, c)
            h = ReduceSum <keepdims = 0> (e) d = Add (a, h) }"""
    )
    check(FoldConstants(), model)
    (function,) = model.functions.values()
    assert [node.op_type for node in function] == ["Constant", "Add"]


def test_failing_services_are_named() -> None:
    class Broken(InProcess):
        def run(self, model: ir.Model, feeds: object, outputs: object = None) -> list[dict]:
            raise ModelError("the child process died")

    model = model_from_text(
        "g (float[4] x) => (float[4] y) { c = Add (a, a) y = Add (x, c) }",
        a=np.ones(4, np.float32),
    )
    outcome = FoldConstants().apply(model, Context(services=Broken()))
    assert not outcome.modified
    assert "the child process died" in reasons(outcome)
