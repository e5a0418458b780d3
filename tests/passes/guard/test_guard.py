"""The guard: bounds held against samples with a margin, and the search for the deepest cut."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from exact import InProcess
from support import model_from_text

from converter.core.context import Batch, Context
from converter.verification.budget import Budget
from passes.guard.deepest import deepest, most
from passes.guard.figures import Evidence
from passes.guard.judge import Guard, Ruling, finer, hold_out

RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 4)).astype(np.float32)
# three classes of four inputs: what has the shape of the input is no class score
TEXT = "g (float[N,4] x) => (float[N,3] y) { h = MatMul(x, w) y = Mul(h, s) }"
W = np.eye(4, 3, dtype=np.float32)
Y = X @ W


def scaled(*factors: float) -> ir.Model:
    return model_from_text(TEXT, w=W, s=np.asarray(factors, np.float32))


def guard(*terms: str, labels: Any = None, margin: float = 1.0) -> Guard:
    batches = [
        Batch({"x": X[i : i + 4] + 0}, None if labels is None else labels[i : i + 4], 4)
        for i in range(0, len(X), 4)
    ]
    context = Context(services=InProcess(), budget=Budget.parse(terms).limits)
    found = Guard.of(context, scaled(2, 2, 2), batches, margin)
    assert found is not None
    return found


def test_equal_models_hold_every_bound() -> None:
    terms = ["agreement>=1", "flips<=0%", "sqnr>=60", "cosine>=0.999", "max_error<=0"]
    ruling = guard(*terms).judge(scaled(2, 2, 2))
    assert ruling.holds
    assert ruling.excess <= 1e-3


def test_the_margin_asks_for_more_than_the_samples_show() -> None:
    changed = scaled(2, 2, 1.2)
    same = np.mean(Y.argmax(1) == (Y * [2, 2, 1.2]).argmax(1))
    assert 0.9 < same < 1.0
    term = f"agreement>={same - 0.005}"
    assert guard(term, margin=0.0).judge(changed).holds
    ruling = guard(term).judge(changed)
    assert not ruling.holds
    assert 1.0 < ruling.excess < 4.0
    assert f"agreement {same:.4g} (with the margin" in ruling.text
    assert guard(f"agreement>={same - 0.07}").judge(changed).holds


def test_accuracy_is_compared_in_pairs() -> None:
    labels = Y.argmax(1)
    labels[:8] = (labels[:8] + 1) % 3  # the original gets seven eighths right
    assert guard("accuracy>=0.99x", labels=labels).judge(scaled(2, 2, 2)).holds
    ruling = guard("accuracy>=0.99x", labels=labels).judge(scaled(2, 2, 0.1))
    assert not ruling.holds
    assert guard("accuracy>=0.5", labels=labels).judge(scaled(2, 2, 1.2)).holds
    assert not guard("accuracy>=0.9", labels=labels).judge(scaled(2, 2, 1.2)).holds


def test_noise_is_judged_with_the_spread_over_samples() -> None:
    changed = scaled(2, 2, 1.2)
    power = (Y**2).sum(0)
    sqnr = 10 * math.log10(4 * power.sum() / (0.64 * power[2]))
    assert guard(f"sqnr>={sqnr - 0.01}", margin=0.0).judge(changed).holds
    assert not guard(f"sqnr>={sqnr - 0.01}").judge(changed).holds
    assert guard(f"sqnr>={sqnr - 3}").judge(changed).holds


def test_broken_outputs_never_hold() -> None:
    ruling = guard("agreement>=0.1").judge(scaled(math.nan, 2, 2))
    assert (ruling.holds, ruling.excess) == (False, math.inf)
    assert "NaN" in ruling.text


def test_no_guard_without_a_bound_on_results_or_without_samples() -> None:
    context = Context(services=InProcess(), budget=Budget.parse(["size<=0.3x"]).limits)
    model = scaled(1, 1, 1)
    assert Guard.of(context, model, [Batch({"x": X})]) is None
    context.budget = Budget.parse(["max_error<=1"]).limits
    assert Guard.of(context, model, []) is None


def test_the_reference_of_the_whole_pipeline_counts() -> None:
    context = Context(services=InProcess(), budget=Budget.parse(["max_error<=1e-3"]).limits)
    context.reference = scaled(1, 1, 1)
    found = Guard.of(context, scaled(2, 2, 2), [Batch({"x": X})])
    assert found is not None
    assert found.judge(scaled(1, 1, 1)).holds


def test_every_fourth_sample_is_held_out() -> None:
    batches = [Batch({"x": X[i : i + 1]}) for i in range(9)]
    fit, judged = hold_out(batches, 4)
    assert [id(b) for b in judged] == [id(batches[i]) for i in (3, 7)]
    assert len(fit) == 7
    assert [len(part) for part in hold_out(batches[:2])] == [1, 1]


@pytest.mark.parametrize("edge", [0.05, 0.3, 0.62, 0.97])
def test_the_search_closes_in_on_the_edge(edge: float) -> None:
    seen = []

    def attempt(depth: float) -> tuple[Ruling, float]:
        seen.append(depth)
        excess = math.exp(6 * (depth - edge))
        return Ruling(excess <= 1, excess, f"excess {excess:.3g}"), depth

    found = deepest(attempt, 1.0)
    assert found.best is not None
    assert found.stopped
    assert found.best.result == found.best.depth <= edge
    assert edge - found.best.depth < 0.05
    assert len(seen) <= 7
    assert "stopped at the deepest cut that keeps agreement" in found.words("agreement>=0.95")


def test_what_holds_at_once_is_not_searched() -> None:
    found = deepest(lambda depth: (Ruling(True, 0.5, "fine"), depth), 0.7)
    assert found.best is not None
    assert (found.best.depth, len(found.tried), found.stopped) == (0.7, 1, False)
    assert found.words("sqnr>=20") == "the cut keeps sqnr>=20: fine"


def test_what_never_holds_is_given_up() -> None:
    found = deepest(lambda depth: (Ruling(False, math.inf, "broken"), depth), 0.7, steps=4)
    assert found.best is None
    assert len(found.tried) == 5
    assert "nothing was cut" in found.words("sqnr>=20")


class Dataset:
    """All samples of a conversion, of which the guard got a few."""

    synthetic = False
    description = "test"

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows
        self.samples = len(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Any:
        return (Batch({"x": row[None]}) for row in self.rows)


def test_what_holds_on_few_samples_must_hold_on_all() -> None:
    found = guard("max_error<=0.5")
    assert found.judge(scaled(2, 2, 2.1)).holds
    found.context.dataset = Dataset(np.concatenate([X, X, 99 + X[:1]]))
    for _ in range(2):  # the second time with the outputs of the original that were kept
        ruling = found.judge(scaled(2, 2, 2.1))
        assert not ruling.holds
        assert "on all samples" in ruling.text
    assert found.judge(scaled(2, 2, 2.001)).holds


@pytest.mark.parametrize("edge", range(8))
def test_the_largest_count_that_holds_is_found(edge: int) -> None:
    seen = []

    def attempt(count: int) -> Ruling:
        seen.append(count)
        return Ruling(count <= edge, count / max(1, edge), f"{count}")

    found = most(attempt, 7)
    assert (int(found.best.depth) if found.best else 0) == min(edge, 7)
    assert len(seen) == len(set(seen)) <= 4
    assert found.stopped == (edge < 7)


def test_few_samples_are_halved_and_large_batches_cut_up() -> None:
    labels = np.arange(64)
    whole = Batch({"x": X}, labels, 64)
    parts = finer(scaled(1, 1, 1), [whole])
    assert [part.samples for part in parts] == [4] * 16
    np.testing.assert_array_equal(np.concatenate([p.inputs["x"] for p in parts]), X)
    targets = [part.targets for part in parts if part.targets is not None]
    np.testing.assert_array_equal(np.concatenate(targets), labels)
    assert [len(part) for part in hold_out(parts)] == [8, 8]
    fixed = model_from_text("g (float[64,4] x) => (float[64,4] y) { y = Relu(x) }")
    assert finer(fixed, [whole])[0] is whole


def test_samples_that_all_agree_may_show_that_others_would_not() -> None:
    """The leads of best classes tell more than the classes."""
    changed = scaled(2, 2, 1.3)
    batch = Batch({"x": X[:24]}, None, 24)
    assert (Y[:24].argmax(1) == (Y[:24] * [2, 2, 1.3]).argmax(1)).all()
    context = Context(services=InProcess(), budget=Budget.parse("agreement>=0.99").limits)
    found = Guard.of(context, scaled(2, 2, 2), [batch])
    assert found is not None
    ruling = found.judge(changed)
    assert not ruling.holds
    assert "agreement 1 (with the margin 0." in ruling.text
    assert found.judge(scaled(2, 2, 2)).excess == 0.0


def test_probabilities_are_compared_by_their_logarithms() -> None:
    rows = np.abs(Y) / np.abs(Y).sum(axis=1, keepdims=True)
    evidence = Evidence()
    evidence.update({"y": rows}, {"y": rows}, Batch({"x": X}, None, len(X)))
    assert evidence.likely_agreement("y") == 1.0
    uneven = rows ** np.linspace(0.5, 2, 3)
    evidence = Evidence()
    evidence.update({"y": rows}, {"y": uneven / uneven.sum(1, keepdims=True)}, Batch({"x": X}))
    assert 0.5 < evidence.likely_agreement("y") < 1.0
