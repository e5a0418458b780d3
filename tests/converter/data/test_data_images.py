"""A folder of images with an explicit preprocessing."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image
from support import model_from_text

from converter.data.images import parse
from converter.data.sources import open_data
from converter.errors import DataError, ParameterError

MODEL = model_from_text("g (float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Relu(x) }")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("b.png", (20, 10)), ("a.jpg", (12, 16)), ("c.PNG", (8, 8))):
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def test_preprocessing_by_hand(folder):
    how = "crop=8,mean=0.5/0.4/0.3,std=0.2/0.25/0.5"
    dataset = open_data(folder, MODEL, image=how, batch=2)
    assert (dataset.samples, [b.inputs["x"].shape for b in dataset]) == (
        3,
        [(2, 3, 8, 8), (1, 3, 8, 8)],
    )
    pixels = np.asarray(Image.open(folder / "b.png").crop((6, 1, 14, 9)), np.float32)
    expected = (pixels / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.5]
    found = next(iter(dataset)).inputs["x"][1]
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)


def test_options(folder):
    nhwc = model_from_text("g (float[N,8,8,3] x) => (float[N,8,8,3] y) { y = Relu(x) }")
    rgb = next(iter(open_data(folder, nhwc, image="resize=9,crop=8,layout=nhwc,scale=1")))
    bgr = next(iter(open_data(folder, nhwc, image="resize=9,crop=8,layout=nhwc,scale=1,color=bgr")))
    np.testing.assert_array_equal(rgb.inputs["x"][..., ::-1], bgr.inputs["x"])
    assert rgb.inputs["x"].max() > 1
    gray = model_from_text("g (uint8[1,1,8,8] x) => (uint8[1,1,8,8] y) { y = Identity(x) }")
    batches = list(open_data(folder, gray, image="resize=8/8,color=gray", samples=2))
    assert [b.inputs["x"].shape for b in batches] == [(1, 1, 8, 8)] * 2
    assert batches[0].inputs["x"].dtype == np.uint8


@pytest.mark.parametrize(
    "text",
    ["crop", "crop=0", "crop=a", "crop=1/2/3", "mean=1/2", "std=0", "layout=nwhc", "color=red",
     "resize=8,resize=9", "size=3", "scale=inf"],
)  # fmt: skip
def test_wrong_preprocessing(text):
    with pytest.raises(ParameterError, match=text.partition("=")[0]):
        parse(text)


def test_all_errors_at_once():
    with pytest.raises(ParameterError, match=r"did you mean 'resize'.*layout"):
        parse("resise=3,layout=x")


def test_what_does_not_work(folder):
    with pytest.raises(DataError, match="needs a preprocessing"):
        open_data(folder, MODEL)
    with pytest.raises(DataError, match="smaller than the crop"):
        open_data(folder, MODEL, image="crop=14")
    with pytest.raises(DataError, match="4, 4"):
        open_data(folder, MODEL, image="resize=4/4")
    (folder / "z.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"z\.png"):
        open_data(folder, MODEL, image="crop=8")


def test_without_pillow(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match="Pillow"):
        open_data(folder, MODEL, image="crop=8")
