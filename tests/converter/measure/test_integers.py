"""What of a quantized model runs on integers, in the runtime's own graph and in the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support import model_from_text

import converter
from converter.cli.render import render
from converter.core.context import RunSettings
from converter.data.sources import open_data
from converter.measure.integers import count_integers, quantized
from converter.search.saturation import find_saturation, outside
from passes import Quantize

NET = """g (float[N,3,8,8] x) => (float[N,5] y) {
    [c1] a = Conv<pads=[1,1,1,1]>(x, w1)
    [r1] b = Relu(a)
    [c2] c = Conv<pads=[1,1,1,1]>(b, w2)
    [add] d = Add(b, c)
    [pool] e = GlobalAveragePool(d)
    [flat] f = Flatten(e)
    [fc] y = Gemm<transB=1>(f, w3)
}"""


def net() -> ir.Model:
    draw = np.random.default_rng(0).standard_normal
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (5, 8)}
    return model_from_text(NET, **{n: (draw(s) / 4).astype(np.float32) for n, s in shapes.items()})


SAMPLES = {"x": np.random.default_rng(1).standard_normal((8, 3, 8, 8)).astype(np.float32)}


def convert(tmp_path: Path, **parameters: object) -> converter.Artifact:
    passes = [Quantize(method="minmax", speed="max", **parameters)]
    return converter.convert(net(), tmp_path / "q.onnx", passes=passes, data=SAMPLES)


def test_every_layer_of_a_quantized_network_is_found_on_integers(tmp_path: Path) -> None:
    found = convert(tmp_path).report.proof.integers
    assert (found.layers, found.float_layers) == (3, 0)
    assert found.operators["QLinearConv"] == 2
    assert found.operators["QLinearAdd"] == 1
    assert found.left == ()
    assert found.conversions == 1, "the input; the last layer gives float by itself"


def test_layers_left_in_float_are_named_with_the_reason(tmp_path: Path) -> None:
    model = net()
    weight = model.graph.initializers["w2"]
    weight.const_value = ir.tensor(np.full((8, 8, 3, 3), np.inf, np.float32), name="w2")
    run = converter.convert(model, passes=[Quantize(method="minmax", speed="max")], data=SAMPLES)
    found = run.report.proof.integers
    assert found.float_layers == 2
    assert {layer.name for layer in found.left} == {"c2", "fc"}
    assert all("NaN or infini" in layer.reason for layer in found.left)


def test_float_models_have_no_proof(tmp_path: Path) -> None:
    assert not quantized(net())
    assert converter.convert(net(), passes="simplify").report.proof is None


def test_what_is_not_fused_is_said(tmp_path: Path) -> None:
    """A product of integers whose result is no integer: the runtime has nothing to fuse."""
    text = """g (float[N,3,8,8] x) => (float[N,8,8,8] y) {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        f = DequantizeLinear(w, s, i)
        y = Conv<pads=[1,1,1,1]>(d, f)
    }"""
    draw = np.random.default_rng(2).integers(-9, 9, (8, 3, 3, 3)).astype(np.int8)
    constants = {"w": draw, "s": np.float32(0.1), "z": np.uint8(128), "i": np.int8(0)}
    report = converter.convert(model_from_text(text, **constants), data=SAMPLES).report
    assert report.proof.integers.layers == 0
    assert report.proof.integers.float_layers == 1
    assert any("did not fuse" in note for note in report.notes)


def test_weights_that_become_float_again_are_no_failure(tmp_path: Path) -> None:
    """A quantized product beside a convolution of which the weight alone is stored as integers."""
    text = """g (float[N,3,8,8] x) => (float[N,8,8,8] y, uint8[N,3,8,8] q) {
        q = QuantizeLinear(x, s, z)
        f = Cast<to=1>(w)
        v = Mul(f, s)
        y = Conv<pads=[1,1,1,1]>(x, v)
    }"""
    draw = np.random.default_rng(2).integers(-9, 9, (8, 3, 3, 3)).astype(np.int8)
    model = model_from_text(text, w=draw, s=np.float32(0.1), z=np.uint8(128))
    report = converter.convert(model, data=SAMPLES).report
    assert report.proof.integers.float_layers == 1
    assert "weights alone are integers" in report.proof.integers.left[0].reason
    assert not any("did not fuse" in note for note in report.notes)


def test_low_bit_weights_count_as_layers(tmp_path: Path) -> None:
    text = """g (float[N,32] x) => (float[N,16] y) { y = MatMul(x, w) }"""
    draw = np.random.default_rng(3).standard_normal((32, 16)).astype(np.float32)
    model = model_from_text(text, opset=21, w=draw)
    assert count_of(model, tmp_path) == (0, 1)


def count_of(model: ir.Model, folder: Path) -> tuple[int, int]:
    path = converter.save(model, folder / "model.onnx")
    found = count_integers(model, path, settings=RunSettings())
    return found.layers, found.float_layers


def test_products_of_attention_are_no_layers(tmp_path: Path) -> None:
    text = """g (float[N,4,8] x) => (float[N,4,4] y) {
        h = MatMul(x, w)
        t = Transpose<perm=[0,2,1]>(h)
        y = MatMul(h, t)
    }"""
    draw = np.random.default_rng(4).standard_normal((8, 8)).astype(np.float32)
    assert count_of(model_from_text(text, w=draw), tmp_path) == (0, 1)


def test_saturation_is_the_share_of_the_originals_values_beyond_the_grid(tmp_path: Path) -> None:
    few = {"x": SAMPLES["x"][:1] * 0.3}
    quantized_model = converter.convert(
        net(), passes=[Quantize(method="minmax", speed="max")], data=few, verify=False
    ).model
    settings = RunSettings(workspace=tmp_path)
    shares = find_saturation(net(), quantized_model, open_data(SAMPLES, net()), settings=settings)
    # the input itself is no computed value; what the layers make of it is three times too large
    assert {"b", "c", "d"} <= shares.keys()
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert shares["d"] > 0.05
    same = find_saturation(net(), quantized_model, open_data(few, net()), settings=settings)
    assert same == {}
    assert outside(np.array([-1.0, 0.0, 2.0, 3.0]), (-0.5, 2.0)) == 2
    assert outside(np.zeros(0), (-0.5, 2.0)) == 0


def test_much_saturation_is_a_warning(tmp_path: Path) -> None:
    model = convert(tmp_path).model  # calibrated on these samples; run on larger ones
    larger = {"x": SAMPLES["x"] * 3}
    report = converter.convert(
        net(), passes=[Quantize(method="minmax", speed="max")], data=SAMPLES
    ).report
    assert not any("beyond the grid" in note for note in report.notes)
    from converter.report.proof import Case, prove

    path = converter.save(model, tmp_path / "m.onnx")
    case = Case(net(), model, path, (), open_data(larger, net()), None)
    proof = prove(case, RunSettings(workspace=tmp_path))
    assert any("lie beyond the grid" in note for note in proof.notes)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return convert(tmp_path_factory.mktemp("report"), exclude=("fc",)).report.to_dict()


def test_the_report_shows_it(report: dict) -> None:
    assert report["integers"]["layers"] == 2
    assert report["integers"]["left"][0]["name"] == "fc"
    words = render("conversion", report)
    assert "On integers in onnxruntime" in words
    assert "2 of 3" in words
    assert "QLinearConv 2" in words
    from converter.report.html_report import render as to_html

    assert "On integers in onnxruntime" in to_html(report)
