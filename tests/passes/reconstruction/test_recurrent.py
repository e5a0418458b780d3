"""Recurrent layers that lost units are fitted so that the states of the others come back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import support
from exact import InProcess

from converter.core.context import Batch, Context, RunSettings
from converter.coupling.couple import couple
from converter.coupling.shapes import observe_shapes
from passes.coupling.cut import cut
from passes.reconstruction.fit import Method, Recipe
from passes.reconstruction.recurrent import recurrent_of
from passes.reconstruction.walk import reconstruct

Array = np.ndarray[Any, Any]
STEPS, INPUTS, HIDDEN = 12, 5, 8
KINDS = {
    "LSTM": ("LSTM", 4, ""),
    "LSTM in both directions": ("LSTM", 4, ', direction = "bidirectional"'),
    "GRU": ("GRU", 3, ""),
    "GRU that resets behind": ("GRU", 3, ", linear_before_reset = 1"),
    "RNN in reverse": ("RNN", 1, ', direction = "reverse"'),
}


def twins(name: str, *, state: str = "") -> ir.Model:
    """A layer in which the second half of the units does what the first half does."""
    kind, gates, extra = KINDS[name]
    rng = np.random.default_rng(3)
    sides, half = 2 if "both" in name else 1, HIDDEN // 2
    rows = rng.normal(0, 0.6, (sides, gates, half, INPUTS + HIDDEN + 2))
    rows = np.concatenate([rows, rows], axis=2).reshape(sides, gates * HIDDEN, -1)
    batch = 4 if state else "N"
    bias = rows[..., -2:].transpose(0, 2, 1).reshape(sides, -1)
    return support.model_from_text(
        f"""net (float[{STEPS},{batch},{INPUTS}] x) => (float[{STEPS},{batch},3] y) {{
            h = {kind} <hidden_size = {HIDDEN}{extra}> (x, W, R, B{state})
            t = Transpose <perm = [0, 2, 1, 3]> (h)
            r = Reshape (t, shape)
            y = MatMul (r, P)
        }}""",
        W=rows[..., :INPUTS].astype(np.float32),
        R=rows[..., INPUTS:-2].astype(np.float32),
        B=bias.astype(np.float32),
        P=rng.normal(0, 0.5, (sides * HIDDEN, 3)).astype(np.float32),
        shape=np.array([0, 0, -1]),
        s=np.full((sides, 4, HIDDEN), 0.3, np.float32),
    )


def batches(count: int = 8) -> list[Batch]:
    rng = np.random.default_rng(5)
    each = [rng.normal(size=(STEPS, 4, INPUTS)).astype(np.float32) for _ in range(count)]
    return [Batch({"x": array}) for array in each]


def without_twins(model: ir.Model) -> tuple[ir.Model, Any]:
    student = model.clone()
    coupling = couple(student, observe_shapes(student, Context(services=InProcess())))
    alive = coupling.all_alive()
    alive[coupling.components[0].atoms[HIDDEN // 2 :]] = False
    return student, cut(student, coupling, alive)


def error(teacher: ir.Model, student: ir.Model) -> float:
    feed = batches(9)[-1].inputs
    expected, found = support.run(teacher, feed)["y"], support.run(student, feed)["y"]
    return float(np.square(expected - found).sum() / np.square(expected).sum())


@pytest.mark.parametrize("name", KINDS)
def test_units_that_are_gone_are_made_up_for(name: str) -> None:
    teacher = twins(name)
    student, kept = without_twins(teacher)
    before = error(teacher, student)
    repair = reconstruct(teacher, student, kept, batches(), RunSettings())
    assert repair.layers[0].what == "least squares of the gates"
    assert repair.layers[0].after < 0.01 * repair.layers[0].before
    # the ridge towards the present weights leaves some hundredths of the error
    assert error(teacher, student) < 0.03 * before


def test_the_same_bytes_every_time() -> None:
    made = []
    for _ in range(2):
        teacher = twins("GRU")
        student, kept = without_twins(teacher)
        reconstruct(teacher, student, kept, batches(), RunSettings())
        made.append([v.const_value.tobytes() for v in student.graph.initializers.values()])  # type: ignore[union-attr]
    assert made[0] == made[1]


def test_a_state_to_start_from_is_left_out_of_the_fit() -> None:
    teacher = twins("GRU", state=", , s")
    student, kept = without_twins(teacher)
    before = error(teacher, student)
    reconstruct(teacher, student, kept, batches(), RunSettings())
    assert error(teacher, student) < 0.1 * before  # the first step is not fitted


def test_nothing_to_gain_changes_nothing() -> None:
    teacher = twins("LSTM")
    student = teacher.clone()
    repair = reconstruct(teacher, student, {}, batches(), RunSettings())
    assert not repair.modified
    assert error(teacher, student) == 0.0


@pytest.mark.parametrize("method", ["least_squares", "obs"])
def test_zeros_stay_zeros(method: Method) -> None:
    teacher = twins("LSTM")
    student, kept = without_twins(teacher)
    value = student.graph.initializers["R"]
    assert value.const_value is not None
    sparse = value.const_value.numpy().copy()
    sparse[:, ::3] = 0.0
    value.const_value = ir.tensor(sparse, name="R")
    reconstruct(teacher, student, kept, batches(), RunSettings(), recipe=Recipe(method))
    after = student.graph.initializers["R"].const_value
    assert after is not None
    assert not after.numpy()[sparse == 0.0].any()
    assert (after.numpy() != sparse).any()


def test_means_alone_leave_gates_alone() -> None:
    teacher = twins("GRU")
    student, kept = without_twins(teacher)
    repair = reconstruct(teacher, student, kept, batches(), RunSettings(), recipe=Recipe("bias"))
    assert any("least squares alone" in skip.reason for skip in repair.skipped)


def test_what_cannot_be_fitted_says_why() -> None:
    model = twins("GRU")
    node = next(iter(model.graph))
    node.attributes["layout"] = ir.AttrInt64("layout", 1)
    assert recurrent_of(node) == "its batch comes before its time"
