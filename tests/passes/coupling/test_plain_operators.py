"""Layers, arithmetic, movement and reductions: what can be cut there, and the cut itself."""

from __future__ import annotations

import numpy as np
import pytest
from fused_cases import build, feed_of
from plain_cases import BINARY, LINEAR, UNARY
from plain_layers import MOVES, NORMS, POOLS, REDUCTIONS
from support import run
from test_fused_operators import couple_case, half

from converter.coupling.couple import couple
from converter.ops.axes import elementwise, layers, linear, movement, reduction, reshape
from passes.coupling.cut import cut
from passes.coupling.mask import mask

CASES = UNARY | BINARY | LINEAR | NORMS | POOLS | MOVES | REDUCTIONS


@pytest.mark.parametrize("name", CASES)
def test_atoms_and_cut(name: str) -> None:
    case = CASES[name]
    model, coupling = couple_case(case)
    assert tuple(len(component.atoms) for component in coupling.components) == case.atoms
    assert case.frozen in "; ".join(freeze.reason for freeze in coupling.frozen)
    if not (case.runs and case.atoms):
        return
    alive = half(coupling)
    masked = model.clone()
    mask(masked, couple(masked, coupling.shapes), alive)
    cut(model, coupling, alive)
    feed = feed_of(case, model, seed=11)
    expected, actual = run(masked, feed)["y"], run(model, feed)["y"]
    assert actual.shape == expected.shape
    largest = max(float(np.abs(expected).max()), 1e-6)
    assert float(np.abs(actual - expected).max()) <= case.tolerance * largest
    assert sum(v.const_value.size for v in model.graph.initializers.values()) < sum(
        v.const_value.size for v in build(case).graph.initializers.values()
    )


def test_every_row_has_a_case() -> None:
    tried = {(node.domain, node.op_type) for case in CASES.values() for node in build(case).graph}
    modules = (elementwise, layers, linear, movement, reduction, reshape)
    entries = {(entry.domain, entry.op_type) for module in modules for entry in module.ENTRIES}
    assert not sorted(entries - tried)
