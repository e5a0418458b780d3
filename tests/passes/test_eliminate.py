"""``eliminate`` from ONNX text: what goes, what stays, and which names survive."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from exact import check
from support import model_from_text, op_types

from converter.core.context import Context
from passes import Eliminate


def run(text: str, opset: int = 17, **constants: np.ndarray) -> tuple[ir.Model, dict[str, float]]:
    model = model_from_text(text, opset=opset, **constants)
    outcome = check(Eliminate(), model)
    return model, dict(outcome.counts)


I64 = np.int64

REMOVED = {
    "identity": ("y = Identity (t)", {}, "identities_removed"),
    "identity chain": ("a = Identity (t) b = Identity (a) y = Identity (b)", {}, None),
    "cast to the same type": ("y = Cast <to = 1> (t)", {}, "casts_removed"),
    "cast to the type of another": ("s = Sigmoid (t) y = CastLike (t, s)", {}, "casts_removed"),
    "transpose without effect": ("y = Transpose <perm = [0, 1, 2]> (t)", {}, "transposes_removed"),
    "two transposes": (
        "a = Transpose <perm = [2, 0, 1]> (t) y = Transpose <perm = [1, 2, 0]> (a)",
        {},
        "transposes_removed",
    ),
    "reshape to its own shape": ("y = Reshape (t, s)", {"s": np.array([0, 4, -1])}, None),
    "reshape to static shape": ("y = Reshape (t, s)", {"s": np.array([-1, 4, 6])}, None),
    "shape of itself": ("s = Shape (t) y = Reshape (t, s)", {}, "reshapes_removed"),
    "shape of an equally large value": ("r = Abs (t) s = Shape (r) y = Reshape (t, s)", {}, None),
    "unsqueeze and squeeze": (
        "a = Unsqueeze (t, k) y = Squeeze (a, k)",
        {"k": np.array([1])},
        "reshapes_removed",
    ),
    "reshape there and back": (
        "a = Reshape (t, p) s = Shape (t) y = Reshape (a, s)",
        {"p": np.array([0, -1])},
        "reshapes_removed",
    ),
    "expand to its own shape": ("y = Expand (t, s)", {"s": np.array([1, 1])}, "expands_removed"),
    "dropout": ("y = Dropout (t)", {}, "dropouts_removed"),
    "pad by nothing": ("y = Pad (t, p)", {"p": np.zeros(6, I64)}, "pads_removed"),
    "concat of one": ("y = Concat <axis = 0> (t)", {}, "concats_removed"),
    "slice of everything": (
        "y = Slice (t, b, e, ax)",
        {"b": np.array([0, 0]), "e": np.array([4, 2**63 - 1]), "ax": np.array([1, 0])},
        "slices_removed",
    ),
    "times one": ("y = Mul (t, c)", {"c": np.float32(1)}, "arithmetic_removed"),
    "one times": ("y = Mul (c, t)", {"c": np.ones((1, 1), np.float32)}, "arithmetic_removed"),
    "divided by one": ("y = Div (t, c)", {"c": np.float32(1)}, "arithmetic_removed"),
    "minus zero": ("y = Sub (t, c)", {"c": np.float32(0)}, "arithmetic_removed"),
    "plus negative zero": ("y = Add (t, c)", {"c": np.float32(-0.0)}, "arithmetic_removed"),
}


@pytest.mark.parametrize("case", REMOVED)
def test_removes_what_changes_nothing(case: str) -> None:
    body, constants, count = REMOVED[case]
    text = f"g (float[N,4,6] x) => (float[?,?,?] y) {{ t = Relu (x) {body} }}"
    text = text.replace("float[?,?,?] y", "float[N,4,6] y")
    model, counts = run(text, **{k: np.asarray(v) for k, v in constants.items()})
    assert op_types(model) == ["Relu"]
    assert count is None or counts[count] >= 1
    assert not model.graph.initializers


KEPT = {
    "plus zero turns -0.0 into 0.0": ("y = Add (t, c)", {"c": np.float32(0)}, ["Relu", "Add"]),
    "one of a higher rank": (
        "y = Mul (t, c)",
        {"c": np.ones((1, 1, 1, 1), np.float32)},
        ["Relu", "Mul"],
    ),
    "cast to another type and back": (
        "a = Cast <to = 10> (t) y = Cast <to = 1> (a)",
        {},
        ["Relu", "Cast", "Cast"],
    ),
    "reshape to another shape": (
        "y = Reshape (t, s)",
        {"s": np.array([0, 2, 12])},
        ["Relu", "Reshape"],
    ),
    "slice of a part": (
        "y = Slice (t, b, e, ax)",
        {"b": np.array([0]), "e": np.array([3]), "ax": np.array([1])},
        ["Relu", "Slice"],
    ),
    "slice that reverses": (
        "y = Slice (t, b, e, ax, st)",
        {"b": [-1], "e": [-(2**63)], "ax": [1], "st": [-1]},
        ["Relu", "Slice"],
    ),
    "used mask of dropout": (
        "a, m = Dropout (t) b = Cast <to = 1> (m) y = Add (a, b)",
        {},
        ["Relu", "Dropout", "Cast", "Add"],
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_keeps_what_has_an_effect(case: str) -> None:
    body, constants, expected = KEPT[case]
    text = f"g (float[N,4,6] x) => (float y) {{ t = Relu (x) {body} }}"
    model = model_from_text(text, **{k: np.asarray(v) for k, v in constants.items()})
    model.graph.outputs[0].shape = None
    check(Eliminate(), model)
    assert op_types(model) == expected


def test_the_declared_shape_of_a_value_is_no_evidence() -> None:
    model = model_from_text(
        "g (float[N,4] x, int64[2] s) => (float[A,B] y) <float[2,4] t> "
        "{ t = Reshape (x, s) y = Reshape (t, k) }",
        k=np.array([2, 4]),
    )
    Eliminate().apply(model, Context())
    assert op_types(model) == ["Reshape"]  # of x, straight to the last target


def test_equal_names_of_dimensions_are_no_evidence() -> None:
    text = "g (float[N,4] x, float[N,4] z) => (float[A,B] y) { s = Shape (z) y = Reshape (x, s) }"
    model, _ = run(text)
    assert op_types(model) == ["Shape", "Reshape"]


def test_merges_transposes_into_one() -> None:
    model, _ = run(
        "g (float[2,3,4] x) => (float[3,4,2] y) "
        "{ a = Transpose <perm = [2, 1, 0]> (x) y = Transpose <perm = [1, 0, 2]> (a) }"
    )
    assert op_types(model) == ["Transpose"]
    assert tuple(model.graph[0].attributes["perm"].as_ints()) == (1, 2, 0)


def test_dead_nodes_go_and_their_constants_with_them() -> None:
    model, counts = run(
        "g (float[2,3] x) => (float[2,3] y) "
        "{ y = Relu (x) a = Add (x, c) b = Mul (a, a) d = RandomNormal <shape = [2]> () }",
        c=np.ones(3, np.float32),
    )
    assert op_types(model) == ["Relu"]
    assert counts["dead_nodes_removed"] == 3
    assert not model.graph.initializers


def test_unknown_operators_may_have_effects() -> None:
    model = model_from_text(
        '<ir_version: 8, opset_import: ["" : 17, "acme" : 1]> '
        "g (float[2,3] x) => (float[2,3] y) { a = Abs (x) b = acme.Log (a) y = Relu (x) }"
    )
    assert not Eliminate().apply(model, Context()).modified


def test_names_of_outputs_survive() -> None:
    model, _ = run(
        "g (float[2,3] x) => (float[2,3] y1, float[2,3] y2, float[2,3] y3) "
        "{ t = Relu (x) y1 = Identity (t) y2 = Identity (t) y3 = Identity (x) }"
    )
    assert op_types(model) == ["Relu", "Identity", "Identity"]
    assert [value.name for value in model.graph.outputs] == ["y1", "y2", "y3"]


def test_outputs_of_a_scan_body_stay_apart() -> None:
    model, _ = run(
        """g (float[2] s0, float[3,2] xs) => (float[2] last, float[3,2] all) {
            last, all = Scan <num_scan_inputs = 1, body = b (float[2] s, float[2] v)
                => (float[2] s2, float[2] o) { s2 = Add (s, v) o = Identity (s2) }> (s0, xs)
        }"""
    )
    body = model.graph[0].attributes["body"].as_graph()
    assert len({value.name for value in body.outputs}) == 2
    assert [node.op_type for node in body] == ["Add", "Identity"]


def test_a_branch_keeps_a_node_for_a_captured_value() -> None:
    model, _ = run(
        """g (float[2] x, bool f) => (float[2] y) {
            h = Relu (x)
            y = If (f) <then_branch = a () => (float[2] t) { t = Identity (h) },
                        else_branch = b () => (float[2] e) { i = Identity (h) e = Neg (i) }>
        }"""
    )
    branches = [model.graph[1].attributes[n].as_graph() for n in ("then_branch", "else_branch")]
    assert [[node.op_type for node in graph] for graph in branches] == [["Identity"], ["Neg"]]


def test_a_name_with_two_meanings_is_not_moved_into() -> None:
    model = model_from_text(
        """g (float[2] x, bool f) => (float[2] y) {
            h = Relu (x)
            i = Identity (h)
            y = If (f) <then_branch = a () => (float[2] t) { t = Neg (i) },
                        else_branch = b () => (float[2] e) { e = Abs (i) }>
        }"""
    )
    inner = model.graph[2].attributes["then_branch"].as_graph()
    inner[0].outputs[0].name = "h"  # shadows the outer value, as some exporters do
    Eliminate().apply(model, Context())
    assert op_types(model) == ["Relu", "Identity", "If"]


def test_functions_are_cleaned_and_unused_ones_removed() -> None:
    model, counts = run(
        """<ir_version: 8, opset_import: ["" : 17, "l" : 1]>
        g (float[N,4] x) => (float[N,4] y) { y = l.f (x) }
        <domain: "l", opset_import: ["" : 17]> f (a) => (d) { b = Identity (a) d = Abs (b) }
        <domain: "l", opset_import: ["" : 17]> unused (a) => (d) { d = Abs (a) }"""
    )
    assert [f.name for f in model.functions.values()] == ["f"]
    assert counts["functions_removed"] == counts["identities_removed"] == 1


def test_public_and_overridable_things_stay() -> None:
    model, _ = run(
        "g (float[2] x, float[2] w, float[3] unused) => (float[2] y) { y = Mul (x, w) }",
        w=np.ones(2, np.float32),
    )
    assert [value.name for value in model.graph.inputs] == ["x", "w", "unused"]
    assert "w" in model.graph.initializers


def test_selection() -> None:
    text = "g (float[2] x) => (float[2] y) { a = Identity (x) b = Identity (a) y = Relu (b) }"
    model = model_from_text(text)
    check(Eliminate(exclude=("a",)), model)
    assert op_types(model) == ["Identity", "Relu"]
    model = model_from_text(text)
    check(Eliminate(include=("op:Relu",)), model)
    assert op_types(model) == ["Identity", "Identity", "Relu"]


def test_says_why_an_identity_stays() -> None:
    model = model_from_text("g (float[2] x) => (float[2] y) { y = Identity (x) }")
    (skip,) = check(Eliminate(), model).skipped
    assert "public" in skip.reason


@pytest.mark.parametrize("side", ["include", "exclude"])
def test_a_choice_that_matches_nothing_is_told(side: str) -> None:
    model = model_from_text("g (float[2] x) => (float[2] y) { t = Identity (x) y = Relu (t) }")
    outcome = Eliminate(**{side: ("op:Rleu", "t")}).apply(model, Context())
    assert ("op:Rleu", "matches no node") in [(s.subject, s.reason) for s in outcome.skipped]
    assert not any(skip.subject == "t" for skip in outcome.skipped)
    assert op_types(model) == (["Relu"] if side == "include" else ["Identity", "Relu"])
