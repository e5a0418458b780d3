"""Channel removal as a whole: what goes exactly, and what is fitted on without samples."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from support import assert_same_outputs, model_from_text, run

sys.path.insert(0, str(Path(__file__).parents[1] / "affine"))
from samples import InProcess

from converter.core.context import Context
from converter.core.graph import constant_array
from passes.prune_channels import PruneChannels

TEXT = (
    "g (float[N,3,16,16] x) => (float[N,5] y) {"
    " h = Conv<pads=[1,1,1,1]>(x, a)  n = BatchNormalization(h, s, t, m, v)  r = Relu(n)"
    " i = Conv<pads=[1,1,1,1]>(r, b, c)  u = Relu(i)  p = GlobalAveragePool(u)"
    " f = Flatten(p)  y = Gemm(f, d) }"
)


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def network():
    """Two convolutions; channels 2 and 5 of the first are dead, 3 of the second reads nothing."""
    a, b, c, t = draw(8, 3, 3, 3), draw(12, 8, 3, 3), draw(12), draw(8)
    mean = np.array([1.0, -2, 0.5]) @ a.sum(axis=(2, 3)).T
    power = 4 * (a.astype(float) ** 2).sum(axis=(1, 2, 3))
    mean[[2, 5]], a[[2, 5]], t[[2, 5]], b[3], c[3] = 0, 0, -1, 0, -1
    norm = {"s": np.abs(draw(8)) + 0.5, "t": t, "m": mean, "v": power}
    arrays = {"a": a, "b": b, "c": c, "d": draw(12, 5), **norm}
    return model_from_text(TEXT, **{k: v.astype(np.float32) for k, v in arrays.items()})


def feed():
    return {"x": draw(4, 3, 16, 16)}


@pytest.mark.parametrize("words", [{}, {"sparsity": 0.0}])
def test_dead_channels_go_and_outputs_stay(words):
    model = network()
    before = model.clone()
    outcome = PruneChannels(recover="none", **words).apply(model, Context(services=InProcess()))
    assert outcome.counts["atoms_removed_exactly"] == 3
    assert any("removed exactly" in note for note in outcome.notes)
    assert_same_outputs(before, model, feed())
    shapes = [constant_array(n.inputs[1]).shape for n in model.graph if n.op_type == "Conv"]
    assert shapes == [(6, 3, 3, 3), (11, 6, 3, 3)]
    # what stays is untouched
    kept = np.delete(constant_array(before.graph.initializers["a"]), [2, 5], 0)
    first = next(n for n in model.graph if n.op_type == "Conv")
    np.testing.assert_array_equal(constant_array(first.inputs[1]), kept)


def test_without_samples_the_normalizations_scale_the_noise():
    model = network()
    before = model.clone()
    outcome = PruneChannels(flops=0.6).apply(model, Context(services=InProcess()))
    said = " ".join(outcome.notes)
    assert "no samples were given" in said
    assert "as the first BatchNormalization expects" in said
    old, new = run(before, feed())["y"], run(model, feed())["y"]
    assert new.shape == old.shape
    assert outcome.modified
