import numpy as np
import onnx
import onnx_ir as ir
import pytest

from converter.core import graph as g
from converter.core.context import Context
from converter.data.sources import open_data
from converter.pipeline.services import LocalServices
from passes.cluster_weights import ClusterWeights
from passes.encoding.choose import Form, least_error
from passes.encoding.cluster import cluster
from passes.encoding.inputs import Inputs
from tests.passes.encoding import graphs


def _apply(model, arrays=None, **parameters):
    dataset = None if arrays is None else open_data(arrays, model)
    context = Context(dataset=dataset)
    context.services = LocalServices(context.settings)
    return ClusterWeights(**parameters).apply(model, context)


def _error(expected, actual):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("level", ["off", "basic", "all"])
@pytest.mark.parametrize("per", ["tensor", "channel", "group"])
@pytest.mark.parametrize("name", graphs.ALL)
def test_every_operator_and_table_is_folded(level, per, name, tmp_path):
    model, feed = graphs.ALL[name]()
    before = graphs.outputs(model, feed)
    assert _apply(model, per=per).modified
    # Sixteen numbers for Gaussian weights leave a tenth.
    assert _error(before, graphs.outputs(model, feed, level)) < 0.12
    onnx.checker.check_model(ir.to_proto(model))
    if level != "off":
        graphs.session(model, level, tmp_path / "o.onnx")
        left = {n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node}
        assert not left & {"GatherElements", "Mul", "Cast", "Floor", "Reshape", "Transpose"}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("opset", [7, 9, 10, 13, 21])
def test_the_numbers_are_the_same_at_every_opset(bits, opset):
    model, feed = graphs.conv(opset)
    other, _ = graphs.conv(opset)
    weight = g.constant_array(other.graph.initializers["w"]).reshape(32, -1)
    numbers = cluster(weight, bits, 1, None).numbers().reshape(32, 16, 3, 3)
    g.set_constant(other.graph.initializers["w"], numbers)
    assert _apply(model, bits=bits).modified
    assert g.opset(model) == opset
    expected = graphs.outputs(other, feed)
    np.testing.assert_allclose(graphs.outputs(model, feed), expected, 1e-5, 1e-5)


def test_tables_are_more_exact_than_grids_of_the_same_size():
    weight = graphs.random(0, 64, 256) * np.geomspace(0.1, 10, 64, dtype=np.float32)[:, None]
    grid = least_error(weight, Form(4, 256, symmetric=True)).numbers()
    for tables, share in ((1, 0.92), (4, 0.92), (64, 0.88)):
        found = cluster(weight, 4, tables, None).numbers()
        assert _error(weight, found) < share * _error(weight, grid)


def _gram(columns, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((500, columns)) @ rng.standard_normal((columns, columns))
    gram = (rows.T @ rows / 500)[None]
    return Inputs(500, gram, gram, np.zeros((1, columns)), np.zeros((1, columns)))


def test_known_inputs_make_the_outputs_better():
    weight, inputs = graphs.random(1, 32, 48), _gram(48)
    found = [cluster(weight, 4, 1, seen).numbers() for seen in (None, inputs)]
    plain, better = (np.einsum("ok,kj,oj->", e, inputs.gram[0], e) for e in weight - found)
    assert better < 0.4 * plain


def test_pruned_zeros_stay_zero():
    weight = graphs.random(2, 32, 48)
    mask = np.random.default_rng(0).random(weight.shape) < 0.5
    weight[mask] = 0
    for tables in (1, 4, 32):
        for inputs in (None, _gram(48)):
            numbers = cluster(weight, 4, tables, inputs).numbers()
            assert not numbers[mask].any()
            assert numbers[~mask].any()


def test_data_helps_and_two_runs_give_equal_bytes():
    x = np.repeat(graphs.random(3, 512, 16) @ graphs.random(4, 16, 64), 1, axis=0)
    made = []
    for arrays in ({"x": x}, {"x": x}, None):
        model, _ = graphs.matmul()
        before = graphs.outputs(model, {"x": x})
        outcome = _apply(model, arrays)
        error = _error(before, graphs.outputs(model, {"x": x}))
        made.append((error, ir.to_proto(model).SerializeToString(deterministic=True)))
        assert outcome.notes
    assert made[0] == made[1]
    assert made[0][0] < 0.5 * made[2][0]
    assert not _apply(model).modified


def test_constant_and_empty_weights_and_few_values():
    for weight in (np.zeros((8, 64)), np.full((8, 64), 0.5), np.sign(graphs.random(0, 8, 64))):
        for tables in (1, 8):
            numbers = cluster(weight.astype(np.float32), 4, tables, None).numbers()
            np.testing.assert_allclose(numbers, weight, rtol=1e-3, atol=1e-6)


def test_what_stays_is_said():
    model, _ = graphs.conv(opset=9)
    outcome = _apply(model, per="channel")
    assert not outcome.modified
    assert "too old" in outcome.skipped[0].reason
    model, _ = graphs.matmul(columns=4, rows=4)
    assert "would not shrink" in _apply(model).skipped[0].reason
