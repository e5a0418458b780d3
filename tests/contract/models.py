"""Small models for every registered pass: each carries something that passes get wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from support import model_from_text

Feed = dict[str, np.ndarray]


def _weights(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) / 3).astype(dtype)


def conv_net() -> ir.Model:
    """Conv, BatchNorm, Relu, Gemm: what every pass has something to do on."""
    return model_from_text(
        """conv_net (float[N,3,8,8] x) => (float[N,5] y) {
            c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            n = BatchNormalization (c, scale, shift, mean, var)
            r = Relu (n)
            p = GlobalAveragePool (r)
            f = Flatten (p)
            i = Identity (f)
            y = Gemm <transB = 1> (i, w2, b2)
        }""",
        w=_weights(8, 3, 3, 3),
        b=_weights(8),
        scale=np.abs(_weights(8, seed=1)) + 0.5,
        shift=_weights(8, seed=2),
        mean=_weights(8, seed=3),
        var=np.abs(_weights(8, seed=4)) + 0.5,
        w2=_weights(5, 8),
        b2=_weights(5),
    )


def shared_weight() -> ir.Model:
    """One weight used by two nodes, and one tensor object behind two initializers."""
    model = model_from_text(
        """shared (float[N,6] x) => (float[N,6] y) {
            a = MatMul (x, w)
            b = Tanh (a)
            c = MatMul (b, w)
            y = MatMul (c, v)
        }""",
        w=_weights(6, 6),
        v=_weights(6, 6),
    )
    model.graph.initializers["v"].const_value = model.graph.initializers["w"].const_value
    return model


def subgraphs() -> ir.Model:
    """If with constants inside its branches and a captured outer value."""
    return model_from_text(
        """branches (float[2,4] x, bool flag) => (float[2,4] y) {
            h = MatMul (x, w)
            y = If (flag) <
                then_branch = yes () => (float[2,4] t) {
                    k = Constant <value = float[1,4] {1.0, 2.0, 3.0, 4.0}> ()
                    s = Identity (h)
                    t = Add (s, k)
                },
                else_branch = no () => (float[2,4] e) { e = Identity (h) }
            >
        }""",
        w=_weights(4, 4),
    )


def function() -> ir.Model:
    """A model function with nodes that passes like to remove."""
    return model_from_text(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        with_function (float[N,4] x) => (float[N,4] y) {
            h = MatMul (x, w)
            y = local.twice (h)
        }
        <domain: "local", opset_import: ["" : 17]>
        twice (a) => (d) { b = Identity (a) c = Add (b, b) d = Relu (c) }""",
        w=_weights(4, 4),
    )


def overridable() -> ir.Model:
    """An initializer that callers may override, an unused input, an input passed through."""
    return model_from_text(
        """overridable (float[2,4] x, float[4,4] w, float[3] unused)
            => (float[2,4] y, float[2,4] x2) {
            y = MatMul (x, w)
            x2 = Identity (x)
        }""",
        w=_weights(4, 4),
    )


def half_precision() -> ir.Model:
    """All of it in float16."""
    return model_from_text(
        """half (float16[N,4] x) => (float16[N,3] y) {
            h = MatMul (x, w)
            y = Add (h, b)
        }""",
        w=_weights(4, 3, dtype=np.float16),
        b=_weights(3, dtype=np.float16),
    )


def already_quantized() -> ir.Model:
    """Weights stored as int8 behind DequantizeLinear, activations through Q/DQ."""
    return model_from_text(
        """quantized (float[N,4] x) => (float[N,4] y) {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            w = DequantizeLinear (wq, ws, wz)
            y = MatMul (d, w)
        }""",
        s=np.float32(0.05),
        z=np.uint8(128),
        wq=np.arange(-8, 8, dtype=np.int8).reshape(4, 4),
        ws=np.float32(0.1),
        wz=np.int8(0),
    )


def random_node() -> ir.Model:
    """A random node with a constant shape: freezing it would be wrong."""
    return model_from_text(
        """noise (float[2,3] x) => (float[2,3] y) {
            r = RandomNormal <shape = [2, 3]> ()
            y = Add (x, r)
        }"""
    )


def no_nodes() -> ir.Model:
    """An output that is an input: nothing to do at all."""
    return model_from_text("nothing (float[2] x) => (float[2] y) { y = Identity (x) }")


MODELS: dict[str, Callable[[], ir.Model]] = {
    made.__name__: made
    for made in (
        conv_net,
        shared_weight,
        subgraphs,
        function,
        overridable,
        half_precision,
        already_quantized,
        random_node,
        no_nodes,
    )
}


def feeds(model: ir.Model, count: int = 4) -> list[Feed]:
    """Seeded inputs for a model of this module, batch 2 where the size is free."""
    rng = np.random.default_rng(7)
    made = []
    for _ in range(count):
        feed: Feed = {}
        for value in model.graph.inputs:
            if value.name in model.graph.initializers:
                continue
            assert value.shape is not None
            assert value.dtype is not None
            shape = [d if isinstance(d, int) else 2 for d in value.shape]
            kind = value.dtype.numpy()
            random = rng.standard_normal(shape)
            feed[value.name or ""] = np.asarray(random > 0 if kind == np.bool_ else random).astype(
                kind
            )
        made.append(feed)
    return made
