"""The same graph in the main graph, in a branch of If, and in a model function."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from exact import apply, check, feed_for
from onnx import helper
from onnx.reference import ReferenceEvaluator
from support import model_from_text

from converter.core.contract import Outcome, Pass
from converter.core.graph import walk

PLACES = ("main", "branch", "function")
TYPES = {"float": np.float32, "float16": np.float16, "double": np.float64}
TOLERANCES = {"float": 5e-6, "float16": 1e-2, "double": 1e-12}
"""Share of the largest output; float16 keeps three digits and rounds after every node."""


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape) / 4


@dataclass
class Case:
    """A graph from x to y, and the operators that should remain."""

    shape: str
    body: str
    after: list[str]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    opset: int = 17
    # In a function nothing is known of the shapes, so some rules have nothing to go by.
    needs_shapes: bool = False

    def model(self, kind: str) -> ir.Model:
        text = f"g ({kind}[{self.shape}] x) => ({kind} y) {{ {self.body} }}"
        made = {name: np.asarray(a).astype(TYPES[kind]) for name, a in self.constants.items()}
        model = model_from_text(text, opset=self.opset, **made)
        model.graph.outputs[0].shape = None
        return model


def place(model: ir.Model, where: str) -> ir.Model:
    """Move the graph of a model with one input and one output."""
    proto = ir.to_proto(model)
    return ir.from_proto(
        {"main": lambda p: p, "branch": _branch, "function": _function}[where](proto)
    )


def check_typed(pass_: Pass, model: ir.Model, kind: str) -> Outcome:
    """Run the pass and compare outputs; convolutions in float64 are not known to onnxruntime."""
    if kind != "double" or not any("Conv" in node.op_type for node in walk(model)):
        return check(pass_, model, tolerance=TOLERANCES[kind])
    before = model.clone()
    outcome = apply(pass_, model)
    if any(node.op_type == "ConvTranspose" for node in walk(model)):
        return outcome  # the reference implementation knows it without groups only
    feed = feed_for(before, 0, 3)
    old, new = (ReferenceEvaluator(ir.to_proto(m)).run(None, feed) for m in (before, model))
    for one, other in zip(old, new, strict=True):
        assert one.dtype == other.dtype
        bound = TOLERANCES[kind] * max(1.0, float(np.abs(one).max()))
        np.testing.assert_allclose(other, one, rtol=0, atol=bound)
    return outcome


def nodes(model: ir.Model) -> list[str]:
    """Operator types of the graph that was moved, constants left aside."""
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for node in list(model.graph):
        graphs += [a.as_graph() for a in node.attributes.values() if a.name == "then_branch"]
    return [node.op_type for node in graphs[-1] if node.op_type != "Constant"]


def _branch(proto: onnx.ModelProto) -> onnx.ModelProto:
    graph = proto.graph
    name = graph.output[0].name
    then = helper.make_graph(list(graph.node), "then", [], list(graph.output))
    kind = graph.output[0].type.tensor_type.elem_type
    other = helper.make_tensor_value_info("other", kind, None)
    otherwise = helper.make_graph(
        [helper.make_node("Cast", [graph.input[0].name], ["other"], to=kind)], "else", [], [other]
    )
    node = helper.make_node(
        "If", ["cond"], [f"{name}_public"], then_branch=then, else_branch=otherwise
    )
    public = helper.make_tensor_value_info(f"{name}_public", kind, None)
    condition = helper.make_tensor("cond", onnx.TensorProto.BOOL, [], [True])
    feed = helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])
    main = helper.make_graph(
        [helper.make_node("Or", ["flag", "yes"], ["cond"]), node],
        "main",
        [*graph.input, feed],
        [public],
        [*graph.initializer, helper.make_tensor("yes", condition.data_type, [], [True])],
    )
    proto.graph.CopyFrom(main)
    return proto


def _function(proto: onnx.ModelProto) -> onnx.ModelProto:
    graph, (version,) = proto.graph, proto.opset_import
    weights = [helper.make_node("Constant", [], [t.name], value=t) for t in graph.initializer]
    inputs, outputs = [v.name for v in graph.input], [v.name for v in graph.output]
    function = helper.make_function(
        "local", "Body", inputs, outputs, [*weights, *graph.node], [version]
    )
    call = helper.make_node("Body", inputs, outputs, domain="local")
    main = helper.make_graph([call], "main", list(graph.input), list(graph.output))
    proto.graph.CopyFrom(main)
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    return proto
