"""Which values share a grid, and what stays in float because rounding it gains nothing."""

from __future__ import annotations

import numpy as np

from converter.core.select import Selection
from passes.affine.placement import Placement, place
from tests.support import model_from_text

WEIGHT = np.random.default_rng(0).standard_normal((8, 8, 1, 1)).astype(np.float32)


def plan_of(body: str, inputs: str = "float[1,8,4,4] x") -> Placement:
    """Plan a graph whose convolutions share one weight ``w`` of 8 channels."""
    model = model_from_text(f"g ({inputs}) => (float y) {{ {body} }}", opset=17, w=WEIGHT)
    return place(model, Selection())


def roots(plan: Placement) -> dict[str, str]:
    return {v.name or "": r.name or "" for v, r in plan.ranged().items()}


def test_what_is_only_concatenated_lies_on_the_grid_of_the_result() -> None:
    found = roots(
        plan_of(
            """a = Conv (x, w)
            b = Conv (x, w)
            c = Concat <axis = 2> (a, b)
            y = Conv (c, w)"""
        )
    )
    assert found["a"] == found["b"] == found["c"] == "c"
    assert found["x"] == "x"


def test_what_others_read_too_keeps_its_own_grid() -> None:
    found = roots(
        plan_of(
            """a = Conv (x, w)
            b = Conv (x, w)
            c = Concat <axis = 2> (a, b)
            d = Conv (c, w)
            e = Conv (b, w)
            y = Concat <axis = 2> (d, e)"""
        )
    )
    assert found["a"] == "c"
    assert found["b"] == "b"


def test_an_activation_on_one_side_keeps_the_grids_apart() -> None:
    """The grid of ``r`` cuts off below zero; that of the result must not."""
    found = roots(
        plan_of(
            """a = Conv (x, w)
            b = Conv (x, w)
            r = Relu (a)
            c = Concat <axis = 2> (r, b)
            y = Conv (c, w)"""
        )
    )
    assert (found["r"], found["b"], found["c"]) == ("r", "b", "c")


def test_equal_activations_on_both_sides_share_the_grid() -> None:
    found = roots(
        plan_of(
            """a = Conv (x, w)
            b = Conv (x, w)
            r = Relu (a)
            s = Relu (b)
            c = Concat <axis = 2> (r, s)
            y = Conv (c, w)"""
        )
    )
    assert found["r"] == found["s"] == found["c"] == "c"


def test_an_activation_further_up_keeps_the_grids_apart() -> None:
    found = roots(
        plan_of(
            """a = Conv (x, w)
            b = Conv (x, w)
            r = Relu (a)
            s = Relu (b)
            c = Concat <axis = 2> (r, s)
            d = Conv (x, w)
            e = Concat <axis = 2> (c, d)
            y = Conv (e, w)"""
        )
    )
    assert found["r"] == found["s"] == found["c"] == "c"
    assert (found["d"], found["e"]) == ("d", "e")


def test_concatenations_of_concatenations_share_one_grid() -> None:
    found = roots(
        plan_of(
            """a = Conv (x, w)
            b = Conv (x, w)
            c = Concat <axis = 2> (a, b)
            e = Conv (x, w)
            p = MaxPool <kernel_shape = [1, 1]> (e)
            d = Concat <axis = 2> (c, p)
            y = Conv (d, w)"""
        )
    )
    assert {found[name] for name in ("a", "b", "c", "e", "p", "d")} == {"d"}


def test_an_average_that_only_float_reads_stays_in_float() -> None:
    plan = plan_of("a = Conv (x, w) p = GlobalAveragePool (a) y = Softmax <axis = 1> (p)")
    assert [unit.node.op_type for unit in plan.units] == ["Conv"]


def test_an_average_that_integers_read_runs_on_integers() -> None:
    plan = plan_of("a = Conv (x, w) p = GlobalAveragePool (a) y = Conv (p, w)")
    assert [unit.node.op_type for unit in plan.units] == ["Conv", "GlobalAveragePool", "Conv"]


def test_a_maximum_is_exact_and_runs_on_integers_anyway() -> None:
    plan = plan_of("a = Conv (x, w) y = MaxPool <kernel_shape = [2, 2]> (a)")
    assert [unit.node.op_type for unit in plan.units] == ["Conv", "MaxPool"]
