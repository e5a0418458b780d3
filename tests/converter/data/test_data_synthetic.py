"""Inputs made up from the model's shapes."""

from __future__ import annotations

import numpy as np
import pytest
from support import model_from_text, run

from converter.data.sources import open_data
from converter.errors import DataError, LimitExceededError


def batches(text, **words):
    return list(open_data("synthetic", model_from_text(text), **words))


TEXT = "g (float[N,3,H,W] x, int64[N,T] i) => (float[N,3,H,W] y) { y = Relu(x) }"


def test_shapes_and_seed():
    first, second = batches(TEXT, seed=3), batches(TEXT, seed=3)
    assert first[0].inputs["x"].shape == (1, 3, 224, 224)
    assert first[0].inputs["i"].shape == (1, 8)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.inputs["x"], b.inputs["x"])
    assert not np.array_equal(first[0].inputs["x"], first[1].inputs["x"])
    assert not np.array_equal(first[0].inputs["x"], batches(TEXT, seed=4)[0].inputs["x"])


def test_batch_and_samples():
    model = model_from_text("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    dataset = open_data("synthetic", model, batch=4, samples=6)
    assert dataset.synthetic
    assert [b.samples for b in dataset] == [4, 2]
    assert "made up" in dataset.description


def test_token_ids_stay_inside_their_table():
    model = model_from_text(
        "g (int64[N,T] ids, int64[N,T] attention_mask) => (float[N,T,2] y, int64[N,T] m)"
        "{ cut = Cast<to=6>(ids)  y = Gather(table, cut)  m = Identity(attention_mask) }",
        table=np.zeros((5, 2), np.float32),
    )
    dataset = open_data("synthetic", model, samples=50)
    ids = np.concatenate([b.inputs["ids"] for b in dataset])
    assert ids.min() == 0
    assert ids.max() == 4
    assert all((b.inputs["attention_mask"] == 1).all() for b in dataset)
    run(model, next(iter(dataset)).inputs)


def test_sums_of_dimensions():
    text = "g (float[1,past] p, float[1,cur] c, bool[1,D] m) => (float[1,past] y) { y = Relu(p) }"
    model = model_from_text(text)
    import onnx_ir as ir

    model.graph.inputs[2].shape = ir.Shape([1, "past + cur + 1"])
    assert next(iter(open_data("synthetic", model))).inputs["m"].shape == (1, 512 + 512 + 1)


@pytest.mark.parametrize("kind", ["float16", "double", "int8", "uint8", "bool", "string", "int4",
                                  "bfloat16", "uint64"])  # fmt: skip
def test_every_element_type(kind):
    found = batches(f"g ({kind}[N,4] x) => ({kind}[N,4] y) {{ y = Identity(x) }}")
    array = found[0].inputs["x"]
    assert array.shape[0] == 1
    assert (
        array.dtype
        == open_data(
            {"x": array},
            model_from_text(f"g ({kind}[N,4] x) => ({kind}[N,4] y) {{ y = Identity(x) }}"),
        )
        .cuts[0]
        .port.dtype
    )


def test_no_inputs_and_too_large_inputs():
    assert [
        dict(b.inputs) for b in batches("g () => (float y) { y = Constant<value=float {1}>() }")
    ]
    with pytest.raises(LimitExceededError, match="bytes"):
        batches("g (float[100000,100000] x) => (float[100000,100000] y) { y = Relu(x) }")


def test_sequences_are_refused():
    with pytest.raises(DataError, match="no tensor"):
        batches("g (seq(float[2]) x) => (int64 y) { y = SequenceLength(x) }")


@pytest.mark.parametrize(
    ("inputs", "node", "weight", "shape"),
    [
        ("float[N,C,H,W] x", "Conv(x, w)", (6, 5, 3, 3), (1, 5, 224, 224)),
        ("float[N,C,H,W] x", "Conv<group=2>(x, w)", (6, 5, 3, 3), (1, 10, 224, 224)),
        ("float x", "Relu(x)", (1,), ()),
        ("float[N,K] x", "MatMul(x, w)", (7, 2), (1, 7)),
        ("float[N,K] x", "Gemm<transB=1>(x, w)", (7, 2), (1, 2)),
    ],
)
def test_open_dimensions_follow_the_weights(inputs, node, weight, shape):
    model = model_from_text(
        f"g ({inputs}) => (float[M] y) {{ y = {node} }}", w=np.zeros(weight, np.float32)
    )
    assert next(iter(open_data("synthetic", model))).inputs["x"].shape == shape
    model.graph.inputs[0].shape = None
    dataset = open_data("synthetic", model)
    if shape:
        assert next(iter(dataset)).inputs["x"].ndim == len(shape)
