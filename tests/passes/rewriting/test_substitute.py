"""Rules as data: counting nodes and bytes, names, scopes, reasons, and time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from exact import content, context, size
from placed import PLACES, Case, nodes, place
from support import model_from_text

from converter.core.contract import Outcome
from converter.core.select import Selection
from passes.rewriting.substitute import Found, New, Substitution
from passes.rewriting.work import Work


def swish(**fields: Any) -> Substitution:
    """x * Sigmoid(x) as Softplus(x): wrong, but easy to see."""
    made: dict[str, Any] = {
        "name": "joined",
        "patterns": ("Mul(x, Sigmoid(x))",),
        "rewrite": lambda found: New("Softplus", (found["x"],)),
    }
    return Substitution(**{**made, **fields})


def sweep(model: ir.Model, *rules: Substitution, exclude: tuple[str, ...] = ()) -> Outcome:
    work = Work(model, context(), Selection((), exclude))
    work.sweep([rule.rule() for rule in rules])
    return work.outcome()


def model_of(body: str, **constants: Any) -> ir.Model:
    made = {name: np.asarray(value, np.float32) for name, value in constants.items()}
    return model_from_text(f"g (float[N] x, float[N] z) => (float[N] y) {{ {body} }}", **made)


@pytest.mark.parametrize("where", PLACES)
def test_replaces_in_every_scope(where: str) -> None:
    model = place(Case("N,4", "s = Sigmoid (x) y = Mul (s, x)", []).model("float"), where)
    before = size(model)
    assert sweep(model, swish()).counts == {"joined": 1.0}
    assert nodes(model) == ["Softplus"]
    assert size(model) < before


def test_keeps_names_and_notes() -> None:
    model = model_of("s = Sigmoid (x) m = Mul (s, x) y = Neg (m)")
    root = model.graph[1]
    root.name, root.doc_string = "block/swish", "twice"
    root.metadata_props["layer"] = "7"
    sweep(model, swish())
    new = model.graph[0]
    assert (new.op_type, new.name, new.doc_string) == ("Softplus", "block/swish", "twice")
    assert new.metadata_props == {"layer": "7"}
    assert new.outputs[0].name == "m"


def test_a_public_output_keeps_its_name() -> None:
    model = model_of("s = Sigmoid (x) y = Mul (s, x)")
    sweep(model, swish())
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert [value.name for value in model.graph[0].outputs] == ["y"]


STAYS = {
    "used elsewhere": "s = Sigmoid (x) m = Mul (s, x) y = Add (m, s)",
    "more nodes": "s = Sigmoid (x) y = Mul (s, x)",
    "bigger": "s = Sigmoid (x) y = Mul (s, x)",
    "not today": "s = Sigmoid (x) y = Mul (s, x)",
    "needs opset 30": "s = Sigmoid (x) y = Mul (s, x)",
}


def _three(found: Found) -> New:
    one = New("Relu", (found["x"],))
    return New("Relu", (New("Relu", (one,)),))


CHANGES: dict[str, dict[str, Any]] = {
    "used elsewhere": {},
    "more nodes": {"rewrite": _three},
    "bigger": {"rewrite": lambda f: New("Add", (f["x"], np.zeros(100, np.float32)))},
    "not today": {"check": lambda _: "not today"},
    "needs opset 30": {"since": 30},
}


@pytest.mark.parametrize("reason", STAYS)
def test_says_why_it_stays(reason: str) -> None:
    model = model_of(STAYS[reason])
    before = content(model)
    outcome = sweep(model, swish(**CHANGES[reason]))
    assert not outcome.modified
    assert [reason in skip.reason for skip in outcome.skipped] == [True]
    assert content(model) == before


def test_a_check_may_say_that_it_is_nothing_of_the_kind() -> None:
    outcome = sweep(model_of("s = Sigmoid (x) y = Mul (s, x)"), swish(check=lambda _: ""))
    assert (outcome.modified, outcome.skipped) == (False, ())


def test_excluded_nodes_and_public_values_in_the_middle_stay() -> None:
    body = "s = Sigmoid (x) y = Mul (s, x)"
    assert not sweep(model_of(body), swish(), exclude=("op:Sigmoid",)).modified
    text = f"g (float[N] x) => (float[N] y, float[N] s) {{ {body} }}"
    assert not sweep(model_from_text(text), swish()).modified


def test_a_node_that_the_new_ones_read_cannot_go() -> None:
    rule = swish(
        patterns=("Add(Sigmoid(x), z)",), rewrite=lambda found: New("Mul", (found["x"], found["z"]))
    )
    outcome = sweep(model_of("s = Sigmoid (x) y = Add (s, s)"), rule)
    assert not outcome.modified
    assert ["needed by what" in skip.reason for skip in outcome.skipped] == [True]


def test_an_operator_that_the_model_defines_itself_stays() -> None:
    model = model_from_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N] x) => (float[N] y) { s = Sigmoid (x) y = Mul (s, x) }
        <domain: "", opset_import: ["" : 17]>
        Sigmoid (x) => (y) { y = Neg (x) }"""
    )
    outcome = sweep(model, swish())
    assert not outcome.modified


def test_an_attribute_of_the_call_stays() -> None:
    model = model_from_text(
        """<ir_version: 8, opset_import: ["" : 17, "l" : 1]>
        g (float[N,4] x) => (float[N,4] y) { y = l.f <a = 1> (x) }
        <domain: "l", opset_import: ["" : 17]>
        f <a> (x) => (y) { s = Softmax <axis: int = @a> (x) y = Mul (s, x) }"""
    )
    rule = swish(patterns=("Mul(x, Softmax(x))",))
    assert not sweep(model, rule).modified


def test_a_value_may_take_the_place() -> None:
    model = model_of("s = Neg (x) t = Neg (s) y = Relu (t)")
    rule = Substitution("doubled", ("Neg(Neg(x))",), lambda found: found["x"])
    assert sweep(model, rule).counts == {"doubled": 1.0}
    assert nodes(model) == ["Relu"]


def test_new_nodes_get_no_made_up_name() -> None:
    model = model_of("activated_values = Sigmoid (x) y = Mul (activated_values, x)")
    two = swish(rewrite=lambda found: New("Relu", (New("Neg", (found["x"],)),)))
    assert sweep(model, two).modified
    assert [node.name for node in model.graph] == ["", ""]


def test_constants_that_nobody_needs_pay_for_new_ones() -> None:
    model = model_of("s = Add (x, a) y = Add (s, b)", a=np.ones(50), b=np.ones(50))
    rule = Substitution(
        "added",
        ("Add(Add(x, A), B)",),
        lambda found: New("Add", (found["x"], found.array("A") + found.array("B"))),
    )
    assert sweep(model, rule).modified
    (name,) = model.graph.initializers
    assert name.startswith(("a", "b"))
    assert model.graph.initializers[name].const_value is not None


def test_time_grows_with_the_model_and_no_faster() -> None:
    def seconds(count: int) -> float:
        lines = [f"s{i} = Sigmoid (v{i}) v{i + 1} = Mul (v{i}, s{i})" for i in range(count)]
        model = model_of(f"v0 = Relu (x) {' '.join(lines)} y = Relu (v{count})")
        started = time.process_time()
        assert sweep(model, swish()).counts == {"joined": float(count)}
        return time.process_time() - started

    small = min(seconds(200) for _ in range(2))
    assert seconds(1600) < 24 * max(small, 0.005)  # linear would be 8 times
