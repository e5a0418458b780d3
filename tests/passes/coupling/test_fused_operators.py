"""Every operator with a row of its own beside layers and movement: what can be cut, and the cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from fused_cases import ATTENTION, RECURRENT, Case, build, feed_of
from quantized_cases import OTHERS, QUANTIZED
from support import run

from converter.coupling.couple import couple
from converter.coupling.structure import Coupling
from passes.coupling.cut import cut
from passes.coupling.mask import mask

CASES = RECURRENT | ATTENTION | QUANTIZED | OTHERS


def shapes_of(case: Case, model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Return the sizes of all values: of a run, or as onnx infers them."""
    if not case.runs:
        found = onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True).graph
        values = [*found.input, *found.value_info, *found.output]
        return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
    probe = model.clone()
    del probe.graph.outputs[:]
    for node in list(probe.graph):
        for value in node.outputs:
            if value.name and value.dtype != ir.DataType.UNDEFINED and _is_tensor(node):
                size = ir.node("Shape", [value])
                size.outputs[0].name = f"size {value.name}"
                size.outputs[0].type = ir.TensorType(ir.DataType.INT64)
                probe.graph.append(size)
                probe.graph.outputs.append(size.outputs[0])
    feed = feed_of(case, model)
    sizes = run(probe, feed)
    found = {name.removeprefix("size "): tuple(map(int, size)) for name, size in sizes.items()}
    return found | {name: array.shape for name, array in feed.items()}


def _is_tensor(node: ir.Node) -> bool:
    return node.op_type != "SequenceConstruct"


def couple_case(case: Case) -> tuple[ir.Model, Coupling]:
    model = build(case)
    return model, couple(model, shapes_of(case, model), units=case.only)


def half(coupling: Coupling, seed: int = 3) -> np.ndarray[Any, Any]:
    """Remove half of the atoms of every component, as many of each block."""
    alive = coupling.all_alive()
    source = np.random.default_rng(seed)
    for component in coupling.components:
        blocks = (
            component.blocks if component.blocks is not None else np.zeros_like(component.atoms)
        )
        for block in np.unique(blocks):
            members = component.atoms[blocks == block]
            alive[source.permutation(members)[: len(members) // 2]] = False
    return alive


@pytest.mark.parametrize("name", CASES)
def test_atoms_are_found(name: str) -> None:
    case = CASES[name]
    _, coupling = couple_case(case)
    assert tuple(len(component.atoms) for component in coupling.components) == case.atoms
    if case.units:
        assert tuple(component.unit for component in coupling.components) == case.units
    assert case.frozen in "; ".join(freeze.reason for freeze in coupling.frozen)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.runs and case.atoms])
def test_the_cut_equals_the_masked_model(name: str) -> None:
    case = CASES[name]
    model, coupling = couple_case(case)
    alive = half(coupling)
    masked = model.clone()
    mask(masked, couple(masked, coupling.shapes, units=case.only), alive)
    before = coupling.parameters()
    cut(model, coupling, alive)
    feed = feed_of(case, model, seed=11)
    expected, actual = run(masked, feed)["y"], run(model, feed)["y"]
    assert sum(v.const_value.size for v in model.graph.initializers.values()) < before
    assert actual.shape == expected.shape
    largest = max(float(np.abs(expected).max()), 1e-6)
    assert float(np.abs(actual - expected).max()) <= case.tolerance * largest
