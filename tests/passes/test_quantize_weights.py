import numpy as np
import onnx
import onnx_ir as ir
import pytest

from converter.core import graph as g
from converter.core.context import Context
from converter.data.sources import open_data
from converter.errors import MissingDataError, ParameterError
from converter.pipeline.services import LocalServices
from passes.encoding.choose import DATA_FREE, Form
from passes.quantize_weights import QuantizeWeights
from tests.passes.encoding import graphs
from tests.support import model_from_text, op_types

_RTN = {"method": "rtn"}


def _context(model=None, arrays=None, **fields):
    dataset = None if arrays is None else open_data(arrays, model)
    made = Context(dataset=dataset, **fields)
    made.services = LocalServices(made.settings)
    return made


def _apply(model, arrays=None, context=None, **parameters):
    context = context or _context(model, arrays)
    return QuantizeWeights(**parameters).apply(model, context)


def _error(expected, actual):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("level", ["off", "basic", "all"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", graphs.ALL)
@pytest.mark.parametrize("block", [0, 32])
def test_every_form_computes_with_the_numbers_that_were_chosen(level, bits, symmetric, name, block):
    model, feed = graphs.ALL[name]()
    before = graphs.outputs(model, feed)
    outcome = _apply(model, bits=bits, symmetric=symmetric, block=block, **_RTN)
    assert outcome.modified
    # 2 bits hold four numbers: an error of two thirds is what is expected of them.
    bound = {8: 0.01, 4: 0.15, 2: 0.8}[8 if name == "table" else bits]
    assert _error(before, graphs.outputs(model, feed, level)) < bound
    onnx.checker.check_model(ir.to_proto(model))


@pytest.mark.parametrize("opset", [7, 9, 10, 13, 20, 21, 23])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_old_opsets_decode_exactly_the_same_numbers(opset, bits):
    model, feed = graphs.conv(opset)
    weight = g.constant_array(model.graph.initializers["w"]).reshape(32, -1)
    form = Form(bits, 36, symmetric=False)
    numbers = DATA_FREE["rtn"](weight, form).numbers().reshape(32, 16, 3, 3)
    expected_model, _ = graphs.conv(opset)
    g.set_constant(expected_model.graph.initializers["w"], numbers)
    _apply(model, bits=bits, **_RTN)
    assert g.opset(model) == opset
    for level in ("off", "basic", "all"):
        expected = graphs.outputs(expected_model, feed, level)
        np.testing.assert_allclose(graphs.outputs(model, feed, level), expected, 1e-5, 1e-5)


@pytest.mark.parametrize(
    ("name", "fused"),
    [("matmul", "MatMulNBits"), ("gemm", "MatMulNBits"), ("conv", "Conv"), ("transposed", None)],
)
def test_onnxruntime_fuses_products_and_folds_the_rest(name, fused, tmp_path):
    model, _ = graphs.ALL[name]()
    _apply(model, **_RTN)
    graphs.session(model, "all", tmp_path / "o.onnx")
    left = {n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node}
    assert not left & {"DequantizeLinear", "Mul", "Cast", "Floor", "Reshape"}
    assert fused is None or fused in left


def test_a_weight_that_two_products_share_is_folded(tmp_path):
    model = model_from_text(
        "g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }",
        opset=21,
        w=graphs.random(0, 64, 64) * 0.1,
    )
    _apply(model, **_RTN)
    graphs.session(model, "all", tmp_path / "o.onnx")
    left = [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node]
    assert left == ["MatMul", "Relu", "MatMul"]


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Sigmoid", "Tanh"])
@pytest.mark.parametrize(
    ("rank", "body"),
    [
        (2, "a = MatMul(x, w) c = Add(a, b)"),
        (2, "c = Gemm(x, w, b)"),
        (2, "c = MatMul(x, w)"),
        (3, "a = MatMul(x, w) c = Add(a, b)"),
    ],
)
def test_activations_keep_no_dequantization_at_run_time(rank, body, activation, tmp_path):
    dims = "N,64" if rank == 2 else "N,5,64"
    model = model_from_text(
        f"g (float[{dims}] x) => (float[{dims}] y) {{ {body} y = {activation}(c) }}",
        opset=21,
        w=graphs.random(0, 64, 64) * 0.1,
        b=graphs.random(1, 64),
    )
    assert _apply(model, **_RTN).modified
    graphs.session(model, "all", tmp_path / "o.onnx")
    left = [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node]
    assert "DequantizeLinear" not in left
    assert rank == 2 or "MatMulNBits" in left


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("body", ["b = Relu(a)", "b = Clip(a, low, high)"])
@pytest.mark.parametrize("product", ["MatMul(x, w)", "Gemm(x, w)"])
def test_cut_off_products_keep_no_dequantization_between_others(product, body, bits, tmp_path):
    model = model_from_text(
        f"g (float[N,64] x) => (float[N,64] y) {{ a = {product} {body} y = MatMul(b, v) }}",
        opset=21,
        w=graphs.random(0, 64, 64) * 0.1,
        v=graphs.random(1, 64, 64) * 0.1,
        low=np.float32(0),
        high=np.float32(6),
    )
    assert _apply(model, bits=bits, **_RTN).modified
    graphs.session(model, "all", tmp_path / "o.onnx")
    left = [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node]
    assert "DequantizeLinear" not in left
    assert "MatMulNBits" in left


def test_products_of_older_opsets_are_raised_for_when_there_are_enough():
    model, feed = graphs.matmul(opset=13)
    before = graphs.outputs(model, feed)
    outcome = _apply(model, **_RTN)
    assert g.opset(model) == 21
    assert "DequantizeLinear" in op_types(model)
    assert any("raised to 21" in note for note in outcome.notes)
    assert _error(before, graphs.outputs(model, feed)) < 0.15
    kept, _ = graphs.matmul(opset=13)
    outcome = _apply(kept, context=_context(keep_opset=True), **_RTN)
    assert g.opset(kept) == 13
    assert any("to be kept" in note for note in outcome.notes)
    assert _error(before, graphs.outputs(kept, feed)) < 0.15


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [64, 72])
def test_nbits_storage_gives_the_same_numbers(bits, symmetric, columns):
    model, feed = graphs.matmul(columns, opset=13)
    weight = g.constant_array(model.graph.initializers["w"])
    form = Form(bits, 32, symmetric=symmetric)
    numbers = DATA_FREE["rtn"](weight.T, form).numbers().T
    _apply(model, bits=bits, symmetric=symmetric, storage="nbits", **_RTN)
    assert op_types(model) == ["MatMulNBits"]
    assert g.opset(model) == 13
    # Its activations are rounded to 8 bits as well.
    assert _error(feed["x"] @ numbers, graphs.outputs(model, feed)) < 0.015


def test_nbits_storage_of_a_gemm_keeps_its_bias():
    model, feed = graphs.gemm(opset=13)
    before = graphs.outputs(model, feed)
    _apply(model, bits=8, storage="nbits", **_RTN)
    assert op_types(model) == ["MatMulNBits", "Add"]
    assert _error(before, graphs.outputs(model, feed)) < 0.015


def _correlated(seed, count, *shape):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((shape[0], shape[0])) / 2
    x = rng.standard_normal((count, *shape[1:], shape[0])) @ mixing + 0.5
    return np.moveaxis(x, -1, 1).astype(np.float32)


@pytest.mark.parametrize(("group", "share"), [(1, 0.75), (4, 0.95), (16, 0.98)])
def test_gptq_keeps_the_outputs_of_convolutions_on_unseen_inputs(group, share):
    model, _ = graphs.conv(21, group)
    other, _ = graphs.conv(21, group)
    fresh = {"x": _correlated(1, 4, 16, 9, 9)}
    before = graphs.outputs(model, fresh)
    _apply(model, {"x": _correlated(0, 24, 16, 9, 9)}, method="gptq")
    _apply(other, **_RTN)
    gptq, rtn = (_error(before, graphs.outputs(m, fresh)) for m in (model, other))
    assert gptq < share * rtn  # few inputs per output: little to make up with


@pytest.mark.parametrize("name", ["matmul", "gemm", "lstm", "transposed"])
def test_gptq_helps_every_operator(name):
    model, feed = graphs.ALL[name]()
    other, _ = graphs.ALL[name]()
    shape = feed["x"].shape
    seen, fresh = (
        _correlated(seed, 512, *shape[1:]) if name != "lstm" else _steps(seed) for seed in (0, 1)
    )
    before = graphs.outputs(model, {"x": fresh})
    _apply(model, {"x": seen}, method="gptq")
    _apply(other, **_RTN)
    gptq, rtn = (_error(before, graphs.outputs(m, {"x": fresh})) for m in (model, other))
    assert gptq < 0.85 * rtn  # activations of fused products have 8 bits all the same


def _steps(seed):
    return _correlated(seed, 512, 16).reshape(256, 2, 16)


def test_later_layers_make_up_for_earlier_ones():
    text = """g (float[N,32] x) => (float[N,16] y) {
      a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Relu(c) y = MatMul(d, w3)
    }"""
    weights = {
        "w1": graphs.random(1, 32, 64) * 0.2,
        "w2": graphs.random(2, 64, 64) * 0.2,
        "w3": graphs.random(3, 64, 16) * 0.2,
    }
    x = _correlated(0, 400, 32)
    model = model_from_text(text, opset=21, **weights)
    before = graphs.outputs(model, {"x": x[200:]})
    outcome = _apply(model, {"x": x[:200]}, bits=4)
    after = graphs.outputs(model, {"x": x[200:]})
    plain = model_from_text(text, opset=21, **weights)
    _apply(plain, **_RTN)
    assert outcome.counts["weights_quantized"] == 3
    assert _error(before, after) < 0.75 * _error(before, graphs.outputs(plain, {"x": x[200:]}))


def test_pruned_zeros_stay_zero():
    for name in ("matmul", "conv"):
        model, feed = graphs.ALL[name]()
        value = model.graph.initializers["w"]
        weight = g.constant_array(value).copy()
        mask = np.random.default_rng(0).random(weight.shape) < 0.5
        weight[mask] = 0
        g.set_constant(value, weight)
        context = _context(model, {"x": np.repeat(feed["x"], 4, axis=0)})
        QuantizeWeights(method="gptq").apply(model, context)
        decoded = _decoded(model, name)
        assert not decoded[mask].any()
        assert decoded[~mask].any()


def _decoded(model, name):
    """Compute the weight that the operator reads."""
    node = next(n for n in model.graph if n.op_type == ("MatMul" if name == "matmul" else "Conv"))
    copy = model.clone()
    value = next(v for n in copy.graph for v in n.outputs if v.name == node.inputs[1].name)
    copy.graph.outputs.clear()
    copy.graph.outputs.append(value)
    shape = {"matmul": (1, 64), "conv": (1, 16, 9, 9)}[name]
    return graphs.outputs(copy, {"x": np.zeros(shape, np.float32)}, "off")


def test_a_bias_takes_up_the_means():
    model, _ = graphs.conv()
    before = g.constant_array(model.graph.initializers["b"]).copy()
    x = _correlated(0, 24, 16, 9, 9) + 3
    expected = graphs.outputs(model, {"x": x}).mean(axis=(0, 2, 3))
    _apply(model, {"x": x}, bits=2)
    assert not np.array_equal(before, g.constant_array(model.graph.initializers["b"]))
    means = graphs.outputs(model, {"x": x}).mean(axis=(0, 2, 3))
    # Positions are sampled, so means are met up to their own error.
    np.testing.assert_allclose(means, expected, rtol=0, atol=0.05)


def test_a_table_stays_integer_and_shared_ones_are_stored_once(tmp_path):
    model = model_from_text(
        """g (int64[A] x, int64[B] z) => (float[A,32] y, float[B,32] v) {
          y = Gather(w, x) v = Gather(w, z) }""",
        opset=13,
        w=graphs.random(0, 500, 32),
    )
    outcome = _apply(model, **_RTN)
    stored = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8]
    assert [tuple(v.shape.numpy()) for v in stored] == [(500, 32)]
    assert outcome.counts["weights_quantized"] == 1
    graphs.session(model, "all", tmp_path / "o.onnx")
    constants = onnx.load(tmp_path / "o.onnx").graph.initializer
    assert not [c.name for c in constants if c.data_type == 1 and np.prod(c.dims) > 1000]


def test_tables_of_four_bits_and_of_none():
    model, feed = graphs.table()
    before = graphs.outputs(model, feed)
    _apply(model, embedding="int4", **_RTN)
    assert _error(before, graphs.outputs(model, feed)) < 0.2  # sixteen numbers per row
    assert model.graph.initializers["w_quantized"].dtype == ir.DataType.UINT8
    kept, _ = graphs.table()
    assert not _apply(kept, embedding="none", **_RTN).modified


def test_half_precision_weights():
    model = model_from_text(
        "g (float16[N,16,9,9] x) => (float16[N,32,7,7] y) { y = Conv(x, w) }",
        opset=13,
        w=(graphs.random(0, 32, 16, 3, 3) * 0.1).astype(np.float16),
    )
    feed = {"x": graphs.random(1, 2, 16, 9, 9).astype(np.float16)}
    before = graphs.outputs(model, feed).astype(np.float32)
    assert _apply(model, **_RTN).modified
    assert _error(before, graphs.outputs(model, feed).astype(np.float32)) < 0.15


def test_weights_inside_branches_are_folded():
    model = model_from_text(
        """g (float[N,64] x, bool c) => (float[N,48] y) {
          y = If (c) <
            then_branch = t () => (float[N,48] p) { p = MatMul(x, w) },
            else_branch = e () => (float[N,48] q) { r = MatMul(x, w) q = Neg(r) }
          >
        }""",
        opset=21,
        w=graphs.random(0, 64, 48),
    )
    feed = {"x": graphs.random(1, 5, 64), "c": np.array(False)}
    before = graphs.outputs(model, feed)
    outcome = _apply(model, {"x": feed["x"], "c": np.zeros(5, bool)}, method="rtn")
    assert outcome.counts["weights_quantized"] == 1
    assert _error(before, graphs.outputs(model, feed)) < 0.15


def test_what_stays_is_said():
    model = model_from_text(
        """g (float[N,64] x) => (float[N,4] y) {
          a = MatMul(x, big) b = MatMul(a, small) c = MatMul(b, odd) y = Identity(c) }""",
        opset=21,
        big=graphs.random(0, 64, 64),
        small=graphs.random(0, 64, 4),
        odd=np.full((4, 4), np.nan, np.float32),
    )
    outcome = _apply(model, exclude=("op:Gather",), **_RTN)
    reasons = {s.reason for s in outcome.skipped}
    assert "too small: the file would not shrink" in reasons
    assert "matches no node" in reasons


def test_weights_with_nan_stay():
    model, _ = graphs.matmul()
    weight = g.constant_array(model.graph.initializers["w"]).copy()
    weight[0, 0] = np.nan
    g.set_constant(model.graph.initializers["w"], weight)
    outcome = _apply(model, **_RTN)
    assert not outcome.modified
    assert {s.reason for s in outcome.skipped} == {"the weight holds NaN or infinity"}


def test_a_second_run_changes_nothing_and_two_runs_give_equal_bytes():
    made = []
    for _ in range(2):
        model, feed = graphs.conv()
        _apply(model, {"x": np.repeat(feed["x"], 8, axis=0)}, method="gptq")
        made.append(ir.to_proto(model).SerializeToString(deterministic=True))
    assert made[0] == made[1]
    assert not _apply(model, **_RTN).modified


def test_all_zero_weights_and_constant_inputs():
    model, feed = graphs.matmul()
    g.set_constant(model.graph.initializers["w"], np.zeros((64, 48), np.float32))
    _apply(model, {"x": np.zeros((4, 64), np.float32)}, method="gptq")
    assert not graphs.outputs(model, feed).any()
    model, feed = graphs.matmul()
    before = graphs.outputs(model, feed)
    _apply(model, {"x": np.zeros((4, 64), np.float32)}, method="gptq")
    assert _error(before, graphs.outputs(model, feed)) < 0.15


def test_gptq_without_data_is_refused_and_so_are_odd_widths():
    model, _ = graphs.matmul()
    with pytest.raises(MissingDataError, match="gptq"):
        _apply(model, method="gptq")
    with pytest.raises(ParameterError):
        QuantizeWeights(bits=3)


def test_without_data_the_error_of_weights_is_less_than_that_of_rounding_to_nearest():
    weight = graphs.random(0, 48, 64)
    errors = {
        name: _error(weight, choose(weight, Form(4, 32, symmetric=True)).numbers())
        for name, choose in DATA_FREE.items()
    }
    assert errors["hqq"] < errors["rtn"]
    assert errors["least_error"] < errors["rtn"]
    x = np.abs(graphs.random(1, 200, 64))  # as after Relu
    sums = {
        name: _error(x @ weight.T, x @ choose(weight, Form(4, 32, symmetric=False)).numbers().T)
        for name, choose in DATA_FREE.items()
    }
    assert sums["least_error"] < 0.9 * sums["rtn"]
    for method in ("auto", "hqq"):
        model, feed = graphs.matmul()
        before = graphs.outputs(model, feed)
        _apply(model, method=method)
        assert _error(before, graphs.outputs(model, feed)) < 0.15


def test_a_weight_with_very_long_rows_is_rounded_without_its_inputs():
    rng = np.random.default_rng(0)
    model = model_from_text(
        "g (float[N,6400] x) => (float[N,8] y) { y = MatMul(x, w) }",
        w=rng.normal(size=(6400, 8)).astype(np.float32),
    )
    samples = rng.normal(size=(8, 6400)).astype(np.float32)
    outcome = _apply(model, {"x": samples})
    assert any("samples: 0; without: 1" in note for note in outcome.notes)
