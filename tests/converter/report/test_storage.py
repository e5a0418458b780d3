"""Packed weights are recognised by what decodes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support import model_from_text

import converter
from converter.cli.render import render
from converter.core import registry
from converter.core.forecast import Forecast, Saving
from converter.core.graph import footprint
from converter.errors import ParameterError, UnknownPassError
from converter.report import decoded, inspection
from converter.report.inspection import forecast_packing, inspect_model
from converter.report.report import FileFacts
from converter.report.storage import packed

NET = Path(__file__).parents[3] / "fixtures" / "digits_resnet.onnx"
CODES = np.random.default_rng(0).integers(-3, 4, (16, 8)).astype(np.int8)
SCALE = np.full((1, 8), 0.1, np.float32)


def scaled() -> ir.Model:
    return model_from_text(
        "g (float[N,16] x) => (float[N,8] y) "
        "{ f = Cast <to=1> (codes) w = Mul (f, scale) y = MatMul (x, w) }",
        codes=CODES,
        scale=SCALE,
    )


def test_integers_with_a_scale() -> None:
    (found,) = packed(scaled())
    assert (found.names, found.form, found.kinds) == (("w",), "Cast, Mul", ("int8",))
    assert (found.elements, found.nbytes) == (128, 128 + 32)
    assert found.zeros == int((CODES == 0).sum())


def test_dequantized_integers_count_the_zero_point_as_zero() -> None:
    model = model_from_text(
        "g (float[N,16] x) => (float[N,8] y) "
        "{ w = DequantizeLinear (codes, scale, zero) y = MatMul (x, w) }",
        codes=(CODES + 4).astype(np.uint8),
        scale=np.float32(0.1),
        zero=np.uint8(4),
    )
    found = inspect_model(model)
    assert [(one.form, one.zeros) for one in found.packed] == [
        ("DequantizeLinear", int((CODES == 0).sum()))
    ]
    assert found.zeros == pytest.approx((CODES == 0).mean())
    assert found.largest[0].zeros == pytest.approx((CODES == 0).mean())


def test_a_palette_and_a_half() -> None:
    model = model_from_text(
        "g (float[N,16] x) => (float[N,8] y) "
        "{ w = Gather (table, places) h = Cast <to=1> (half) a = MatMul (x, w) y = Add (a, h) }",
        table=np.linspace(-1, 1, 4, dtype=np.float32),
        places=(CODES & 3).astype(np.int64),
        half=np.ones((16, 8), np.float16),
    )
    found = inspect_model(model)
    assert [one.form for one in found.packed] == ["palette", "Cast"]
    assert next(t for t in found.weights if t.name == "places").zeros is None
    assert found.zeros == 0.0


def test_a_mask_tells_its_zeros_and_decoders_that_share_are_one() -> None:
    weight = np.zeros((16, 16), np.float32)
    weight[:, ::4] = 1.5
    mask = np.packbits(weight.reshape(-1) != 0)
    model = model_from_text(
        "g (float[N,16] x) => (float[N,8] y, float[N,8] z) {"
        " bits = Gather (table, mask)"  # stands for a decoder: only its operators matter
        " flat = Reshape (bits, long) sum = CumSum (flat, axis) one = Sub (sum, step)"
        " all = Gather (values, one) both = Reshape (all, square)"
        " a, b = Split <axis=1> (both, halves) y = MatMul (x, a) z = MatMul (x, b) }",
        table=np.zeros((256, 8), np.int64),
        mask=mask,
        long=np.array([256], np.int64),
        axis=np.int64(0),
        step=np.int64(1),
        values=weight[weight != 0],
        square=np.array([16, 16], np.int64),
        halves=np.array([8, 8], np.int64),
    )
    for value in model.graph:
        for output in value.outputs:
            if output.name in {"a", "b"}:
                output.shape = ir.Shape([16, 8])
    (found,) = packed(model)
    assert (found.form, found.names, found.elements) == ("bitmask", ("a", "b"), 256)
    assert found.zeros == int((weight == 0).sum())


def test_blocks_of_four_bits() -> None:
    model = model_from_text(
        '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
        "g (float[N,64] x) => (float[N,8] y)"
        "{ y = com.microsoft.MatMulNBits <K=64, N=8, bits=4, block_size=32> (x, b, s) }",
        b=np.zeros((8, 2, 16), np.uint8),
        s=np.ones((16,), np.float32),
    )
    (found,) = packed(model)
    assert (found.form, found.elements, found.nbytes) == ("MatMulNBits", 512, 256 + 64)
    assert inspect_model(model).zeros is None


@pytest.mark.parametrize(
    ("passes", "pattern"), [("pack:values=int8", "unstructured"), ("pack", "2:4")]
)
def test_packed_weights_show_the_zeros_and_patterns_that_they_had(
    passes: str, pattern: str
) -> None:
    share = "0.5" if pattern == "2:4" else "0.8"
    pruned = converter.convert(
        NET, passes=f"prune:sparsity={share},pattern={pattern}", verify=False
    ).model
    small = converter.convert(pruned, passes=passes, verify=False).model
    before, after = inspect_model(pruned), inspect_model(small)
    assert after.packed
    assert after.tensor_bytes < 0.7 * before.tensor_bytes
    used = {t.name: t for one in after.packed for t in one.tensors}
    known = {t.name: t for t in before.weights if t.name in used}
    assert len(known) >= 4
    for name, was in known.items():
        now = used[name]
        assert (now.shape, now.pattern) == (was.shape, was.pattern)
        assert now.zeros == pytest.approx(was.zeros, abs=0.05)  # int8 rounds small ones to zero
    assert after.zeros is not None
    assert after.zeros == pytest.approx(before.zeros, abs=0.05)
    assert after.packing is not None
    assert "packed already" in after.packing.notes[0]
    shown = render("inspection", after.to_dict())
    assert "Packed weights as they are used" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert pattern in shown


def test_what_is_too_large_or_cannot_run_stays_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "MOST_BYTES", 100)
    model = model_from_text(
        "g (float[N,16] x) => (float[N,8] y) { w = Gather (t, p) y = MatMul (x, w) }",
        t=np.linspace(-1, 1, 4, dtype=np.float32),
        p=(CODES & 3).astype(np.int64),
    )
    assert inspect_model(model).packed[0].zeros is None
    monkeypatch.setattr(decoded, "MOST_BYTES", 10_000)
    assert inspect_model(model).packed[0].zeros == 0
    broken = model_from_text(
        "g (float[N,16] x) => (float[N,8] y) { w = Gather (t, p) y = MatMul (x, w) }",
        t=np.linspace(-1, 1, 4, dtype=np.float32),
        p=np.full((16, 8), 9, np.int64),
    )
    assert inspect_model(broken).packed[0].zeros is None
    bomb = model_from_text(
        "g (float[N,16] x) => (float[16,16] y) { v = Gather (t, p) w = Expand (v, s) "
        "m = MatMul (x, w) y = Identity (m) }",
        t=np.linspace(-1, 1, 4, dtype=np.float32),
        p=(CODES & 3).astype(np.int64),
        s=np.array([1 << 30, 16, 8], np.int64),
    )
    assert inspect_model(bomb).packed[0].zeros is None  # its shape is not known, nothing is run


def test_arithmetic_on_shapes_is_no_packed_weight() -> None:
    model = model_from_text(
        "g (float[4,4] x) => (float[16] y) { s = Mul (a, b) y = Reshape (x, s) }",
        a=np.array([4], np.int64),
        b=np.array([4], np.int64),
    )
    assert packed(model) == []
    turned = model_from_text(
        "g (float[N,16] x) => (float[N,8] y) { w = Transpose (v) y = MatMul (x, w) }",
        v=np.zeros((8, 16), np.float32),
    )
    assert packed(turned) == []
    assert inspect_model(turned).zeros == 1.0


class _Packs:
    def forecast(self, model: ir.Model) -> Forecast:
        return Forecast((Saving("w", "bitmask", 1000, 300),), ("a note",))


class _Fails:
    def forecast(self, model: ir.Model) -> Forecast:
        raise ParameterError("no luck")


class _Silent:
    pass


def test_what_packing_would_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "get", lambda name: {"pack": _Packs}[name])
    found = inspect_model(scaled()).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["packing"]["saved"] == 700
    assert inspect_model(scaled(), packing=False).packing is None
    monkeypatch.setattr(inspection, "UNASKED_BYTES", 10)
    assert inspect_model(scaled()).packing is None
    assert inspect_model(scaled(), packing=True).packing is not None


def test_a_pass_that_cannot_tell_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "get", lambda _: _Silent)
    assert forecast_packing(scaled()) is None
    monkeypatch.setattr(registry, "get", lambda _: _Fails)
    found = forecast_packing(scaled())
    assert found is not None
    assert "no luck" in found.notes[0]

    def missing(_: str) -> type:
        raise UnknownPassError("no pass")

    monkeypatch.setattr(registry, "get", missing)
    assert forecast_packing(scaled()) is None


def test_parameters_are_what_layers_compute_with() -> None:
    model = scaled()
    assert footprint(model).parameters == 128 + 8
    assert inspect_model(model).parameters == 128
    assert FileFacts.of(model, ()).footprint.parameters == 128
    plain = converter.load(NET)
    assert inspect_model(plain).parameters == footprint(plain).parameters
