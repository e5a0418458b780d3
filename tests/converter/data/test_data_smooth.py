"""Smooth noise in the place of images, waves and sequences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from support import model_from_text, run

from converter.data.smooth import make_smooth
from converter.data.sources import open_data
from converter.errors import UsageError

CONV = "g (float[N,3,32,32] x) => (float[N,4,H,W] y) {{ {} y = Conv(n, w) }}"
WEIGHT = {"w": np.ones((4, 3, 3, 3), np.float32)}


def draw(model, **words):
    name = model.graph.inputs[0].name
    return np.concatenate([b.inputs[name] for b in make_smooth(model, **words)])


def conv(first, **constants):
    arrays = {k: np.array(v, np.float32) for k, v in constants.items()}
    return model_from_text(CONV.format(first), **WEIGHT, **arrays)


def octave_power(images):
    """Mean power per octave of the radial frequency."""
    power = (np.abs(np.fft.fft2(images)) ** 2).mean(axis=(0, 1))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32)))
    edges = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
    return [
        power[(frequency >= low) & (frequency < high)].sum()
        for low, high in itertools.pairwise(edges)
    ]


def test_images_have_about_equal_power_in_every_octave():
    images = draw(conv("n = Identity(x)"), batch=64, samples=128)
    assert images.shape == (128, 3, 32, 32)
    assert images.dtype == np.float32
    octaves = octave_power(images)
    # white noise: the last octave has 48 times the power of the first
    assert max(octaves) < 6 * min(octaves)
    neighbours = np.corrcoef(images[..., 1:].ravel(), images[..., :-1].ravel())[0, 1]
    assert 0.6 < neighbours < 0.95
    # as wide as the deviation of a mean over few independent places
    assert abs(images.mean()) < 0.1
    assert abs(images.std() - 1) < 0.15
    colours = np.corrcoef(images[:, 0].ravel(), images[:, 1].ravel())[0, 1]
    assert 0.88 < colours < 0.97


def test_images_have_shapes_with_edges():
    images = draw(conv("n = Identity(x)"), batch=64, samples=64)
    steps = np.abs(np.diff(images, axis=3)).ravel()
    # of normal numbers the 98 % quantile is 3.4 times the median; edges are rare and high
    assert np.quantile(steps, 0.98) > 6 * np.median(steps)


def test_same_seed_same_samples_and_iterated_again():
    model = conv("n = Identity(x)")
    dataset = make_smooth(model, samples=3, seed=5)
    assert dataset.synthetic
    assert "smooth noise" in dataset.description
    first, second = ([b.inputs["x"] for b in dataset] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, draw(model, samples=3, seed=6)[:, None])


def test_scaled_as_the_model_subtracts_and_divides():
    model = conv(
        "s = Sub(x, mean)  n = Div(s, std)",
        mean=np.reshape([10, 20, 30], (1, 3, 1, 1)),
        std=np.reshape([1, 2, 4], (3, 1, 1)),
    )
    images = draw(model, batch=64, samples=128)
    np.testing.assert_allclose(images.mean(axis=(0, 2, 3)), [10, 20, 30], atol=0.4)
    np.testing.assert_allclose(images.std(axis=(0, 2, 3)), [1, 2, 4], rtol=0.15)
    assert "as the model normalises" in make_smooth(model).description


def test_a_scale_alone_means_numbers_from_0_to_1():
    images = draw(conv("n = Mul(x, c)", c=1 / 255), batch=64, samples=64)
    assert 90 < images.mean() < 140
    assert 45 < images.std() < 85


def test_scaled_as_the_first_batch_normalization_expects():
    model = conv(
        "n = BatchNormalization(x, one, one, mean, variance)",
        one=[1, 1, 1], mean=[-5, 0, 5], variance=[4, 4, 100],
    )  # fmt: skip
    images = draw(model, batch=64, samples=128)
    np.testing.assert_allclose(images.mean(axis=(0, 2, 3)), [-5, 0, 5], atol=1)
    np.testing.assert_allclose(images.std(axis=(0, 2, 3)), [2, 2, 10], rtol=0.15)


def test_scaled_as_a_batch_normalization_behind_the_first_convolution_expects():
    rng = np.random.default_rng(0)
    kernels = rng.standard_normal((16, 3, 3, 3)).astype(np.float32)
    kernels[:4] += 0.5  # some that see the mean
    bias = rng.standard_normal(16).astype(np.float32)
    centre, scale = np.array([-3.0, 0, 2]), 5.0
    smooth = draw(conv("n = Identity(x)"), batch=64, samples=64, seed=9) * scale
    seen = smooth + centre.reshape(3, 1, 1)
    text = (
        "g (float[N,3,32,32] x) => (float[N,16,H,W] y)"
        "{ h = Conv(x, w, b)  y = BatchNormalization(h, g, g, m, v) }"
    )
    outputs = run(
        model_from_text("g (float[N,3,32,32] x) => (float[N,16,H,W] y) { y = Conv(x, w, b) }",
                        w=kernels, b=bias),
        {"x": seen.astype(np.float32)},
    )["y"]  # fmt: skip
    model = model_from_text(
        text, w=kernels, b=bias, g=np.ones(16, np.float32),
        m=outputs.mean(axis=(0, 2, 3)), v=outputs.var(axis=(0, 2, 3)),
    )  # fmt: skip
    dataset = make_smooth(model, batch=64, samples=128)
    assert "BatchNormalization" in dataset.description
    images = np.concatenate([b.inputs["x"] for b in dataset])
    # one deviation for all channels, from few samples
    np.testing.assert_allclose(images.std(axis=(0, 2, 3)), scale, rtol=0.25)
    np.testing.assert_allclose(images.mean(axis=(0, 2, 3)), centre, atol=0.25 * scale)


def test_pictures_of_bytes_are_told_by_the_biases_behind_the_first_convolution():
    rng = np.random.default_rng(1)
    kernels = rng.standard_normal((16, 3, 3, 3)).astype(np.float32) / 50
    bias = rng.standard_normal(16) - kernels.sum(axis=(2, 3)) @ [120, 110, 100]
    text = "g (float[N,3,32,32] x) => (float[N,16,H,W] y) { y = Conv(x, w, b) }"
    model = model_from_text(text, w=kernels, b=bias.astype(np.float32))
    dataset = make_smooth(model, batch=64, samples=128)
    assert "0 to 255" in dataset.description
    images = np.concatenate([b.inputs["x"] for b in dataset])
    np.testing.assert_allclose(images.mean(axis=(0, 2, 3)), [120, 110, 100], atol=25)
    np.testing.assert_allclose(images.std(axis=(0, 2, 3)), 64, rtol=0.15)
    small = model_from_text(text, w=kernels, b=bias.astype(np.float32) / 100)
    assert "deviation 1" in make_smooth(small).description


def test_mean_and_deviation_given_by_the_user():
    model = conv("n = Identity(x)")
    images = draw(model, batch=64, samples=128, mean=[1, 2, 3], std=[0.5])
    np.testing.assert_allclose(images.mean(axis=(0, 2, 3)), [1, 2, 3], atol=0.1)
    np.testing.assert_allclose(images.std(axis=(0, 2, 3)), 0.5, rtol=0.15)


def test_opened_by_name():
    model = conv("n = Identity(x)")
    dataset = open_data("smooth,mean=1/2/3,std=0.5", model, batch=8, samples=16)
    given = make_smooth(model, batch=8, samples=16, mean=[1, 2, 3], std=[0.5])
    for one, other in zip(dataset, given, strict=True):
        np.testing.assert_array_equal(one.inputs["x"], other.inputs["x"])
    assert open_data("smooth", model).samples == 256


@pytest.mark.parametrize("text", ["smooth,mean=a", "smooth,average=1", "smooth,mean", "smooth,"])
def test_options_that_are_none(text):
    with pytest.raises(UsageError, match="no option"):
        open_data(text, conv("n = Identity(x)"))


@pytest.mark.parametrize("words", [{"mean": [1, 2]}, {"std": [0]}, {"std": [np.nan]}])
def test_numbers_that_do_not_fit_are_refused(words):
    with pytest.raises(UsageError, match=next(iter(words))):
        make_smooth(conv("n = Identity(x)"), **words)


def test_images_with_channels_last_are_smooth_along_height_and_width():
    model = model_from_text(
        "g (float[N,16,16,3] x) => (float[N,4,14,14] y)"
        "{ t = Transpose<perm=[0,3,1,2]>(x)  y = Conv(t, w) }",
        **WEIGHT,
    )
    images = draw(model, batch=128, samples=128)
    down = np.corrcoef(images[:, 1:].ravel(), images[:, :-1].ravel())[0, 1]
    across = np.corrcoef(images[:, :, 1:].ravel(), images[:, :, :-1].ravel())[0, 1]
    assert min(down, across) > 0.5


def test_images_of_bytes():
    model = model_from_text(
        "g (uint8[N,3,32,32] x) => (float[N,4,30,30] y)"
        "{ f = Cast<to=1>(x)  n = Div(f, c)  y = Conv(n, w) }",
        c=np.float32(255), **WEIGHT,
    )  # fmt: skip
    images = draw(model, batch=32, samples=32)
    assert images.dtype == np.uint8
    assert 40 < images.std() < 85
    run(model, {"x": images[:1]})


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("g (float[N,1,400] x) => (float[N,4,398] y) { y = Conv(x, k) }", 2),
        ("g (float[N,400] x) => (float[N,4,398] y) { u = Unsqueeze(x, one)  y = Conv(u, k) }", 1),
        ("g (float[64,N,5] x) => (float[64,1,N,2] y) { y, h = GRU<hidden_size=2>(x, w, r) }", 0),
        ("g (float[N,64,5] x) => (float[N,64,5] y) { y = Relu(x) }", 1),
    ],
)
def test_waves_and_sequences_are_smooth_in_time(text, axis):
    model = model_from_text(
        text,
        k=np.ones((4, 1, 3), np.float32), one=np.array([1], np.int64),
        w=np.ones((1, 6, 5), np.float32), r=np.ones((1, 6, 2), np.float32),
    )  # fmt: skip
    batches = [b.inputs["x"] for b in make_smooth(model, batch=32, samples=32)]
    moved = np.moveaxis(batches[0], axis, 0)
    assert np.corrcoef(moved[1:].ravel(), moved[:-1].ravel())[0, 1] > 0.5


def test_what_is_no_signal_is_filled_as_before():
    text = (
        "g (int64[N,T] ids, int64[N,T] attention_mask) => (float[N,T,2] y, int64[N,T] m)"
        "{ y = Gather(table, ids)  m = Identity(attention_mask) }"
    )
    dataset = make_smooth(model_from_text(text, table=np.zeros((7, 2), np.float32)), samples=40)
    ids = np.concatenate([b.inputs["ids"] for b in dataset])
    assert (ids.min(), ids.max()) == (0, 6)
    assert all((b.inputs["attention_mask"] == 1).all() for b in dataset)
    assert "made up from the model's shapes" in dataset.description
    features = draw(model_from_text("g (float[N,20] x) => (float[N,20] y) { y = Relu(x) }"))
    assert features.shape == (4, 20)


def test_empty_inputs():
    model = model_from_text("g (float[0,3,9,9] x) => (float[0,3,9,9] y) { y = Relu(x) }")
    assert draw(model, samples=1).shape == (0, 3, 9, 9)


def test_small_images_and_no_batch():
    model = model_from_text(
        "g (float[1,3,5,2] x) => (float[1,4,3,1] y) { y = Conv<pads=[0,1,0,0]>(x, w) }", **WEIGHT
    )
    dataset = make_smooth(model, batch=16, samples=20)
    assert [b.samples for b in dataset] == [1] * 20
    assert next(iter(dataset)).inputs["x"].shape == (1, 3, 5, 2)
