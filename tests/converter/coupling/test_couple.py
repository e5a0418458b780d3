"""Whole models: components, units, what is frozen and why, and what is said about it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from support import model_from_text

from converter.core.context import Batch, Context
from converter.core.select import Selection
from converter.coupling.couple import couple
from converter.coupling.describe import describe, explain
from converter.coupling.shapes import observe_shapes
from converter.coupling.structure import Coupling

Array = np.ndarray[Any, Any]


def weights(**shapes: tuple[int, ...]) -> dict[str, Array]:
    source = np.random.default_rng(0)
    return {name: source.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def build(body: str, ports: str = "(float[2,5,6] x) => (float y)", **arrays: Any) -> ir.Model:
    made = {
        name: weights(**{name: given})[name] if isinstance(given, tuple) else np.asarray(given)
        for name, given in arrays.items()
    }
    model = model_from_text(f"g {ports} {{ {body} }}", opset=17, **made)
    for number, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{number}"
    for output in model.graph.outputs:
        output.shape = None
    return model


def coupled(model: ir.Model, **settings: Any) -> Coupling:
    return couple(model, observe_shapes(model, Context()), **settings)


def sizes(coupling: Coupling) -> list[tuple[str, int]]:
    return [(component.unit, len(component.atoms)) for component in coupling.components]


HEADS = """
    q = MatMul(x, Q) k = MatMul(x, K) v = MatMul(x, V)
    q4 = Reshape(q, split) k4 = Reshape(k, split) v4 = Reshape(v, split)
    qt = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,3,1]>(k4)
    vt = Transpose<perm=[0,2,1,3]>(v4) s = MatMul(qt, kt) d = Mul(s, scale) p = Softmax(d)
    a = MatMul(p, vt) t = Transpose<perm=[0,2,1,3]>(a) m = Reshape(t, merge) o = MatMul(m, O)
    r = Add(o, x) f = MatMul(r, F) e = Relu(f) y = MatMul(e, G)
"""


def attention() -> ir.Model:
    return build(
        HEADS,
        Q=(6, 12),
        K=(6, 12),
        V=(6, 12),
        O=(12, 6),
        F=(6, 9),
        G=(9, 4),
        split=np.array([0, 0, 3, 4]),
        merge=np.array([0, 0, 12]),
        scale=np.float32(0.5),
    )


def test_heads_or_their_dimensions() -> None:
    model = attention()
    assert sizes(coupled(model)) == [("head", 3), ("channel", 9)]
    assert sizes(coupled(model, units="heads")) == [("head", 3)]
    dims = coupled(model, units="channels")
    assert sizes(dims) == [("channel", 4), ("channel", 4), ("channel", 9)]
    assert [sink.kind for sink in dims.components[0].sinks] == ["product"]


def test_figures_of_a_component_are_what_its_atoms_cost() -> None:
    coupling = coupled(attention())
    macs, parameters = coupling.macs(), coupling.parameters()
    tokens = 2 * 5
    products = tokens * (3 * 6 * 12 + 12 * 6 + 6 * 9 + 9 * 4)
    assert macs == products + 2 * 3 * (5 * 5 * 4) * 2
    assert parameters == 4 * 72 + 54 + 36 + 1
    for component in coupling.components:
        alive = coupling.all_alive()
        alive[component.atoms[1]] = False
        assert macs - coupling.macs(alive) == component.macs > 0
        assert parameters - coupling.parameters(alive) == component.parameters > 0


def test_a_clone_has_the_same_atoms() -> None:
    model = attention()
    shapes = observe_shapes(model, Context())
    first, second = couple(model, shapes), couple(model.clone(), shapes)
    assert first.size == second.size
    for a, b in zip(first.components, second.components, strict=True):
        assert (a.name, a.unit, a.macs, a.parameters) == (b.name, b.unit, b.macs, b.parameters)
        assert np.array_equal(a.atoms, b.atoms)
        assert [node.name for node, *_ in a.producers] == [node.name for node, *_ in b.producers]
    ours = {value.name: axes for value, axes in first.values.items()}
    theirs = {value.name: axes for value, axes in second.values.items()}
    assert ours.keys() == theirs.keys()
    for name, axes in ours.items():
        for one, other in zip(axes, theirs[name], strict=True):
            assert (one is None) == (other is None)
            assert one is None or np.array_equal(one, other)


def test_excluded_nodes_keep_what_they_make() -> None:
    coupling = coupled(attention(), frozen_nodes=("MatMul_17",))
    assert sizes(coupling) == [("head", 3)]
    assert ("MatMul_17", 9, "it is excluded") in [
        (freeze.subject, freeze.size, freeze.reason) for freeze in coupling.frozen
    ]


def test_two_stages_of_a_residual_stream() -> None:
    model = build(
        "a = MatMul(x, A) b = MatMul(a, B) r = Relu(b) c = MatMul(r, C) s = Add(a, c) "
        "d = MatMul(s, D) e = Add(s, d) y = MatMul(e, Y)",
        A=(6, 8),
        B=(8, 12),
        C=(12, 8),
        D=(8, 8),
        Y=(8, 3),
    )
    coupling = coupled(model)
    assert [(c.name, len(c.atoms)) for c in coupling.components] == [
        ("MatMul_0", 8),
        ("MatMul_1", 12),
    ]
    stream = coupling.components[0]
    assert sorted(node.name or "" for node, *_ in stream.producers) == [
        "MatMul_0",
        "MatMul_3",
        "MatMul_5",
    ]
    assert sorted(sink.node.name or "" for sink in stream.sinks) == [
        "MatMul_1",
        "MatMul_5",
        "MatMul_7",
    ]


def test_what_a_body_reads_stays() -> None:
    model = build(
        "a = MatMul(x, A) z = ReduceSum<keepdims=0>(x) c = Greater(z, nil) "
        "b = If(c) <then_branch = t () => (float u) { u = Relu(a) }, "
        "else_branch = e () => (float w) { w = Neg(a) }> y = MatMul(b, P)",
        A=(6, 8),
        P=(8, 3),
        nil=np.float32(0),
    )
    coupling = coupled(model)
    assert not coupling.components
    assert any("body" in freeze.reason for freeze in coupling.frozen)


def test_weights_that_callers_may_override_stay() -> None:
    model = build(
        "h = MatMul(x, A) y = MatMul(h, P)",
        "(float[2,5,6] x, float[6,8] A) => (float y)",
        P=(8, 3),
    )
    (listed,) = [value for value in model.graph.inputs if value.name == "A"]
    listed.const_value = ir.tensor(weights(A=(6, 8))["A"], name="A")
    model.graph.register_initializer(listed)
    coupling = coupled(model)
    assert not coupling.components
    assert any("override" in freeze.reason for freeze in coupling.frozen)


def test_weights_that_are_an_output_stay() -> None:
    model = build("h = MatMul(x, A) y = MatMul(h, P)", A=(6, 8), P=(8, 3))
    model.graph.outputs.append(model.graph.initializers["P"])
    coupling = coupled(model)
    assert not coupling.components
    assert any("output" in freeze.reason for freeze in coupling.frozen)


def test_operands_that_cannot_be() -> None:
    model = build("h = MatMul(x, A) g = Conv(h, K) y = MatMul(g, P)", A=(6, 8), K=(4,), P=(8, 3))
    shapes = {"x": (2, 5, 6), "h": (2, 5, 8), "g": (2, 5, 8), "y": (2, 5, 3)}
    coupling = couple(model, shapes)
    assert not coupling.components
    assert any("inputs of Conv do not fit" in freeze.reason for freeze in coupling.frozen)


def test_a_single_set_for_all_indices_stays() -> None:
    model = build(
        "h = Conv(x, K) d = DepthToSpace<blocksize=2>(h) y = Conv(d, Q)",
        "(float[1,3,8,8] x) => (float y)",
        K=(4, 3, 1, 1),
        Q=(5, 1, 1, 1),
    )
    coupling = coupled(model)
    assert not coupling.components
    assert any("together" in f.reason or "only index" in f.reason for f in coupling.frozen)


def test_description_and_answers() -> None:
    model = attention()
    shapes = observe_shapes(model, Context())
    coupling = couple(model, shapes)
    found = describe(model, coupling, Selection(("MatMul_17", "op:Softmax", "Add_16"))).to_dict()
    heads, hidden = found["components"]
    assert heads["unit"] == "head"
    assert heads["made_by"] == ("MatMul_0 (MatMul)", "MatMul_1 (MatMul)", "MatMul_2 (MatMul)")
    assert hidden["read_by"] == ("MatMul_19 (MatMul)",)
    assert 0 < hidden["macs"] < 1
    said = [answer["what"] for answer in found["answers"]]
    assert any("9 indices belong to MatMul_17 (9 channels" in what for what in said)
    assert any("3 indices belong to MatMul_0 (3 heads" in what for what in said)
    assert any("6 indices stay: it goes with something that stays at Add_16" in w for w in said)
    (last,) = explain(model, coupling, Selection(("MatMul_19",)))[-1:]
    assert "multiplied by weights" in last.what
    (nothing,) = describe(model, coupling, Selection(("nowhere",))).answers
    assert (nothing.subject, nothing.what) == ("nowhere", "matches no node")


class OneSample:
    samples, synthetic, description = 1, False, "a test"

    def __init__(self, array: Array) -> None:
        self._array = array

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Any:
        return iter([Batch({"x": self._array})])


def test_sizes_are_those_of_the_sample() -> None:
    model = build("a = MatMul(x, A) y = Relu(a)", "(float[N,T,6] x) => (float y)", A=(6, 8))
    sample = OneSample(np.zeros((3, 7, 6), np.float32))
    found = observe_shapes(model, Context(dataset=sample))  # type: ignore[arg-type]
    assert found["x"] == (3, 7, 6)
    assert found["a"] == found["y"] == (3, 7, 8)
    assert found["A"] == (6, 8)


def test_sizes_of_a_model_that_does_not_run() -> None:
    model = build("a = MatMul(x, A) b = Gather(a, far) y = Relu(b)", A=(6, 8), far=np.array([9]))
    found = observe_shapes(model, Context())
    assert found["a"] == (2, 5, 8)
    coupling = couple(model, {"x": (2, 5, 6)})
    assert not coupling.components


@pytest.mark.parametrize(
    "body", ["y = Relu(x)", "y = Identity(x)", "c = Shape(x) y = Cast<to=1>(c)"]
)
def test_models_without_weights(body: str) -> None:
    coupling = coupled(build(body))
    assert not coupling.components
    assert coupling.macs() == 0
    assert describe(build(body), coupling).components == ()
