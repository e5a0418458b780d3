"""Scores of weights, against plain computations on the inputs that layers get."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from converter.core.context import Batch, Context
from converter.core.select import Selection
from converter.errors import MissingDataError
from passes.prune import Prune
from passes.sparsity import criteria
from passes.sparsity.layers import find
from tests.support import model_from_text


class Samples:
    """Feeds of one sample each."""

    synthetic = False
    description = "samples"

    def __init__(self, **inputs: np.ndarray) -> None:
        self._inputs = inputs
        self.samples = len(next(iter(inputs.values())))

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[Batch]:
        for i in range(self.samples):
            yield Batch({name: array[i : i + 1] for name, array in self._inputs.items()})


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def correlated(*shape: int) -> np.ndarray:
    """Values whose neighbours on the last axis resemble each other, of uneven size."""
    raw = random(*shape, seed=9)
    mixed = raw + 0.8 * np.roll(raw, 1, axis=-1)
    return (mixed * np.linspace(0.2, 3.0, shape[-1])).astype(np.float32)


def scored(criterion: Any, text: str, samples: Samples | None, **constants: np.ndarray) -> Any:
    model = model_from_text(text, **constants)
    layers, _ = find(model, Selection((), ()))
    return layers, criteria.scores(criterion, layers, model, Context(dataset=samples))


def relative(energy: np.ndarray) -> np.ndarray:
    return (energy / energy.sum()).reshape(-1)


PRODUCT = "g (float[N,T,6] x) => (y) { y = MatMul(x, w) }"


def test_wanda_of_a_product() -> None:
    x, w = correlated(20, 5, 6), random(6, 4)
    _, found = scored("wanda", PRODUCT, Samples(x=x), w=w)
    power = np.square(x.reshape(-1, 6), dtype=np.float64).mean(axis=0)
    np.testing.assert_allclose(found(0), relative(w.astype(float) ** 2 * power[:, None]), rtol=1e-5)
    assert not found.skipped


def test_wanda_of_grouped_kernels() -> None:
    x, w = correlated(6, 4, 5, 6), random(6, 2, 3, 3)
    text = "g (float[N,4,5,6] x) => (y) { y = Conv<group=2, pads=[1,1,1,1]>(x, w) }"
    _, found = scored("wanda", text, Samples(x=x), w=w)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    power = np.zeros((4, 3, 3))
    for i in range(3):
        for j in range(3):
            seen = padded[:, :, i : i + 5, j : j + 6]
            power[:, i, j] = np.square(seen).mean(axis=(0, 2, 3))
    factors = np.concatenate([[power[:2]] * 3, [power[2:]] * 3])
    np.testing.assert_allclose(found(0), relative(w.astype(float) ** 2 * factors), rtol=1e-5)


def test_obs_is_the_error_after_the_others_made_up_for_it() -> None:
    x, w = correlated(100, 3, 6), random(6, 4)
    _, found = scored("obs", PRODUCT, Samples(x=x), w=w)
    rows = x.reshape(-1, 6).astype(np.float64)
    gram = rows.T @ rows / len(rows)
    gram += 1e-2 * np.trace(gram) / 6 * np.eye(6)
    costs = np.zeros((6, 4))
    for j in range(6):
        rest = [k for k in range(6) if k != j]
        explained = gram[j, rest] @ np.linalg.solve(gram[np.ix_(rest, rest)], gram[rest, j])
        costs[j] = w[j].astype(float) ** 2 * (gram[j, j] - explained)
    expected = relative(costs)
    np.testing.assert_allclose(found(0), expected, rtol=1e-4)


def test_inputs_that_are_always_zero_cost_nothing() -> None:
    x = correlated(30, 2, 6)
    x[..., 2] = 0
    for criterion in ("wanda", "obs"):
        _, found = scored(criterion, PRODUCT, Samples(x=x), w=random(6, 4))
        scores = found(0).reshape(6, 4)
        assert (scores[2] == 0).all()
        assert (np.delete(scores, 2, axis=0) > 0).all()


def test_a_shared_tensor_counts_all_its_uses() -> None:
    x, w = correlated(20, 1, 6), random(6, 6)
    text = "g (float[N,T,6] x) => (y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }"
    _, found = scored("wanda", text, Samples(x=x), w=w)
    hidden = np.maximum(x @ w, 0)
    power = sum(np.square(v.reshape(-1, 6), dtype=np.float64).mean(axis=0) for v in (x, hidden))
    np.testing.assert_allclose(found(0), relative(w.astype(float) ** 2 * power[:, None]), rtol=1e-4)


def test_recurrent_gates_and_states() -> None:
    x = correlated(30, 4, 1, 3)
    text = "g (float[T,1,3] x) => (y) { y = LSTM<hidden_size=5>(x, w, r) }"

    class Sequences(Samples):
        def __iter__(self) -> Iterator[Batch]:
            return iter([Batch({"x": each}) for each in x])

    layers, found = scored(
        "wanda", text, Sequences(x=x), w=random(1, 20, 3), r=random(1, 20, 5, seed=1)
    )
    assert not found.skipped
    power = np.square(x.reshape(-1, 3), dtype=np.float64).mean(axis=0)
    weight = layers[0].tensor.numpy().astype(float)
    np.testing.assert_allclose(found(0), relative(weight**2 * power), rtol=1e-5)
    assert found(1).std() > 0


def test_layers_that_cannot_be_measured_are_said() -> None:
    text = """g (float[N,6] x, bool c) => (y) {
        h = Einsum<equation="ni,io->no">(x, w)
        y = If(c) <then_branch = t () => (a) { a = MatMul(x, v) },
                   else_branch = e () => (b) { b = Identity(h) }> }"""
    data = Samples(x=correlated(20, 6), c=np.ones(20, bool))

    class Feeds(Samples):
        def __iter__(self) -> Iterator[Batch]:
            flag = np.array(True)
            return iter([Batch({"x": b.inputs["x"], "c": flag}) for b in Samples.__iter__(self)])

    data.__class__ = Feeds
    layers, found = scored("wanda", text, data, w=random(6, 6), v=random(6, 6, seed=1))
    assert {skip.subject for skip in found.skipped} == {"w", "v"}
    assert all("ordered by their size" in skip.reason for skip in found.skipped)
    weight = layers[0].tensor.numpy().reshape(-1)
    np.testing.assert_array_equal(np.argsort(found(0)), np.argsort(np.abs(weight)))


def test_inputs_with_nan_are_said() -> None:
    x = correlated(20, 2, 6)
    x[3, 0, 0] = np.nan
    _, found = scored("obs", PRODUCT, Samples(x=x), w=random(6, 4))
    assert "not finite" in found.skipped[0].reason
    assert np.isfinite(found(0)).all()


@pytest.mark.parametrize("criterion", ["wanda", "obs"])
def test_without_data_the_pass_says_what_to_give(criterion: Any) -> None:
    with pytest.raises(MissingDataError, match="--data smooth"):
        scored(criterion, PRODUCT, None, w=random(6, 4))
    model = model_from_text(PRODUCT, w=random(6, 4))
    with pytest.raises(MissingDataError, match="--data smooth"):
        Prune(criterion=criterion).requires(model, Context())


@pytest.mark.parametrize("criterion", ["wanda", "obs"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1x2", "row"])
def test_the_pass_takes_every_criterion_with_every_pattern(criterion: Any, pattern: str) -> None:
    model = model_from_text(PRODUCT, w=random(6, 4))
    given = Prune(criterion=criterion, pattern=pattern, sparsity=None, recover="none")
    outcome = given.apply(model, Context(dataset=Samples(x=correlated(20, 2, 6))))
    assert outcome.counts["zeros_after"] in {8, 12}
