"""Targets, types of activations, and integer operators written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from samples import context_for, feeds_for
from support import model_from_text, run

from converter.core.contract import Outcome
from converter.errors import ParameterError
from converter.ops.targets import TARGETS
from passes.affine.rules import ACTIVATIONS
from passes.quantize import Quantize

NET = """g (float[N,3,12,12] x) => (float[N,5] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)
    s = Add (c, r)
    t = Relu (s)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (t)
    l = LeakyRelu <alpha = 0.1> (p)
    d = Conv (l, w3)
    e = Concat <axis = 1> (l, d)
    q = GlobalAveragePool (e)
    f = Flatten (q)
    z = Gemm <transB = 1> (f, w4, b4)
    y = Softmax (z)
}"""


def net(opset: int = 17) -> ir.Model:
    rng = np.random.default_rng(3)
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (4, 8, 1, 1), "w4": (5, 12)}
    constants = {n: (rng.standard_normal(s) / 4).astype(np.float32) for n, s in shapes.items()}
    for name, size in (("b1", 8), ("b2", 8), ("b4", 5)):
        constants[name] = (rng.standard_normal(size) / 8).astype(np.float32)
    return model_from_text(NET, opset=opset, **constants)


def quantized(model: ir.Model, **parameters: Any) -> Outcome:
    settings = {"method": "minmax", "speed": "max", **parameters}
    outcome = Quantize(**settings).apply(model, context_for(model, feeds_for(net(), 8)))
    onnx.checker.check_model(ir.to_proto(model))
    return outcome


def error(model: ir.Model) -> float:
    worst = 0.0
    for feed in feeds_for(net(), 3):
        worst = max(worst, float(np.abs(run(model, feed)["y"] - run(net(), feed)["y"]).max()))
    return worst


def zero_points(model: ir.Model) -> dict[str, np.ndarray]:
    """Zero points of activations by the value that is rounded."""
    found = {}
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            tensor = node.inputs[2].const_value
            found[node.inputs[0].name] = tensor.numpy()
    return found


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize("kind", ["auto", *ACTIVATIONS])
def test_every_target_gives_a_file_that_runs(target: str, kind: str) -> None:
    if kind not in {"auto", *TARGETS[target].activations}:
        with pytest.raises(ParameterError, match="takes no") as caught:
            Quantize(target=target, activations=kind)
        assert caught.value.allowed == ", ".join(TARGETS[target].activations)
        return
    model = net()
    outcome = quantized(model, target=target, activations=kind)
    wanted = TARGETS[target].activations[0] if kind == "auto" else kind
    types = {str(zero.dtype) for zero in zero_points(model).values()}
    assert types == {wanted}
    # Shares of five classes: 8 bits per value keep two digits, 16 bits are limited by the weights.
    assert 0 < error(model) < 0.03
    assert bool(outcome.notes[:-1]) == (target != "ort-cpu" or wanted != "uint8")
    if "16" in wanted:
        assert model.graph.opset_imports[""] == 21


def test_sixteen_bits_are_more_exact() -> None:
    errors = []
    for kind in ("uint8", "uint16", "int16"):
        model = net()
        quantized(model, activations=kind)
        errors.append(error(model))
    assert errors[1] < errors[0]
    assert errors[2] < errors[0]


def test_sixteen_bits_need_a_new_opset() -> None:
    model = net()
    context = context_for(model, feeds_for(model, 4), keep_opset=True)
    outcome = Quantize(method="minmax", activations="uint16").apply(model, context)
    assert not outcome.modified
    assert any("was to be kept" in note for note in outcome.notes)


@pytest.mark.parametrize("target", ["tensorrt", "ort-cuda"])
def test_tensorrt_rounds_inputs_of_products_around_zero(target: str) -> None:
    model = net()
    quantized(model, target=target)
    found = zero_points(model)
    assert set(found) == {"x", "r", "l", "f"}
    assert all(zero == 0 for zero in found.values())
    operators = [node.op_type for node in model.graph]
    assert operators.count("Relu") == 2
    add = next(node for node in model.graph if node.op_type == "Add")
    makers = [value.producer().op_type for value in add.inputs]
    assert makers == ["Conv", "DequantizeLinear"]
    biased = [node for node in model.graph if node.op_type == "Conv" and len(node.inputs) > 2]
    assert all(node.inputs[2].is_initializer() for node in biased)


def test_openvino_leaves_sums_to_its_compiler() -> None:
    model = net()
    quantized(model, target="openvino")
    add = next(node for node in model.graph if node.op_type == "Add")
    assert [value.producer().op_type for value in add.inputs] == ["Conv", "Relu"]
    assert {str(z.dtype) for z in zero_points(model).values()} == {"uint8"}


def test_qnn_keeps_everything_but_the_final_shares_on_integers() -> None:
    model = net()
    quantized(model, target="qnn")
    floats = []
    for node in model.graph:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        if any(
            v is not None and v.producer() and v.producer().op_type not in {"DequantizeLinear"}
            for v in node.inputs
            if v is not None and v.producer()
        ):
            floats.append(node.op_type)
    assert floats == []
    last = model.graph.outputs[0].producer()
    assert last.op_type == "Softmax"


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_integer_operators_give_the_same_bits(kind: str, per_channel: bool) -> None:
    results = []
    for form in ("qdq", "qoperator"):
        model = net()
        outcome = quantized(model, activations=kind, per_channel=per_channel, format=form)
        results.append([run(model, feed)["y"] for feed in feeds_for(net(), 3)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    operators = [node.op_type for node in model.graph]
    assert operators.count("QLinearConv") == 3
    for name in ("QLinearAdd", "QLinearLeakyRelu", "QLinearConcat", "QLinearGlobalAveragePool"):
        assert operators.count(name) == 1
    assert operators.count("QuantizeLinear") == 1
    assert not {"Conv", "Add", "Concat"} & set(operators)
    assert outcome.counts["integer_operators"] >= 8
    assert model.graph.opset_imports["com.microsoft"] == 1


def test_integer_operators_are_the_same_bytes_twice() -> None:
    made = []
    for _ in range(2):
        model = net()
        quantized(model, format="qoperator")
        made.append(ir.to_proto(model).SerializeToString(deterministic=True))
    assert made[0] == made[1]


def test_products_of_matrices_as_integer_operators() -> None:
    text = """g (float[3,8] x) => (float[3,6] y) {
        a = MatMul (x, w)
        s = Sigmoid (a)
        m = Mul (a, s)
        y = MatMul (m, v)
    }"""
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((8, 8)), "v": rng.standard_normal((8, 6))}
    given = {name: a.astype(np.float32) for name, a in constants.items()}
    results = []
    for form in ("qdq", "qoperator"):
        model = model_from_text(text, opset=17, **given)
        feeds = feeds_for(model, 4)
        settings: Any = {"method": "minmax", "speed": "max", "format": form}
        Quantize(**settings).apply(model, context_for(model, feeds))
        results.append(run(model, feeds[0])["y"])
    np.testing.assert_array_equal(*results)
    operators = {node.op_type for node in model.graph}
    assert {"QLinearMatMul", "QLinearSigmoid", "QLinearMul"} <= operators


def test_weights_only() -> None:
    model = net()
    outcome = quantized(model, activations="none")
    assert outcome.counts["weights_quantized"] >= 2
    assert not any(node.op_type == "QuantizeLinear" for node in model.graph)
    assert error(model) < 0.01
