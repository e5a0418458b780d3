"""Patterns that are almost what a rule looks for: a constant, an operand or a user is another."""

from __future__ import annotations

import random

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exact import InProcess, apply, assert_equal_outputs, feed_for
from onnx import numpy_helper
from support import model_from_text

from converter.errors import ModelError
from passes import Simplify

MUTANTS = 40
TOLERANCE = 1e-4  # of the largest output: factors of a thousand reorder sums of a few products
PATTERNS = {
    "gelu": "d = Div (x, a) e = Erf (d) p = Add (e, b) m = Mul (x, p) y = Mul (m, c)",
    "hard swish": "s = Add (x, a) c0 = Clip (s, b, c) m = Mul (x, c0) y = Div (m, c)",
    "norm": "m = ReduceMean (x, last) e = Sub (x, m) q = Pow (e, a) v = ReduceMean (q, last)"
    " w = Add (v, b) s = Sqrt (w) n = Div (e, s) y = Mul (n, c)",
    "softmax": "m = ReduceMax (x, last) e = Sub (x, m) p = Exp (e) s = ReduceSum (p, last)"
    " y = Div (p, s)",
    "leaky": "g = Greater (x, b) t = Mul (x, c) y = Where (g, x, t)",
    "arithmetic": "s = Add (x, a) t = Mul (s, b) u = Sub (t, c) n = Neg (u) y = Add (n, b)",
    "limits": "s = Max (x, b) t = Min (s, a) u = Relu (t) y = Clip (u, b, c)",
    "product": "t = Transpose <perm = [0, 2, 1]> (x) p = MatMul (x, t) s = Mul (p, c)"
    " z = Softmax (s) y = MatMul (z, x)",
    "views": "r = Reshape (x, flat) t = Transpose <perm = [0, 1]> (r) u = Unsqueeze (t, last)"
    " v = Squeeze (u, last) y = Mul (v, c)",
}
NUMBERS = {
    "gelu": (2**0.5, 1.0, 0.5),
    "hard swish": (3.0, 0.0, 6.0),
    "norm": (2.0, 1e-5, 1.0),
    "leaky": (1.0, 0.0, 0.25),
}
ODD = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 3.0, 1e-3, float("inf"), float("nan"))


def pattern(name: str) -> onnx.ModelProto:
    numbers = dict(zip("abc", NUMBERS.get(name, (2.0, 0.0, 6.0)), strict=True))
    constants = {k: np.array(v, np.float32) for k, v in numbers.items()}
    constants |= {"last": np.array([-1]), "flat": np.array([0, -1])}
    text = f"g (float[N,3,4] x) => (float[] y) {{ {PATTERNS[name]} }}"
    proto: onnx.ModelProto = ir.to_proto(model_from_text(text, opset=20, **constants))
    return proto


def another_number(proto: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice([t for t in proto.graph.initializer if t.data_type == 1])
    shape = rng.choice([(), (1,), (1, 1), (1, 1, 1, 1), (4,), (3, 1)])
    array = np.full(shape, rng.choice([*ODD, float(numpy_helper.to_array(tensor).flat[0])]))
    tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))


def other_operands(proto: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice([n for n in proto.graph.node if len(n.input) > 1])
    node.input[:] = rng.sample(list(node.input), len(node.input))


def another_source(proto: onnx.ModelProto, rng: random.Random) -> None:
    place = rng.randrange(1, len(proto.graph.node))
    made = ["x", *(n.output[0] for n in proto.graph.node[:place])]
    proto.graph.node[place].input[0] = rng.choice(made)


def public(proto: onnx.ModelProto, rng: random.Random) -> None:
    name = rng.choice(list(proto.graph.node)[:-1]).output[0]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))


def a_default(proto: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(list(proto.graph.initializer))
    value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
    proto.graph.input.append(value)


MUTATIONS = (another_number, another_number, other_operands, another_source, public, a_default)


@pytest.mark.parametrize("name", PATTERNS)
def test_near_misses_compute_the_same(name: str) -> None:
    rng, ran = random.Random(name), 0
    for _ in range(MUTANTS):
        proto = pattern(name)
        for mutate in rng.sample(MUTATIONS, rng.choice((1, 1, 2))):
            mutate(proto, rng)
        before, after = ir.from_proto(proto), ir.from_proto(proto)
        feeds = [feed_for(before, seed, free) for seed, free in enumerate((1, 3))]
        try:
            InProcess().run(before, feeds)
        except ModelError:
            continue  # not every mutant is a model that runs
        ran += 1
        apply(Simplify(), after)
        assert len(after.graph) <= len(before.graph)
        for feed in feeds:
            assert_equal_outputs(before, after, feed, tolerance=TOLERANCE)
    assert ran >= MUTANTS // 4
