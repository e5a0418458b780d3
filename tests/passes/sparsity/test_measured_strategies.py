"""Strategies that measure: evolution, up to the budget, and below a bound, on a small network."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from four_layers import TOTAL, WIDTHS, correlated, divergence
from four_layers import network as four_layers

import converter
from converter.core import graph as g
from converter.errors import DataError, MissingDataError, ParameterError
from tests.support import model_from_text, run

ADAPTIVE = "prune:allocation=adaptive,population=4,generations=3"
GENETIC = "prune:sparsity=0.75,allocation=genetic,population=5,generations=3"


def network() -> ir.Model:
    """The weights of the second layer are spread widest."""
    return four_layers((0.0, 3.0, 0.5, 0.0))


def inputs(count: int, seed: int = 0) -> np.ndarray:
    """Correlated inputs, of which the last two are always zero."""
    found = correlated(count, seed)
    found[:, -2:] = 0.0
    return found


def pruned(spec: str, *, count: int = 128, **given: Any) -> Any:
    data = {"x": inputs(count)}
    return converter.convert(network(), passes=spec, data=data, verify=bool(given), **given)


def zeros(artifact: Any) -> tuple[int, list[int]]:
    values = [v for v in artifact.model.graph.initializers.values() if len(v.shape or ()) == 2]
    arrays = [g.constant_array(v) for v in sorted(values, key=lambda v: str(v.name))]
    counts = [int((array == 0).sum()) for array in arrays if array is not None]
    return sum(counts), counts


def damage(artifact: Any, seed: int = 5) -> float:
    """Mean divergence on inputs that nobody has seen."""
    return divergence(network(), artifact.model, inputs(512, seed))


@pytest.fixture(scope="module")
def evolved() -> Any:
    return pruned(GENETIC)


@pytest.fixture(scope="module")
def uniform() -> Any:
    return pruned("prune:sparsity=0.75,allocation=local,recover=least_squares")


def notes(artifact: Any) -> str:
    return " ".join(artifact.report.steps[0].outcome.notes)


def test_evolution_keeps_the_total_and_is_better_than_uniform(evolved: Any, uniform: Any) -> None:
    assert zeros(evolved)[0] == round(0.75 * TOTAL) == zeros(uniform)[0]
    assert damage(evolved) < 0.8 * damage(uniform)
    counts = evolved.report.steps[0].outcome.counts
    assert counts["damage"] < 0.05
    assert counts["evaluations"] > 6
    assert "of what it started from: local" in notes(evolved)
    assert "built and judged like the result" in notes(evolved)


def test_evolution_gives_the_same_bytes_for_the_same_seed(evolved: Any) -> None:
    again = pruned(GENETIC)
    assert ir.to_proto(again.model).SerializeToString(deterministic=True) == ir.to_proto(
        evolved.model
    ).SerializeToString(deterministic=True)


def test_evolution_without_recovery_measures_what_is_only_masked() -> None:
    found = pruned(GENETIC + ",recover=none")
    even = pruned("prune:sparsity=0.75,allocation=local,recover=none")
    assert zeros(found)[0] == zeros(even)[0]
    assert damage(found) < damage(even)


def test_evolution_has_nothing_to_decide_for_one_layer() -> None:
    weight = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
    model = model_from_text("g (float[N,12] x) => (float[N,5] y) { y = MatMul(x, w) }", w=weight)
    found = converter.convert(model, passes=GENETIC, data={"x": inputs(64)})
    assert zeros(found)[1] == [45]
    assert "nothing to decide" in notes(found)


@pytest.fixture(scope="module")
def adapted() -> Any:
    return pruned(ADAPTIVE, budget="sqnr>=15dB", count=96)


def test_adaptive_goes_as_far_as_the_budget_allows(adapted: Any) -> None:
    assert 0.3 * TOTAL < zeros(adapted)[0] < 0.95 * TOTAL
    assert 15.0 - 1.0 < sqnr(adapted) < 15.0 + 6.0  # other samples than those it was measured on
    assert "sqnr>=15dB" in notes(adapted)
    assert "stopped by the budget: w" in notes(adapted)


def test_adaptive_is_better_than_uniform_at_the_total_it_reaches(adapted: Any) -> None:
    share = zeros(adapted)[0] / TOTAL
    even = pruned(f"prune:sparsity={share},allocation=local", count=96)
    assert zeros(even)[0] == pytest.approx(zeros(adapted)[0], abs=2)
    assert damage(adapted) < damage(even)


def test_adaptive_keeps_the_budget_of_one_layer() -> None:
    weight = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
    model = model_from_text("g (float[N,12] x) => (float[N,5] y) { y = MatMul(x, w) }", w=weight)
    given = {"data": {"x": inputs(96)}, "budget": "sqnr>=15dB"}
    found = converter.convert(model, passes=ADAPTIVE, **given)
    assert 0 < zeros(found)[0] < 0.9 * weight.size
    assert "keep sqnr>=15dB" in notes(found)


def test_adaptive_stops_where_it_was_asked_to() -> None:
    found = pruned("prune:sparsity=0.2,allocation=adaptive", budget="cosine>=0.5", count=64)
    assert zeros(found)[0] == round(0.2 * TOTAL)
    assert "as much as was asked for" in notes(found)


def sqnr(artifact: Any, seed: int = 9) -> float:
    feed = {"x": inputs(512, seed)}
    old, new = run(network(), feed)["y"], run(artifact.model, feed)["y"]
    return float(10 * np.log10(np.square(old).sum() / np.square(new - old).sum()))


@pytest.fixture(scope="module")
def strict() -> Any:
    return pruned("prune:allocation=safe,criterion=wanda")


def test_safe_keeps_a_strict_bound_on_inputs_it_has_not_seen(strict: Any) -> None:
    assert zeros(strict)[0] > 0
    for seed in (9, 10, 11):
        assert sqnr(strict, seed) >= 40.0
    assert "sqnr>=40dB (no budget about results was given)" in notes(strict)


def test_safe_takes_weights_whose_inputs_are_always_zero(strict: Any) -> None:
    assert zeros(strict)[1][0] >= 2 * WIDTHS[1]
    assert "inputs are zero in all samples" in notes(strict)
    assert strict.report.steps[0].outcome.counts["weights_without_effect"] >= 2 * WIDTHS[1]


def test_safe_keeps_a_budget_with_a_guard_band(strict: Any) -> None:
    found = pruned("prune:allocation=safe,criterion=magnitude", budget="sqnr>=20dB")
    assert zeros(found)[0] > zeros(strict)[0]
    assert sqnr(found) >= 22.0
    assert "of what is allowed are used" in notes(found)


@pytest.mark.parametrize("name", ["adaptive", "safe"])
def test_a_share_that_samples_decide_needs_samples(name: str) -> None:
    with pytest.raises(MissingDataError, match="data"):
        converter.convert(network(), passes=f"prune:allocation={name}", budget="sqnr>=20dB")
    with pytest.raises(DataError, match="few"):
        pruned(f"prune:allocation={name}", budget="sqnr>=20dB", count=3)


@pytest.mark.parametrize("budget", [(), "size<=0.5x", "accuracy>=0.9x"])
def test_adaptive_needs_a_bound_that_can_be_measured(budget: Any) -> None:
    with pytest.raises(ParameterError, match="needs a bound on results"):
        pruned("prune:allocation=adaptive", budget=budget)
