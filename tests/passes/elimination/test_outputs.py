"""Outputs of inner graphs that nobody reads, and rules inside inner graphs and functions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from exact import check
from support import model_from_text, op_types

from passes import Eliminate


def inner(model: ir.Model, node: int, name: str) -> list[str]:
    return [n.op_type for n in model.graph[node].attributes[name].as_graph()]


def test_a_branch_output_that_nobody_reads() -> None:
    model = model_from_text(
        """g (float[4] x, bool f) => (float[4] y) {
            p, q, r = If (f) <
                then_branch = a () => (float[4] t1, float[4] t2, float[4] t3)
                    { t1 = Exp (x) t2 = Neg (x) t3 = Abs (x) },
                else_branch = b () => (float[4] e1, float[4] e2, float[4] e3)
                    { e1 = Log (x) e2 = Sin (x) e3 = Cos (x) }>
            y = Add (q, r) }"""
    )
    outcome = check(Eliminate(), model)
    assert outcome.counts["branch_outputs_removed"] == 1
    assert inner(model, 0, "then_branch") == ["Neg", "Abs"]
    assert inner(model, 0, "else_branch") == ["Sin", "Cos"]
    assert [value.name for value in model.graph[0].outputs] == ["q", "r"]


def test_a_public_branch_output_keeps_its_name_and_place() -> None:
    model = model_from_text(
        """g (float[4] x, bool f) => (float[4] q) {
            p, q = If (f) <
                then_branch = a () => (float[4] t1, float[4] t2) { t1 = Exp (x) t2 = Neg (x) },
                else_branch = b () => (float[4] e1, float[4] e2) { e1 = Log (x) e2 = Sin (x) }>
            }"""
    )
    check(Eliminate(), model)
    assert [value.name for value in model.graph.outputs] == ["q"]
    assert inner(model, 0, "then_branch") == ["Neg"]


LOOP = """g (float[4] x, int64 m, float[4] d) => (float[4] y{more}) {{
    c = Constant <value = bool {{1}}> ()
    y, idle, all, spare = Loop (m, c, x, d) <body = b (int64 i, bool k, float[4] s, float[4] u)
        => (bool k2, float[4] s2, float[4] u2, float[4] o, float[4] w)
        {{ k2 = Identity (k) s2 = Add (s, {used}) u2 = Neg (u) o = Exp (s) w = Abs (s) }}> }}"""


def test_collected_and_idle_values_of_a_loop() -> None:
    model = model_from_text(LOOP.format(more="", used="x"))
    check(Eliminate(), model)
    loop = model.graph[1]
    assert len(loop.outputs) == 1
    assert len(loop.inputs) == 3
    assert inner(model, 1, "body") == ["Identity", "Add"]


def test_a_carried_value_that_others_need_stays() -> None:
    model = model_from_text(LOOP.format(more=", float[A,4] all", used="u"))
    check(Eliminate(), model)
    assert [value.name for value in model.graph[1].outputs] == ["y", "idle", "all"]
    assert inner(model, 1, "body") == ["Identity", "Add", "Neg", "Exp"]


def test_collected_values_of_a_scan() -> None:
    model = model_from_text(
        """g (float[2] s0, float[3,2] xs) => (float[2] last, float[3,2] b) {
            last, a, b = Scan <num_scan_inputs = 1, scan_output_directions = [0, 1],
                body = g2 (float[2] s, float[2] v) => (float[2] s2, float[2] o, float[2] w)
                { s2 = Add (s, v) o = Exp (v) w = Neg (v) }> (s0, xs) }"""
    )
    check(Eliminate(), model)
    assert inner(model, 0, "body") == ["Add", "Neg"]
    assert tuple(model.graph[0].attributes["scan_output_directions"].as_ints()) == (1,)


def test_rules_hold_in_branches_with_captured_values() -> None:
    model = model_from_text(
        """g (float[4,6] x, bool f) => (float y) {
            h = Transpose <perm = [1, 0]> (x)
            y = If (f) <then_branch = a () => (float t) { u = Transpose <perm = [1, 0]> (h)
                                                          v = Neg (u) t = Neg (v) },
                        else_branch = b () => (float e) { w = Relu (h) z = Relu (w)
                                                          e = Transpose <perm = [1, 0]> (z) }>
        }"""
    )
    model.graph.outputs[0].shape = None
    for name in ("then_branch", "else_branch"):
        model.graph[1].attributes[name].as_graph().outputs[0].shape = None
    check(Eliminate(), model)
    assert inner(model, 1, "then_branch") == ["Transpose"]
    assert inner(model, 1, "else_branch") == ["Relu", "Transpose"]


def test_rules_hold_in_functions_but_not_for_attributes_to_be_given() -> None:
    model = model_from_text(
        """<ir_version: 8, opset_import: ["" : 17, "l" : 1]>
        g (float[N,4] x) => (float[N,4] y) { y = l.f <p = [1, 0]> (x) }
        <domain: "l", opset_import: ["" : 17]> f <p> (a) => (d)
        { b = Neg (a) c = Neg (b) e = Transpose <perm: ints = @p> (c)
          h = Transpose <perm: ints = @p> (e) i = Relu (h) d = Relu (i) }"""
    )
    check(Eliminate(), model)
    (function,) = model.functions.values()
    assert [node.op_type for node in function] == ["Transpose", "Transpose", "Relu"]


def test_a_new_node_keeps_the_notes_of_the_old_one() -> None:
    model = model_from_text(
        "g (float[N,4,6] x) => (float[N,4,6] y) { a = Relu (x) b = Clip (a, l, h) y = Neg (b) }",
        l=np.float32(0),
        h=np.float32(6),
    )
    model.graph[1].name = "limit"
    model.graph[1].doc_string = "why"
    model.graph[1].metadata_props["from"] = "an exporter"
    check(Eliminate(), model)
    assert op_types(model) == ["Clip", "Neg"]
    clip = model.graph[0]
    assert (clip.name, clip.doc_string) == ("limit", "why")
    assert clip.metadata_props["from"] == "an exporter"
