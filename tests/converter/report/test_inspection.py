"""What inspection finds in small models."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from contract.models import MODELS
from support import model_from_text

from converter.report.inspection import TOP, inspect_model


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_can_be_inspected(name: str) -> None:
    found = inspect_model(MODELS[name]()).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["nodes"] == sum(found["operators"].values())


def test_interface_operators_and_weights() -> None:
    found = inspect_model(MODELS["conv_net"]())
    assert [(p.name, p.kind, p.dims) for p in found.inputs] == [
        ("x", "float", ("N", "3", "8", "8"))
    ]
    assert found.operators["Conv"] == 1
    assert found.opsets == {"ai.onnx": 17}
    assert found.parameters == 8 * 27 + 8 * 5 + 5 + 40
    assert found.by_type == {"float": (found.parameters, 4 * found.parameters)}
    assert [t.name for t in found.largest][:2] == ["w", "w2"]
    assert found.zeros == 0.0


def test_scopes_functions_and_domains() -> None:
    assert inspect_model(MODELS["subgraphs"]()).subgraphs == 2
    function = inspect_model(MODELS["function"]())
    assert function.functions == ("local::twice",)
    assert function.custom_domains == ()
    assert function.operators["local::twice"] == 1
    model = model_from_text(
        '<ir_version: 8, opset_import: ["" : 17, "acme" : 1]>'
        "g (float[2] x) => (float[2] y) { y = acme.Magic (x) }"
    )
    assert inspect_model(model).custom_domains == ("acme",)


def test_defaults_quantization_and_zeros() -> None:
    overridable = inspect_model(MODELS["overridable"]())
    assert [p.has_default for p in overridable.inputs] == [False, True, False]
    assert inspect_model(MODELS["already_quantized"]()).quantized_nodes == 3
    weights = np.zeros((16, 16), np.float32)
    weights[0] = 1
    model = model_from_text("g (float[N,16] x) => (float[N,16] y) { y = MatMul (x, w) }", w=weights)
    assert inspect_model(model).zeros == pytest.approx(15 / 16)


def test_strings_sequences_and_many_tensors() -> None:
    model = model_from_text("g (float[2] x) => (float[2] y) { y = Identity (x) }")
    for index in range(80 * TOP):
        tensor = ir.tensor(np.full(index + 1, index, np.float32), name=f"t{index}")
        model.graph.register_initializer(ir.Value(name=f"t{index}", const_value=tensor))
    strings = ir.StringTensor([b"a", b"bc"], name="words", shape=ir.Shape([2]))
    model.graph.register_initializer(ir.Value(name="words", const_value=strings))
    found = inspect_model(model)
    assert [t.name for t in found.largest] == [f"t{80 * TOP - 1 - i}" for i in range(TOP)]
    assert found.parameters == sum(range(1, 80 * TOP + 1))
    assert found.by_type["string"][0] == 2
