"""Zeros shared out by measured damage: the optimum itself, and what a small network gains."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from four_layers import TOTAL, correlated, divergence
from four_layers import network as four_layers

import converter
from converter.core import graph as g
from passes.sparsity.exchange import Curve, cheapest, fine, isotonic
from tests.support import model_from_text

PRUNE = "prune:sparsity=0.75,recover=least_squares,allocation="


def network() -> ir.Model:
    """The weights of the later layers are spread wider."""
    return four_layers((0.0, 0.5, 1.0, 1.5))


def pruned(allocation: str, *, count: int = 128, model: ir.Model | None = None) -> Any:
    data = {"x": correlated(count)} if count else None
    source = network() if model is None else model
    return converter.convert(source, passes=PRUNE + allocation, data=data, verify=False)


def zeros(artifact: Any) -> int:
    values = [v for v in artifact.model.graph.initializers.values() if len(v.shape or ()) == 2]
    arrays = [g.constant_array(value) for value in values]
    return sum(int((array == 0).sum()) for array in arrays if array is not None)


def damage(artifact: Any) -> float:
    """Mean divergence on inputs that nobody has seen."""
    return divergence(network(), artifact.model, correlated(512, 5))


@pytest.fixture(scope="module")
def measured() -> Any:
    return pruned("sensitivity")


def test_the_total_is_exact_and_the_damage_below_lamp(measured: Any) -> None:
    lamp = pruned("lamp")
    assert zeros(measured) == round(0.75 * TOTAL) == zeros(lamp)
    assert damage(measured) < 0.9 * damage(lamp)
    counts = measured.report.steps[0].outcome.counts
    assert counts["damage"] <= counts["damage_lamp"]


def test_the_report_says_where_the_zeros_are(measured: Any) -> None:
    notes = " ".join(measured.report.steps[0].outcome.notes)
    assert "with LAMP" in notes
    assert "most in w" in notes
    assert "128 of 128 samples" in notes


def test_the_same_samples_give_the_same_bytes(measured: Any) -> None:
    again = pruned("sensitivity")
    first, second = (
        ir.to_proto(each.model).SerializeToString(deterministic=True) for each in (measured, again)
    )
    assert first == second


def test_few_samples_serve_for_both() -> None:
    found = pruned("sensitivity", count=8)
    assert zeros(found) == round(0.75 * TOTAL)


def test_without_recovery_masks_alone_are_compared() -> None:
    data = {"x": correlated(64)}
    made = [
        converter.convert(
            network(), passes=f"prune:sparsity=0.6,recover=none,allocation={a}", data=data
        )
        for a in ("sensitivity", "lamp")
    ]
    assert zeros(made[0]) == zeros(made[1]) == round(0.6 * TOTAL)
    assert damage(made[0]) < damage(made[1])


def test_without_samples_noise_decides() -> None:
    found = converter.convert(
        network(), passes="prune:sparsity=0.6,allocation=sensitivity", verify=False
    )
    assert zeros(found) == round(0.6 * TOTAL)
    assert "no samples were given" in " ".join(found.report.steps[0].outcome.notes)


def test_a_shared_tensor_and_a_branch_count_once() -> None:
    rng = np.random.default_rng(3)
    weights = {f"w{i}": rng.standard_normal((12, 12)).astype(np.float32) / 4 for i in range(3)}
    model = model_from_text(
        """
        g (float[N,12] x) => (float[N,12] y) {
            a = MatMul(x, w0)
            b = Relu(a)
            c = MatMul(b, w0)
            d = MatMul(c, w1)
            sum = ReduceSum<keepdims = 0>(x)
            flag = Greater(sum, zero)
            y = If (flag) <
                then_branch = t () => (float[N,12] p) { p = MatMul(d, w2) },
                else_branch = e () => (float[N,12] q) { q = Identity(d) }
            >
        }
        """,
        **weights,
        zero=np.float32(0),
    )
    assert zeros(pruned("sensitivity", model=model)) == round(0.75 * 3 * 144)


def test_the_exchange_finds_the_least_sum() -> None:
    rng = np.random.default_rng(0)
    # convex curves on a grid of one zero each: all allocations can be tried
    curves = [
        Curve(np.arange(6), np.cumsum(np.append(0.0, np.sort(rng.random(5))))) for _ in range(4)
    ]
    best = min(
        (c for c in product(range(6), repeat=4) if sum(c) == 11),
        key=lambda c: sum(curve.losses[n] for curve, n in zip(curves, c, strict=True)),
    )
    assert cheapest(curves, 11).tolist() == list(best)


def test_a_hull_lies_below_its_curve_and_is_convex() -> None:
    curve = Curve(np.asarray([0, 2, 3, 7, 9]), np.asarray([0.0, 3.0, 3.5, 4.0, 9.0]))
    hull = curve.hull()
    assert hull.zeros.tolist() == [0, 7, 9]
    assert (np.interp(curve.zeros, hull.zeros, hull.losses) <= curve.losses).all()


def test_isotonic_pools_what_falls() -> None:
    assert isotonic(np.asarray([1.0, 3.0, 2.0, 4.0, 1.0])).tolist() == [1.0, 2.5, 2.5, 2.5, 2.5]


def test_a_fine_curve_goes_through_its_points() -> None:
    zeros, losses = np.asarray([0, 50, 80, 95]), np.asarray([0.0, 0.01, 0.1, 0.5])
    curve = fine(100, zeros, losses)
    assert np.allclose(np.interp(zeros, curve.zeros, curve.losses), losses, atol=1e-6)
    assert (np.diff(curve.losses) >= 0).all()
