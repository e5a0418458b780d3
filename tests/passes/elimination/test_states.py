"""Initial states of recurrent layers: zeros go, everything else stays."""

from __future__ import annotations

import numpy as np
import pytest
from rule_cases import Case, named, run

F32 = np.float32
SOURCE = np.random.default_rng(0)
W, R = (SOURCE.normal(0, 0.4, (1, 12, size)).astype(F32) for size in (6, 4))
WEIGHTS = {"W": W, "R": R}
GRU = "h = GRU <hidden_size = 4> (x, W, R, , , s) y = Neg (h)"
INPUT = "float[5,3,6] x"
CASES = {
    "zeros": Case(GRU, "GRU Neg", INPUT, constants={**WEIGHTS, "s": np.zeros((1, 3, 4), F32)}),
    "zeros of the batch size": Case(
        "d = Shape (x) b = Gather (d, i) n = Concat <axis = 0> (one, b, four) "
        f"z = ConstantOfShape (n) s = Slice (z, zero, one, zero) {GRU}",
        "GRU Neg", INPUT,
        constants={
            **WEIGHTS, "i": np.array([1]), "one": np.array([1]), "four": np.array([4]),
            "zero": np.array([0]),
        },
    ),
    "ones": Case(GRU, "GRU Neg", INPUT, constants={**WEIGHTS, "s": np.ones((1, 3, 4), F32)}),
    "zeros repeated": Case(
        f"s = Expand (z, n) {GRU}", "GRU Neg", INPUT,
        constants={**WEIGHTS, "z": np.zeros((1, 1, 4), F32), "n": np.array([1, 3, 4])},
    ),
    "ones of some size": Case(
        "n = Concat <axis = 0> (one, three, four) "
        f"s = ConstantOfShape <value = float[1] {{1}}> (n) {GRU}",
        "Concat ConstantOfShape GRU Neg", INPUT,
        constants={
            **WEIGHTS, "one": np.array([1]), "three": np.array([3]), "four": np.array([4]),
        },
    ),
    "a state that callers give": Case(
        GRU, "GRU Neg", f"{INPUT}, float[1,3,4] s", constants=WEIGHTS
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", named(CASES))
def test_states(case: Case) -> None:
    run(case)


@pytest.mark.parametrize(("name", "left"), [("zeros", 3), ("zeros repeated", 3), ("ones", 6)])
def test_inputs_that_are_left(name: str, left: int) -> None:
    from support import model_from_text

    from converter.core.context import Context
    from passes import Eliminate

    case = CASES[name]
    text = f"g ({case.inputs}) => ({case.outputs}) {{ {case.body} }}"
    model = model_from_text(text, **case.constants)
    Eliminate().apply(model, Context())
    gru = next(node for node in model.graph if node.op_type == "GRU")
    assert sum(value is not None for value in gru.inputs) == min(left, 4)
