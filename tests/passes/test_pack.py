"""The pass pack: smaller files of which onnxruntime makes the same."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from support import model_from_text, run

from converter.core import graph as g
from converter.core.context import Context
from converter.core.forecast import Forecaster
from converter.core.packed import is_decoder, is_packed
from converter.data.sources import open_data
from converter.io.formats import load, save
from converter.io.sparsify import sparsified
from converter.pipeline.pipeline import Pipeline
from converter.pipeline.services import LocalServices
from passes import Pack, Prune, QuantizeWeights, Unpack


def _random(*shape, seed=0, zeros=0.0):
    rng = np.random.default_rng(seed)
    array = rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
    array[rng.random(shape) < zeros] = 0
    return array


def _net(zeros=0.8, opset=17, seed=0):
    return model_from_text(
        """net (float[N,8,12,12] x) => (float[N,10] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, first, bias)
            b = Relu (a)
            c = Conv <pads = [1, 1, 1, 1]> (b, second)
            d = GlobalAveragePool (c)
            e = Flatten (d)
            y = Gemm <transB = 1> (e, last, shift)
        }""",
        opset=opset,
        first=_random(32, 8, 3, 3, zeros=zeros, seed=seed),
        bias=_random(32, 1)[:, 0],
        second=_random(48, 32, 3, 3, zeros=zeros, seed=seed + 1),
        last=_random(10, 48, seed=seed + 2),
        shift=_random(10, 1)[:, 0],
    )


def _feed(seed=0):
    return {"x": np.random.default_rng(seed).standard_normal((2, 8, 12, 12)).astype(np.float32)}


def _context(model=None):
    dataset = None if model is None else open_data({"x": _feed()["x"]}, model)
    context = Context(dataset=dataset)
    context.services = LocalServices(context.settings)
    return context


def _size(model):
    return len(ir.to_proto(model).SerializeToString())


def _session(model, level):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    data = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("zeros", [0.5, 0.8, 0.95])
def test_zeros_take_no_place_and_every_bit_stays(zeros):
    model = _net(zeros)
    packed = model.clone()
    outcome = Pack().apply(packed, _context(model))
    assert outcome.modified
    assert _size(packed) < _size(model) * (1.02 - zeros + 0.14)
    for level in ("BASIC", "ALL"):
        old = _session(model, level).run(None, _feed())
        new = _session(packed, level).run(None, _feed())
        np.testing.assert_array_equal(old[0], new[0])
    assert any("proven" in note for note in outcome.notes)
    assert outcome.counts["bytes_after"] < outcome.counts["bytes_before"]


def test_nothing_of_a_decoder_is_left_when_the_file_is_open(tmp_path):
    from converter.execution.session import Session

    model = _net()
    Pack().apply(model, _context())
    ir.save(model, tmp_path / "m.onnx")
    for level in ("basic", True):
        Session(tmp_path / "m.onnx", optimize=level, optimized=tmp_path / "o.onnx")
        left = onnx.load(tmp_path / "o.onnx", load_external_data=False).graph.node
        assert not {"Gather", "CumSum", "ScatterElements", "Split", "Range"} & {
            node.op_type for node in left
        }


def test_sparse_tensors_of_a_file_are_packed_like_dense_ones(tmp_path):
    model = _net()
    made, _ = sparsified(model)
    save(made, tmp_path / "sparse.onnx")
    sparse = load(tmp_path / "sparse.onnx")
    outcome = Pack().apply(sparse, _context(model))
    assert not any("something else" in skip.reason for skip in outcome.skipped)
    assert _size(sparse) < 0.36 * _size(model)
    np.testing.assert_array_equal(run(model, _feed())["y"], run(sparse, _feed())["y"])


def test_a_second_run_changes_nothing_and_says_so():
    model = _net()
    Pack().apply(model, _context())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    outcome = Pack().apply(model, _context())
    assert not outcome.modified
    assert "packed already" in outcome.notes[0]
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_dense_weights_stay_and_it_says_what_rounding_would_bring():
    model = _net(zeros=0.0)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    outcome = Pack().apply(model, _context())
    assert not outcome.modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    text = " ".join(outcome.notes)
    assert "too few zeros" in text
    assert "values=int8" in text


@pytest.mark.parametrize(
    ("values", "share", "error"), [("float16", 0.45, 1e-3), ("int8", 0.3, 2e-2)]
)
def test_rounding_is_done_on_request_and_zeros_stay_zeros(values, share, error):
    # int8: a step is 1/127 of the largest weight of a row, so outputs move by about a percent
    model = _net(zeros=0.5)
    packed = model.clone()
    outcome = Pack(values=values).apply(packed, _context(model))
    assert _size(packed) < share * _size(model)
    assert any("rounded" in note for note in outcome.notes)
    old, new = run(model, _feed())["y"], run(packed, _feed())["y"]
    assert 0 < np.abs(old - new).max() < error * np.abs(old).max()
    Unpack().apply(packed, _context())
    for name in ("first", "second"):
        zeros = model.graph.initializers[name].const_value.numpy() == 0
        assert not packed.graph.initializers[name].const_value.numpy()[zeros].any()


def test_unpacking_brings_back_names_and_bits():
    model = _net()
    packed = model.clone()
    Pack().apply(packed, _context())
    assert is_packed(packed)
    outcome = Unpack(by="pack").apply(packed, _context())
    assert outcome.counts["constants_unpacked"] == 2
    assert not is_packed(packed)
    assert [n.op_type for n in packed.graph] == [n.op_type for n in model.graph]
    assert set(packed.graph.initializers) == set(model.graph.initializers)
    for name, value in model.graph.initializers.items():
        np.testing.assert_array_equal(
            packed.graph.initializers[name].const_value.numpy(), value.const_value.numpy()
        )


def test_packed_weights_are_unpacked_before_a_pass_that_looks_at_them():
    model = _net()
    Pack().apply(model, _context())
    done = Pipeline([Prune(sparsity=0.9), Pack()]).run(model, _context())
    assert [step.spec.split(":")[0] for step in done.steps] == ["unpack", "prune", "pack"]
    assert _size(done.model) < _size(model)


def test_integers_of_other_passes_are_packed_too():
    model = _net(zeros=0.8)
    QuantizeWeights(bits=8, block=0, symmetric=True).apply(model, _context())
    before, expected = _size(model), run(model, _feed())["y"]
    outcome = Pack().apply(model, _context())
    assert outcome.modified
    assert _size(model) < 0.6 * before
    np.testing.assert_array_equal(run(model, _feed())["y"], expected)


def test_constants_in_branches_are_packed():
    branches = {}
    for name in "wv":
        weight = numpy_helper.from_array(_random(64, 64, zeros=0.8), name)
        node = helper.make_node("MatMul", ["x", name], [f"{name}_out"])
        out = helper.make_tensor_value_info(f"{name}_out", onnx.TensorProto.FLOAT, ["N", 64])
        branches[name] = helper.make_graph([node], name, [], [out], [weight])
    choice = helper.make_node(
        "If", ["c"], ["y"], then_branch=branches["w"], else_branch=branches["v"]
    )
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [choice],
        "net",
        [info("x", onnx.TensorProto.FLOAT, ["N", 64]), info("c", onnx.TensorProto.BOOL, [])],
        [info("y", onnx.TensorProto.FLOAT, ["N", 64])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = ir.from_proto(proto)
    outcome = Pack().apply(model, _context())
    assert outcome.counts["constants_packed"] == 2
    assert _size(model) < 0.5 * proto.ByteSize()
    for c in (True, False):
        feed = {"x": _random(3, 64), "c": np.asarray(c)}
        np.testing.assert_array_equal(run(model, feed)["y"], run(proto, feed)["y"])


def test_what_callers_see_or_may_override_stays():
    model = model_from_text(
        """net (float[N,64] x, float[64,64] w) => (float[N,64] y, float[64,64] v) {
            a = MatMul (x, w)
            y = MatMul (a, v)
        }""",
        w=_random(64, 64, zeros=0.9),
        v=_random(64, 64, zeros=0.9),
    )
    outcome = Pack().apply(model, _context())
    assert not outcome.modified
    reasons = {skip.subject: skip.reason for skip in outcome.skipped}
    assert "override" in reasons["w"]
    assert "output" in reasons["v"]


def test_negative_zeros_that_masks_leave_count_as_zeros():
    model = _net(zeros=0.0)
    for name in ("first", "second"):
        value = model.graph.initializers[name]
        weight = value.const_value.numpy()
        g.set_constant(value, weight * (np.random.default_rng(0).random(weight.shape) < 0.2))
    assert np.signbit(model.graph.initializers["second"].const_value.numpy()).mean() > 0.4
    packed = model.clone()
    outcome = Pack().apply(packed, _context(model))
    assert outcome.counts["constants_packed"] == 2
    assert _size(packed) < 0.4 * _size(model)
    assert any("negative zeros of 2" in note for note in outcome.notes)
    np.testing.assert_array_equal(run(model, _feed())["y"], run(packed, _feed())["y"])


def test_the_sign_of_zeros_stays_where_more_than_products_read_it():
    model = model_from_text(
        """g (float[64,64] x) => (float[64,64] y) {
            a = MatMul (x, w)
            b = Div (one, w)
            y = Max (a, b)
        }""",
        w=np.where(_random(64, 64) > 0.1, 1.0, -0.0).astype(np.float32),
        one=np.float32(1),
    )
    outcome = Pack().apply(model, _context())
    assert not outcome.modified
    assert "negative zeros" in {skip.subject: skip.reason for skip in outcome.skipped}["w"]


def test_the_limit_on_loading_is_obeyed():
    model = _net()
    outcome = Pack(load=0.5).apply(model, _context())
    assert not outcome.modified
    assert any("load=" in skip.reason for skip in outcome.skipped)


@pytest.mark.parametrize(("opset", "ir_version"), [(7, 3), (9, 4)])
def test_an_old_opset_is_raised_unless_it_is_to_be_kept(opset, ir_version, tmp_path):
    source = ir.to_proto(_net(opset=opset))
    source.ir_version = ir_version
    if ir_version == 3:  # where every initializer was listed as an input
        info = helper.make_tensor_value_info
        source.graph.input.extend(
            info(t.name, t.data_type, list(t.dims)) for t in source.graph.initializer
        )
    onnx.save(source, tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    kept, raised = model.clone(), model.clone()
    outcome = Pack().apply(raised, _context())
    assert outcome.modified
    assert g.opset(raised) == 11
    assert f"opset {opset} was raised" in outcome.notes[0]
    np.testing.assert_array_equal(run(raised, _feed())["y"], run(source, _feed())["y"])
    context = _context()
    context.keep_opset = True
    outcome = Pack().apply(kept, context)
    assert not outcome.modified
    assert f"opset {opset} was to be kept" in outcome.notes[0]
    assert Pack(values="int8").apply(kept, context).modified  # needs nothing new
    assert g.opset(kept) == opset


def test_the_forecast_is_what_happens():
    model = _net()
    pass_ = Pack()
    assert isinstance(pass_, Forecaster)
    forecast = pass_.forecast(model)
    outcome = pass_.apply(model, _context())
    found = {saving.subject for saving in forecast.savings}
    decoded = {node.outputs[0].name for node in model.graph if is_decoder(node)}
    assert found == decoded
    saved = outcome.counts["bytes_before"] - outcome.counts["bytes_after"]
    assert forecast.saved == pytest.approx(saved, rel=0.05)  # an estimate, upper bounds inside


def test_stack_traces_of_an_exporter_go_unless_they_are_wanted():
    model = _net()
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.stack_trace"] = "File /home/me/model.py, line 3"
        node.metadata_props["mine"] = "kept"
    other = model.clone()
    Pack().apply(model, _context())
    Pack(traces="keep").apply(other, _context())
    texts = [ir.to_proto(m).SerializeToString() for m in (model, other)]
    assert b"stack_trace" not in texts[0]
    assert b"mine" in texts[0]
    assert b"stack_trace" in texts[1]


def test_names_count_as_much_as_numbers():
    name = "n" * 3000
    model = model_from_text(
        f"g (float[N,32] x) => (float[N,32] y) {{ y = MatMul (x, {name}) }}",
        **{name: _random(32, 32, zeros=0.5)},
    )
    size = _size(model)
    Pack().apply(model, _context())
    assert _size(model) <= size


def test_what_follows_from_the_rest_of_a_graph_goes_unless_it_is_wanted():
    model = _net()
    for node in model.graph:
        if node.op_type == "Conv":
            node.attributes["group"] = ir.AttrInt64("group", 1)
            node.attributes["auto_pad"] = ir.AttrString("auto_pad", "NOTSET")
    model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True))
    named = {value.name: value for node in model.graph for value in node.outputs}
    named["e"].shape = ir.Shape(["mine", 48])  # nobody else knows this name
    other = model.clone()
    outcome = Pack().apply(model, _context())
    Pack(traces="keep").apply(other, _context())
    small, large = ir.to_proto(model).graph, ir.to_proto(other).graph
    declared = [{info.name for info in graph.value_info} for graph in (small, large)]
    assert {"a", "b", "c", "d"} <= declared[1] - declared[0]
    assert {"e", "first", "second"} <= declared[0]  # not known otherwise, or not without decoding
    written = [{a.name for n in graph.node for a in n.attribute} for graph in (small, large)]
    assert {"group", "auto_pad"} <= written[1] - written[0]
    assert any("follow from the rest" in note for note in outcome.notes)
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True).graph
    shapes = {i.name: str(i.type) for i in inferred.value_info}
    known = {i.name: str(i.type) for i in large.value_info}
    assert {name: shapes[name] for name in "abcd"} == {name: known[name] for name in "abcd"}
    for name, array in run(model, _feed()).items():
        np.testing.assert_array_equal(array, run(other, _feed())[name])


def test_a_packed_model_stays_where_another_look_brings_little():
    nodes = " ".join(f"x{i + 1} = MatMul (x{i}, w{i})" for i in range(60))
    model = model_from_text(
        f"g (float[N,8] x0) => (float[N,8] x60) {{ {nodes} }}",
        **{f"w{i}": _random(8, 8, seed=i, zeros=0.5) for i in range(60)},
    )
    Pack(values="int8").apply(model, _context())
    assert is_packed(model)
    assert not Pack().apply(model, _context()).modified


def test_long_names_of_quantizers_become_short_and_others_stay():
    model = model_from_text(
        """net (float[N,8,12,12] x, float[1] long_scale_of_the_caller) => (float[N,64,10,10] y) {
            x_quantized = QuantizeLinear (x, long_scale_of_the_caller, x_zero_point)
            x_dequantized = DequantizeLinear (x_quantized, long_scale_of_the_caller, x_zero_point)
            w_dequantized = DequantizeLinear <axis = 0> (weights_quantized, weights_scale)
            y = Conv (x_dequantized, w_dequantized)
        }""",
        x_zero_point=np.asarray([3], np.uint8),
        weights_quantized=np.round(_random(64, 8, 3, 3, zeros=0.8) * 300).astype(np.int8),
        weights_scale=np.full(64, 0.0123, np.float32),
    )
    for node in model.graph:
        node.name = f"{node.outputs[0].name}_{node.op_type}"
    names = {value.name for value in model.graph.initializers.values()}
    twin = model.clone()
    Pack().apply(model, _context())
    assert {value.name for value in twin.graph.initializers.values()} == names  # shares tensors
    left = {v.name for node in model.graph for v in (*node.inputs, *node.outputs) if v is not None}
    assert {"x", "y", "long_scale_of_the_caller", "weights_quantized"} <= left
    assert not left & {"x_quantized", "w_dequantized", "weights_scale", "x_zero_point"}
    assert [node.name for node in model.graph if node.op_type == "Conv"] == ["y_Conv"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    feed = {**_feed(), "long_scale_of_the_caller": np.asarray([0.02], np.float32)}
    np.testing.assert_array_equal(run(model, feed)["y"], run(twin, feed)["y"])
