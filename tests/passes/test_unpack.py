"""The pass unpack: constants that a file computes become plain ones, whoever packed them."""

import numpy as np
import onnx_ir as ir
from support import model_from_text, run

from converter.core.context import Context
from converter.pipeline.services import LocalServices
from passes import ClusterWeights, Unpack


def _context():
    context = Context()
    context.services = LocalServices(context.settings)
    return context


def _foreign(largest=16):
    """Return a product whose weight another tool has written as a table and indices."""
    rng = np.random.default_rng(0)
    return model_from_text(
        """net (float[N,16] x) => (float[N,32] y) {
            i = Cast <to = 6> (stored)
            w = Gather (table, i)
            y = MatMul (x, w)
        }""",
        table=rng.standard_normal(16).astype(np.float32),
        stored=rng.integers(0, largest, (16, 32)).astype(np.uint8),
    )


def test_decoders_of_other_tools_are_undone():
    model = _foreign()
    feed = {"x": np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)}
    before = run(model, feed)["y"]
    outcome = Unpack().apply(model, _context())
    assert outcome.counts["constants_unpacked"] == 1
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert list(model.graph.initializers) == ["w"]
    np.testing.assert_array_equal(run(model, feed)["y"], before)


def test_only_what_pack_wrote_is_undone_on_request():
    model = _foreign()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not Unpack(by="pack").apply(model, _context()).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_tables_of_clustered_weights_are_undone():
    model = model_from_text(
        """net (float[N,32] x) => (float[N,64] y) { y = MatMul (x, w) }""",
        w=np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32),
    )
    ClusterWeights(bits=4).apply(model, _context())
    feed = {"x": np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)}
    before = run(model, feed)["y"]
    assert Unpack().apply(model, _context()).modified
    assert [node.op_type for node in model.graph] == ["MatMul"]
    np.testing.assert_array_equal(run(model, feed)["y"], before)


def test_quantized_weights_and_small_computations_stay():
    model = model_from_text(
        """net (float[N,4] x) => (float[N,4] y) {
            w = DequantizeLinear (q, scale)
            i = Gather (sizes, index)
            r = Reshape (x, i)
            y = MatMul (r, w)
        }""",
        q=np.eye(4, dtype=np.int8),
        scale=np.float32(0.5),
        sizes=np.array([0, -1, 4]),
        index=np.array([1, 2]),
    )
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not Unpack().apply(model, _context()).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_what_cannot_be_computed_stays_and_is_said():
    model = _foreign(largest=20)  # beyond the table
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    outcome = Unpack().apply(model, _context())
    assert not outcome.modified
    assert "cannot be computed" in outcome.skipped[0].reason
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
