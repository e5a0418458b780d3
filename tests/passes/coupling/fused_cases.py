"""Graphs with recurrent, attention, quantized and sampling operators, and what can be cut there."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from support import model_from_text

from converter.coupling.couple import Units

Array = np.ndarray[Any, Any]
HEADER = '<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'


@dataclass(frozen=True)
class Case:
    """A graph, and the components that it has.

    Attributes:
        body: ONNX text.
        constants: Shapes of random float constants, or arrays.
        atoms: Atoms of every component, in the order of the graph.
        units: Their units; the default is "channel" for all.
        frozen: Part of a reason that must be given.
        inputs: ONNX text.
        outputs: ONNX text.
        feed: Arrays of inputs that are no random floats.
        only: Which units may go.
        runs: False where onnxruntime has no kernel: labels alone are checked.
        tolerance: Of the certificate, relative to the largest output.
    """

    body: str
    constants: Mapping[str, Any]
    atoms: tuple[int, ...]
    units: tuple[str, ...] = ()
    frozen: str = ""
    inputs: str = "float[5,2,6] x"
    outputs: str = "float y"
    opset: int = 17
    feed: Mapping[str, Array] = field(default_factory=dict)
    runs: bool = True
    only: Units = "all"
    tolerance: float = 1e-5


def constants_of(case: Case, seed: int = 0) -> dict[str, Array]:
    """Return the constants of a case, random where only their shape is told."""
    made = {}
    for name, given in case.constants.items():
        if isinstance(given, tuple):
            source = np.random.default_rng(zlib.crc32(name.encode()) + seed)
            made[name] = source.normal(0, 0.5, given).astype(np.float32)
        else:
            made[name] = np.asarray(given)
    return made


def build(case: Case) -> ir.Model:
    """Return the model of a case."""
    header = HEADER.format(opset=case.opset)
    text = f"{header} g ({case.inputs}) => ({case.outputs}) {{ {case.body} }}"
    model = model_from_text(text, **constants_of(case))
    for output in model.graph.outputs:
        output.shape = None
    for number, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{number}"
    return model


def feed_of(case: Case, model: ir.Model, seed: int = 1) -> dict[str, Array]:
    """Return inputs for a run."""
    source = np.random.default_rng(seed)
    feed: dict[str, Array] = {}
    for value in model.graph.inputs:
        name = value.name or ""
        assert value.shape is not None
        shape = [int(size) if isinstance(size, int) else 2 for size in value.shape]
        given = case.feed.get(name)
        feed[name] = source.normal(size=shape).astype(np.float32) if given is None else given
    return feed


def _ints(shape: tuple[int, ...], low: int, high: int, dtype: str, seed: int = 5) -> Array:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


_READ = "s = Squeeze(h, one) y = MatMul(s, P)"
_OUT = {"one": np.array([1]), "P": (8, 3)}
RECURRENT = {
    "lstm": Case(
        f"h = LSTM<hidden_size=8>(x, W, R, B) {_READ}",
        {"W": (1, 32, 6), "R": (1, 32, 8), "B": (1, 64), **_OUT},
        (8,),
        ("hidden",),
    ),
    "lstm with peepholes and states": Case(
        "h, last, cell = LSTM<hidden_size=8>(x, W, R, B, , h0, c0, p) s = Squeeze(h, one) "
        "a = MatMul(s, P) l = Squeeze(last, zero) b = MatMul(l, Q) c = Squeeze(cell, zero) "
        "d = MatMul(c, Q) e = Add(a, b) y = Add(e, d)",
        {
            "W": (1, 32, 6),
            "R": (1, 32, 8),
            "B": (1, 64),
            "p": (1, 24),
            "h0": (1, 2, 8),
            "c0": (1, 2, 8),
            "Q": (8, 3),
            "zero": np.array([0]),
            **_OUT,
        },
        (8,),
        ("hidden",),
    ),
    "lstm with a state made of its size": Case(
        "d = Shape(x) b = Gather(d, i) n = Concat<axis=0>(single, b, width) "
        f"h0 = ConstantOfShape(n) h = LSTM<hidden_size=8>(x, W, R, B, , h0, h0) {_READ}",
        {
            "W": (1, 32, 6),
            "R": (1, 32, 8),
            "B": (1, 64),
            "i": np.array([1]),
            "single": np.array([1]),
            "width": np.array([8]),
            **_OUT,
        },
        (8,),
        ("hidden",),
    ),
    "gru": Case(
        f"h = GRU<hidden_size=8, linear_before_reset=1>(x, W, R, B) {_READ}",
        {"W": (1, 24, 6), "R": (1, 24, 8), "B": (1, 48), **_OUT},
        (8,),
        ("hidden",),
    ),
    "gru reset first": Case(
        f"h = GRU<hidden_size=8>(x, W, R) {_READ}",
        {"W": (1, 24, 6), "R": (1, 24, 8), **_OUT},
        (8,),
        ("hidden",),
    ),
    "rnn in reverse": Case(
        f'h = RNN<hidden_size=8, direction="reverse">(x, W, R, B) {_READ}',
        {"W": (1, 8, 6), "R": (1, 8, 8), "B": (1, 16), **_OUT},
        (8,),
        ("hidden",),
    ),
    "two layers in both directions": Case(
        'h = LSTM<hidden_size=8, direction="bidirectional">(x, W, R, B) '
        "t = Transpose<perm=[0,2,1,3]>(h) j = Reshape(t, shape) "
        'g = GRU<hidden_size=4, direction="bidirectional">(j, W2, R2, B2) '
        "u = Transpose<perm=[0,2,1,3]>(g) k = Reshape(u, shape) y = MatMul(k, P)",
        {
            "W": (2, 32, 6),
            "R": (2, 32, 8),
            "B": (2, 64),
            "W2": (2, 12, 16),
            "R2": (2, 12, 4),
            "B2": (2, 24),
            "shape": np.array([0, 0, -1]),
            "P": (8, 3),
        },
        (8, 4),
        ("hidden", "hidden"),
    ),
    "input of a layer": Case(
        f"a = MatMul(x, I) r = Relu(a) h = GRU<hidden_size=8>(r, W, R) {_READ}",
        {"I": (6, 10), "W": (1, 24, 10), "R": (1, 24, 8), **_OUT},
        (10, 8),
        ("channel", "hidden"),
    ),
    "lengths": Case(
        f"h = GRU<hidden_size=8>(x, W, R, B, n) {_READ}",
        {"W": (1, 24, 6), "R": (1, 24, 8), "B": (1, 48), **_OUT},
        (8,),
        ("hidden",),
        inputs="float[5,2,6] x, int32[2] n",
        feed={"n": np.array([3, 5], np.int32)},
    ),
    "batch first": Case(
        "h = GRU<hidden_size=8, layout=1>(x, W, R, B) s = Squeeze(h, two) y = MatMul(s, P)",
        {"W": (1, 24, 6), "R": (1, 24, 8), "B": (1, 48), "two": np.array([2]), "P": (8, 3)},
        (8,),
        ("hidden",),
        runs=False,
    ),
    "a state that callers give": Case(
        f"h = GRU<hidden_size=8>(x, W, R, B, , h0) {_READ}",
        {"W": (1, 24, 6), "R": (1, 24, 8), "B": (1, 48), **_OUT},
        (),
        inputs="float[5,2,6] x, float[1,2,8] h0",
        frozen="goes with something that stays",
    ),
    "quantized lstm": Case(
        "h = com.microsoft.DynamicQuantizeLSTM<hidden_size=8>"
        f"(x, W, R, B, , , , , ws, wz, rs, rz) {_READ}",
        {
            "W": _ints((1, 6, 32), -100, 100, "int8"),
            "R": _ints((1, 8, 32), -100, 100, "int8"),
            "B": (1, 64),
            "ws": np.full((1, 32), 0.01, np.float32),
            "wz": np.zeros((1, 32), np.int8),
            "rs": np.full(1, 0.01, np.float32),
            "rz": np.zeros(1, np.int8),
            **_OUT,
        },
        (8,),
        ("hidden",),
        tolerance=0.02,  # the range of the state is measured without what is gone
    ),
}


def grouped(queries: int, groups: int, *, inner: int = 8) -> Case:
    """Return attention in single steps in which several queries share keys and values."""
    repeated = " ".join(
        f"{name}r0 = Unsqueeze({name}t, two) {name}r1 = Expand({name}r0, wide) "
        f"{name}r = Reshape({name}r1, heads)"
        for name in "kv"
    )
    return Case(
        "q = MatMul(x, Wq) k = MatMul(x, Wk) v = MatMul(x, Wv) "
        "q4 = Reshape(q, sq) qt = Transpose<perm=[0,2,1,3]>(q4) "
        "k4 = Reshape(k, sk) kt = Transpose<perm=[0,2,1,3]>(k4) "
        f"v4 = Reshape(v, sk) vt = Transpose<perm=[0,2,1,3]>(v4) {repeated} "
        "kk = Transpose<perm=[0,1,3,2]>(kr) s = MatMul(qt, kk) p = Softmax(s) o = MatMul(p, vr) "
        "ot = Transpose<perm=[0,2,1,3]>(o) f = Reshape(ot, flat) y = MatMul(f, P)",
        {
            "Wq": (12, queries * inner),
            "Wk": (12, groups * inner),
            "Wv": (12, groups * inner),
            "P": (queries * inner, 3),
            "sq": np.array([0, 0, queries, inner]),
            "sk": np.array([0, 0, groups, inner]),
            "two": np.array([2]),
            "wide": np.array([1, groups, queries // groups, 5, inner]),
            "heads": np.array([2, queries, 5, inner]),
            "flat": np.array([0, 0, -1]),
        },
        (max(groups, queries // groups),),
        ("head",),
        inputs=_IN,
    )


_IN = "float[2,5,12] x"
_QKV = "q = MatMul(x, Wq) k = MatMul(x, Wk) v = MatMul(x, Wv)"
_THREE = {"Wq": (12, 32), "Wk": (12, 32), "Wv": (12, 32), "P": (32, 3)}
ATTENTION = {
    "einsum with weights": Case(
        'h = Einsum<equation="bsd,de->bse">(x, A) r = Relu(h) '
        'y = Einsum<equation="...e,ef->...f">(r, B)',
        {"A": (12, 10), "B": (10, 3)},
        (10,),
        inputs=_IN,
    ),
    "einsum attention": Case(
        'q = Einsum<equation="bsd,dhk->bhsk">(x, Q) k = Einsum<equation="bsd,dhk->bhsk">(x, K) '
        'v = Einsum<equation="bsd,dhk->bhsk">(x, V) s = Einsum<equation="bhqk,bhtk->bhqt">(q, k) '
        'p = Softmax(s) o = Einsum<equation="bhqt,bhtk->bqhk">(p, v) '
        'y = Einsum<equation="bqhk,hkf->bqf">(o, O)',
        {"Q": (12, 4, 6), "K": (12, 4, 6), "V": (12, 4, 6), "O": (4, 6, 3)},
        (4, 6, 6),
        inputs=_IN,
    ),
    "einsum diagonal": Case(
        'h = MatMul(x, A) d = Einsum<equation="bii->bi">(h) y = Relu(d)',
        {"A": (12, 5)},
        (),
        inputs=_IN,
        frozen="Einsum",
    ),
    "multi-head attention": Case(
        f"{_QKV} a = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v, B) y = MatMul(a, P)",
        {**_THREE, "B": (96,)},
        (4,),
        ("head",),
        inputs=_IN,
    ),
    "multi-head attention with a bias by head": Case(
        f"{_QKV} a = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v, , , m) "
        "y = MatMul(a, P)",
        {**_THREE, "m": (1, 4, 5, 5)},
        (4,),
        ("head",),
        inputs=_IN,
    ),
    "attention with its own projection": Case(
        "a = com.microsoft.Attention<num_heads=4>(x, W, B) y = MatMul(a, P)",
        {"W": (12, 96), "B": (96,), "P": (32, 3)},
        (4,),
        ("head",),
        inputs=_IN,
    ),
    "attention with sizes": Case(
        "i = MatMul(x, I) "
        "a = com.microsoft.Attention<num_heads=4, qkv_hidden_sizes=[32,32,16]>(i, W, B) "
        "y = MatMul(a, P)",
        {"I": (12, 12), "W": (12, 80), "B": (80,), "P": (16, 3)},
        (12, 4),
        ("channel", "head"),
        inputs=_IN,
    ),
    "grouped queries": Case(
        "q = MatMul(x, Wq) k = MatMul(x, Wk) v = MatMul(x, Wv) "
        "a, pk, pv = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>"
        "(q, k, v, , , n, t) y = MatMul(a, P)",
        {
            "Wq": (12, 32),
            "Wk": (12, 16),
            "Wv": (12, 16),
            "P": (32, 3),
            "n": np.array([4, 4], np.int32),
            "t": np.array(5, np.int32),
        },
        (2,),
        ("head",),
        inputs=_IN,
    ),
    "grouped queries in one": Case(
        "q = MatMul(x, W) "
        "a, pk, pv = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>"
        "(q, , , , , n, t) y = MatMul(a, P)",
        {
            "W": (12, 64),
            "P": (32, 3),
            "n": np.array([4, 4], np.int32),
            "t": np.array(5, np.int32),
        },
        (2,),
        ("head",),
        inputs=_IN,
    ),
    "standard attention": Case(
        f"{_QKV} a = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v) y = MatMul(a, P)",
        _THREE,
        (4,),
        ("head",),
        inputs=_IN,
        opset=23,
    ),
    "standard attention on four axes": Case(
        "q = MatMul(x, Wq) k = MatMul(x, Wk) v = MatMul(x, Wv) "
        "q4 = Reshape(q, four) qt = Transpose<perm=[0,2,1,3]>(q4) "
        "k4 = Reshape(k, two) kt = Transpose<perm=[0,2,1,3]>(k4) "
        "v4 = Reshape(v, two) vt = Transpose<perm=[0,2,1,3]>(v4) "
        "a = Attention(qt, kt, vt) o = Transpose<perm=[0,2,1,3]>(a) "
        "j = Reshape(o, flat) y = MatMul(j, P)",
        {
            "Wq": (12, 32),
            "Wk": (12, 16),
            "Wv": (12, 16),
            "P": (32, 3),
            "four": np.array([0, 0, 4, 8]),
            "two": np.array([0, 0, 2, 8]),
            "flat": np.array([0, 0, -1]),
        },
        (2,),
        ("head",),
        inputs=_IN,
        opset=23,
    ),
    "grouped queries in single steps": grouped(12, 4),
    "many queries for each key": grouped(8, 2),
    "pairs of a rotary embedding": Case(
        f"{_QKV} q4 = Reshape(q, four) qt = Transpose<perm=[0,2,1,3]>(q4) "
        "k4 = Reshape(k, four) kt = Transpose<perm=[0,2,1,3]>(k4) "
        "v4 = Reshape(v, four) vt = Transpose<perm=[0,2,1,3]>(v4) "
        "qr = com.microsoft.RotaryEmbedding(qt, pos, c, s) "
        "kr = com.microsoft.RotaryEmbedding(kt, pos, c, s) kk = Transpose<perm=[0,1,3,2]>(kr) "
        "w = MatMul(qr, kk) p = Softmax(w) o = MatMul(p, vt) ot = Transpose<perm=[0,2,1,3]>(o) "
        "f = Reshape(ot, flat) y = MatMul(f, P)",
        {
            **_THREE,
            "four": np.array([0, 0, 4, 8]),
            "flat": np.array([0, 0, -1]),
            "pos": np.tile(np.arange(5), (2, 1)),
            "c": (8, 4),
            "s": (8, 4),
        },
        (4, 8),
        inputs=_IN,
        only="channels",
    ),
    "rotary embedding": Case(
        "q = MatMul(x, Wq) k = MatMul(x, Wk) v = MatMul(x, Wv) "
        "qr = com.microsoft.RotaryEmbedding<num_heads=4>(q, pos, c, s) "
        "kr = com.microsoft.RotaryEmbedding<num_heads=4>(k, pos, c, s) "
        "a = com.microsoft.MultiHeadAttention<num_heads=4>(qr, kr, v) y = MatMul(a, P)",
        {**_THREE, "pos": np.tile(np.arange(5), (2, 1)), "c": (8, 4), "s": (8, 4)},
        (4,),
        ("head",),
        inputs=_IN,
    ),
}
