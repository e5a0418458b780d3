"""Channel removal as a whole: targets, exactness, recovery, the guard, and what is said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import support

from converter.core import graph as g
from converter.core.context import Batch, Context
from converter.core.contract import Outcome
from converter.coupling.couple import couple
from converter.coupling.shapes import observe_shapes
from converter.errors import ParameterError
from converter.verification.budget import Budget
from passes.prune_channels import PruneChannels

sys.path.insert(0, str(Path(__file__).parent / "affine"))
from samples import InProcess

FIXTURES = Path(__file__).parents[2] / "fixtures"


class Images:
    """Calibration images."""

    synthetic = False
    description = "test images"

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray | None = None) -> None:
        self._name = name
        self._images = images
        self._labels = labels
        self.samples = len(images)

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Any:
        for i, image in enumerate(self._images):
            label = None if self._labels is None else self._labels[i : i + 1]
            yield Batch({self._name: image[None]}, label)


def net(seed: int = 0) -> ir.Model:
    """Two convolutions and a residual block, of which half is nearly dead."""
    rng = np.random.default_rng(seed)

    def conv(out: int, into: int, k: int) -> np.ndarray:
        return (rng.standard_normal((out, into, k, k)) / np.sqrt(into * k * k)).astype(np.float32)

    wide = conv(16, 8, 3)
    wide[8:] *= 0.01
    arrays = {
        "w1": conv(8, 3, 3),
        "b1": rng.standard_normal(8).astype(np.float32),
        "w2": wide,
        "b2": np.zeros(16, np.float32),
        "w3": conv(8, 16, 3),
        "b3": rng.standard_normal(8).astype(np.float32),
        "w4": (rng.standard_normal((8, 5)) / 3).astype(np.float32),
    }
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 3, 8, 8] x) => (float[N, 5] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
            r = Relu(a)
            c = Conv<pads = [1, 1, 1, 1]>(r, w2, b2)
            s = Relu(c)
            d = Conv<pads = [1, 1, 1, 1]>(s, w3, b3)
            e = Add(d, r)
            f = Relu(e)
            p = GlobalAveragePool(f)
            q = Flatten(p)
            y = MatMul(q, w4)
        }
    """
    return support.model_from_text(text, **arrays)


def context(model: ir.Model, count: int = 32) -> Context:
    images = np.random.default_rng(1).standard_normal((count, 3, 8, 8)).astype(np.float32)
    return Context(dataset=Images("x", images), services=InProcess())


def prune(model: ir.Model, given: Context, **parameters: Any) -> Outcome:
    return PruneChannels(**parameters).apply(model, given)


def trained() -> ir.Model:
    """Return the bundled residual network."""
    return ir.load(FIXTURES / "digits_resnet.onnx")


def digits() -> tuple[Images, dict[str, np.ndarray]]:
    """Return calibration images and labelled test images."""
    images = np.load(FIXTURES / "digits_calibration.npz")["image"]
    return Images("image", images), dict(np.load(FIXTURES / "digits_test.npz"))


def macs(model: ir.Model) -> int:
    return couple(model, observe_shapes(model, Context(services=InProcess()))).macs()


def largest_difference(old: ir.Model, new: ir.Model, feed: dict[str, np.ndarray]) -> float:
    first, second = support.run(old, feed), support.run(new, feed)
    return max(float(np.abs(first[n] - second[n]).max() / np.abs(first[n]).max()) for n in first)


def classes(model: ir.Model, test: dict[str, np.ndarray]) -> np.ndarray:
    (scores,) = support.run(model, {"image": test["image"]}).values()
    found: np.ndarray = scores.argmax(-1)
    return found


FEED = {"x": np.random.default_rng(7).standard_normal((4, 3, 8, 8)).astype(np.float32)}


def test_reaches_the_share_of_multiplications() -> None:
    model = net()
    before = macs(model)
    outcome = prune(model, context(model), flops=0.6)
    assert outcome.modified
    assert macs(model) <= 0.6 * before
    assert before - macs(model) == outcome.counts["macs_removed"]


@pytest.mark.parametrize("parameters", [{"params": 0.6}, {"sparsity": 0.5}])
def test_other_targets(parameters: dict[str, float]) -> None:
    model = net()
    before = model.clone()
    outcome = prune(model, context(model), **parameters)
    weights = [sum(t.size for t in g.tensors(m)) for m in (before, model)]
    assert outcome.modified
    assert weights[1] <= 0.6 * weights[0]


def test_takes_what_matters_least() -> None:
    model = net()
    original = model.clone()
    prune(model, context(model), sparsity=0.5, include=("c",), recover="none")
    # half of the inner channels is a hundredth of the others
    assert largest_difference(original, model, FEED) < 0.05
    shapes = {v.name: v.const_value.shape for v in model.graph.initializers.values()}
    assert list(shapes["w2"]) == [8, 8, 3, 3]


def test_recovery_brings_the_outputs_closer() -> None:
    errors = {}
    for recover in ("none", "bias", "moments", "least_squares"):
        model = net(1)
        original = model.clone()
        prune(model, context(model, 64), flops=0.5, recover=recover, criterion="l2")
        first, second = support.run(original, FEED)["y"], support.run(model, FEED)["y"]
        errors[recover] = float(np.square(first - second).mean() / first.var())
    assert errors["least_squares"] < 0.5 * errors["none"]
    assert errors["bias"] < errors["none"]


@pytest.mark.parametrize("recover", ["none", "auto"])
def test_dead_channels_go_without_any_change(recover: str) -> None:
    model = net()
    dead = g.constant_array(model.graph.initializers["w2"]).copy()
    dead[[1, 5, 9]] = 0
    g.set_constant(model.graph.initializers["w2"], dead)
    original = model.clone()
    kept = {n: v.const_value.numpy() for n, v in model.graph.initializers.items()}
    outcome = prune(model, context(model), recover=recover)
    assert outcome.counts["atoms_removed_exactly"] == 3
    assert largest_difference(original, model, FEED) < 1e-6
    left = model.graph.initializers["w2"].const_value.numpy()
    assert np.array_equal(left, np.delete(kept["w2"], [1, 5, 9], axis=0))
    assert np.array_equal(model.graph.initializers["w1"].const_value.numpy(), kept["w1"])


def test_without_a_target_nothing_lossy_happens() -> None:
    model = net()
    outcome = prune(model, context(model))
    assert not outcome.modified


def test_works_without_data() -> None:
    model = net()
    before = macs(model)
    outcome = prune(model, Context(services=InProcess()), flops=0.6)
    assert macs(model) <= 0.6 * before
    assert any("no samples were given" in note for note in outcome.notes)


def test_same_seed_same_bytes() -> None:
    made = []
    for _ in range(2):
        model = net()
        prune(model, context(model), flops=0.5)
        made.append(ir.to_proto(model).SerializeToString(deterministic=True))
    assert made[0] == made[1]


def test_says_how_far_it_got() -> None:
    model = net()
    outcome = prune(model, context(model), flops=0.01)
    assert any("not further" in note for note in outcome.notes)


def test_excluded_nodes_keep_their_channels() -> None:
    model = net()
    outcome = prune(model, context(model), flops=0.5, exclude=("a", "d"))
    assert list(model.graph.initializers["w1"].const_value.shape) == [8, 3, 3, 3]
    assert outcome.modified
    assert prune(net(), context(net()), flops=0.5, exclude=("typo",)).skipped[0].subject == "typo"


@pytest.mark.parametrize(
    "parameters", [{"flops": 0.5, "sparsity": 0.5}, {"round_to": "many"}, {"flops": 0.0}]
)
def test_refuses_what_makes_no_sense(parameters: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        PruneChannels(**parameters)


def test_stops_at_the_deepest_cut_inside_the_budget() -> None:
    model = trained()
    original = model.clone()
    data, test = digits()
    given = Context(
        dataset=data, services=InProcess(), budget=Budget.parse(["agreement>=0.97"]).limits
    )
    outcome = prune(model, given, flops=0.01, min_keep=0.0)
    assert any("stopped at the deepest cut" in note for note in outcome.notes)
    first, second = classes(original, test), classes(model, test)
    assert float((first == second).mean()) >= 0.95
    assert 0.01 < macs(model) / macs(original) < 0.95


def test_keeps_the_accuracy_of_a_trained_net_at_half_the_work() -> None:
    model = trained()
    original = model.clone()
    data, test = digits()
    prune(model, Context(dataset=data, services=InProcess()), flops=0.5)
    right = [float((classes(m, test) == test["labels"]).mean()) for m in (original, model)]
    assert right[1] >= right[0] - 0.03
