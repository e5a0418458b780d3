"""Damage by layer: held against models in which really only that layer was changed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support import model_from_text, run

import converter
from converter.core.context import RunSettings
from converter.data.sources import open_data
from converter.errors import MissingDataError, UsageError
from converter.measure.damage import DamageMeter, divergence
from converter.search.pairs import changed_layers, pair_values
from converter.search.sensitivity import examine
from converter.search.wiring import OTHER, read_wiring
from passes import Prune, Quantize

NET = """g (float[N,3,8,8] x) => (float[N,5] y) {
    [c1] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    [r1] a2 = Relu(a)
    [c2] b = Conv<pads=[1,1,1,1]>(a2, w2)
    [add] c = Add(a2, b)
    [c3] d = Conv<pads=[1,1,1,1]>(c, w3)
    [r3] d2 = Relu(d)
    [pool] e = GlobalAveragePool(d2)
    [flat] f = Flatten(e)
    [fc] y = Gemm<transB=1>(f, w4, b4)
}"""
QUANTIZE = "quantize:method=minmax,speed=max"
LAYERS = ("c1", "c2", "c3", "fc")


def net(seed: int = 0) -> ir.Model:
    draw = np.random.default_rng(seed).standard_normal
    shapes = {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (6, 6, 3, 3), "w3": (8, 6, 3, 3)}
    shapes |= {"w4": (5, 8), "b4": (5,)}
    weights = {
        n: (draw(s) / np.sqrt(np.prod(s[1:]) or 1)).astype(np.float32) for n, s in shapes.items()
    }
    weights["w3"][2] *= 40  # one channel makes the grid of the output coarse for all others
    return model_from_text(NET, **weights)


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((12, 3, 8, 8)).astype(np.float32)


def quantized(model: ir.Model, samples: np.ndarray, **selection: tuple[str, ...]) -> ir.Model:
    passes = [Quantize(method="minmax", speed="max", **selection)]
    return converter.convert(model, passes=passes, data={"x": samples}, verify=False).model


def loss(before: ir.Model, after: ir.Model, samples: np.ndarray) -> float:
    meter = DamageMeter()
    for sample in samples:
        feed = {"x": sample[None]}
        meter.update(run(before, feed), run(after, feed))
    return meter.result().loss


@pytest.fixture(scope="module")
def found(samples: np.ndarray) -> dict[str, object]:
    result = converter.sensitivity(
        net(), passes="quantize:method=minmax,speed=max", data={"x": samples}
    )
    return {layer.name: layer for layer in result.layers} | {"all": result}


@pytest.mark.parametrize("name", LAYERS)
def test_the_damage_of_one_layer_is_that_of_a_model_with_only_it(
    name: str, found: dict, samples: np.ndarray
) -> None:
    truth = loss(net(), quantized(net(), samples, include=(name,)), samples)
    # integer kernels round ties differently than the pair of nodes does in float: 5 %
    assert found[name].alone.loss == pytest.approx(truth, rel=0.05, abs=1e-7)
    assert found[name].alone.samples == 12


@pytest.mark.parametrize("name", ["c1", "c2"])
def test_all_but_one_is_that_of_a_model_without_it(
    name: str, found: dict, samples: np.ndarray
) -> None:
    whole = quantized(net(), samples)
    assert found["all"].whole.loss == pytest.approx(loss(net(), whole, samples), rel=0.05)
    truth = loss(net(), quantized(net(), samples, exclude=(name,)), samples)
    # integer kernels round ties differently than the pair of nodes does in float: 30 % of a
    # difference between two small numbers (c3 and fc take what is beside them along to float)
    assert found[name].all_but.loss == pytest.approx(truth, rel=0.3, abs=1e-6)


def test_layers_are_sorted_by_damage(found: dict) -> None:
    result = found["all"]
    losses = [layer.alone.loss for layer in result.layers]
    assert losses == sorted(losses, reverse=True)
    assert {layer.name for layer in result.layers} >= set(LAYERS)
    assert result.complete
    assert result.whole.measure == "KL"


def test_pruning_is_examined_too(samples: np.ndarray) -> None:
    result = converter.sensitivity(
        net(), passes="prune:sparsity=0.5,recover=none", data={"x": samples}
    )
    wanted = [layer.name for layer in result.layers]
    whole = converter.convert(net(), passes="prune:sparsity=0.5", verify=False).model
    assert wanted
    for layer in result.layers:
        weight = {"c1": "w1", "c2": "w2", "c3": "w3", "fc": "w4"}[layer.name]
        one = net()
        one.graph.initializers[weight].const_value = whole.graph.initializers[weight].const_value
        assert layer.alone.loss == pytest.approx(loss(net(), one, samples), rel=1e-3, abs=1e-9)


def test_float16_is_examined_too(samples: np.ndarray) -> None:
    result = converter.sensitivity(net(), passes="cast", data={"x": samples})
    assert {layer.name for layer in result.layers} >= set(LAYERS)
    assert all(layer.alone is not None and layer.alone.sqnr_db > 30 for layer in result.layers)


def test_nothing_changed_is_said(samples: np.ndarray) -> None:
    result = converter.sensitivity(net(), passes="deduplicate", data={"x": samples})
    assert not result.layers
    assert "changed nothing" in result.notes[-1]


def test_time_limit_gives_what_is_known(samples: np.ndarray) -> None:
    result = converter.sensitivity(
        net(), passes="quantize:method=minmax,speed=max", data={"x": samples}, time_limit=1e-6
    )
    assert not result.complete
    assert all(layer.alone is None for layer in result.layers)
    assert math.isfinite(result.whole.loss)
    assert any("time was up" in note for note in result.notes)


def test_labels_give_accuracy(samples: np.ndarray) -> None:
    labels = np.concatenate([run(net(), {"x": s[None]})["y"].argmax(-1) for s in samples])
    data = {"x": samples, "labels": labels}
    result = converter.sensitivity(net(), passes="quantize:method=minmax,speed=max", data=data)
    assert result.accuracy == 1.0
    for layer in result.layers:
        assert layer.alone.accuracy == pytest.approx(layer.alone.agreement)


def test_needs_samples_and_a_pass(samples: np.ndarray) -> None:
    with pytest.raises(MissingDataError, match="samples are needed"):
        converter.sensitivity(net())
    with pytest.raises(UsageError, match="no pass"):
        converter.sensitivity(net(), passes="", data={"x": samples})


BRANCHES = """g (float[N,4] x, bool flag) => (float[N,3] y) {
    [fc1] h = MatMul(x, w1)
    [if] k = If(flag) <
        then_branch = t () => (float[N,4] p) { p = Relu(h) },
        else_branch = e () => (float[N,4] q) { q = Add(h, h) }>
    [fc2] y = MatMul(k, w2)
}"""


def test_values_that_branches_take_from_outside(tmp_path: Path) -> None:
    draw = np.random.default_rng(2).standard_normal
    weights = {"w1": draw((4, 4)).astype(np.float32), "w2": draw((4, 3)).astype(np.float32)}
    model = model_from_text(BRANCHES, **weights)
    x = draw((9, 4)).astype(np.float32)
    data = [{"x": row[None], "flag": np.array(i % 2 == 0)} for i, row in enumerate(x)]
    result = converter.sensitivity(model, passes="prune:sparsity=0.5,scope=local", data=data)
    assert {layer.name for layer in result.layers} == {"fc1", "fc2"}
    for layer in result.layers:
        one = model.clone()
        whole = Prune(sparsity=0.5, scope="local")
        weight = {"fc1": "w1", "fc2": "w2"}[layer.name]
        other = converter.convert(model, passes=[whole], verify=False).model
        one.graph.initializers[weight].const_value = other.graph.initializers[weight].const_value
        meter = DamageMeter()
        for feed in data:
            meter.update(run(model, feed), run(one, feed))
        assert layer.alone.loss == pytest.approx(meter.result().loss, rel=1e-3, abs=1e-9)


def test_pieces_share_one_copy_of_the_weights(tmp_path: Path, samples: np.ndarray) -> None:
    settings = RunSettings(workspace=tmp_path)
    dataset = open_data({"x": samples}, net())
    examine(net(), quantized(net(), samples), dataset, settings=settings)
    assert not list(tmp_path.iterdir())


def test_pairs_know_where_a_float_may_enter(tmp_path: Path, samples: np.ndarray) -> None:
    for name, model in (("a", net()), ("b", quantized(net(), samples))):
        converter.save(model, tmp_path / f"{name}.onnx")
    a, b = read_wiring(tmp_path / "a.onnx"), read_wiring(tmp_path / "b.onnx", OTHER)
    pairs = pair_values(a, b)
    assert "a" not in pairs, "what comes before Relu is inside of the layer"
    assert pairs["a2"].end == f"{OTHER}a2_dequantized"
    assert pairs["a2"].entry == f"{OTHER}a"
    assert [layer.name for layer in changed_layers(a, b, pairs)][:2] == ["c1", "c2"]


def test_divergence_knows_probabilities_logits_and_embeddings() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]], np.float32)
    other = logits + np.array([[0.1, 0.0, 0.0]], np.float32)
    exact = (np.exp(v.astype(np.float64)) for v in (logits, other))
    p, q = (v / v.sum(-1, keepdims=True) for v in exact)
    expected = (p * np.log(p / q)).sum(-1)
    np.testing.assert_allclose(divergence(logits, other), expected, rtol=1e-4)
    np.testing.assert_allclose(divergence(p, q), expected, rtol=1e-4)
    unit = logits / np.linalg.norm(logits, axis=-1, keepdims=True)
    assert divergence(unit, unit) is None
    assert (
        divergence(np.zeros((2, 3, 4, 4), np.float32), np.zeros((2, 3, 4, 4), np.float32)) is None
    )


def test_sparse_weights_and_weights_with_defaults_that_are_fed(tmp_path: Path) -> None:
    """Initializers in other forms: sparse, and inputs whose default the samples replace."""
    w1 = np.zeros((4, 4), np.float32)
    w1[1, 2], w1[3, 0] = 2.0, -3.0
    sparse = onnx.SparseTensorProto(dims=[4, 4])
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(np.array([2.0, -3.0], np.float32), "w1"))
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(np.array([6, 12], np.int64), "i"))
    text = """g (float[N,4] x, float[4] b) => (float[N,3] y) {
        a = MatMul(x, w1)
        c = Add(a, b)
        y = MatMul(c, w2)
    }"""
    draw = np.random.default_rng(3).standard_normal
    proto = ir.to_proto(
        model_from_text(text, w2=draw((4, 3)).astype(np.float32), b=np.ones(4, np.float32))
    )
    proto.graph.sparse_initializer.append(sparse)
    onnx.save(proto, tmp_path / "first.onnx")
    graph = read_wiring(tmp_path / "first.onnx", fed=["b"])
    np.testing.assert_array_equal(graph.array("w1"), w1)
    assert set(graph.inputs) == {"x", "b"}
    assert graph.array("b") is None
