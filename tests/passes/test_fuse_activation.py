"""``fuse``: activations from arithmetic, what only looks like one, and where they may stand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from exact import check
from support import model_from_text, op_types

from passes import Fuse

F16 = 4e-3  # float16 has 11 bits, and the fused operator rounds less often
TOLERANCE = {"float": 2e-6, "float16": F16, "double": 1e-12}
KIND: dict[str, Any] = {"float": np.float32, "float16": np.float16, "double": np.float64}


def numbers(dtype: str, **values: float) -> dict[str, np.ndarray]:
    return {name: np.array(value, KIND[dtype]) for name, value in values.items()}


CONSTANTS = {
    "half": 0.5,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "six": 6.0,
    "zero": 0.0,
    "sixth": 1 / 6,
    "fifth": 0.2,
    "root": 2**0.5,
    "over_root": 0.5**0.5,
    "cubic": 0.044715,
    "tanh": 0.7978845608028654,
    "minus": -0.2,
    "low": -1.5,
    "high": 1.5,
}


def build(body: str, *, dtype: str = "float", opset: int = 20, shape: str = "N,4") -> ir.Model:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: value for name, value in CONSTANTS.items() if name in words}
    text = f"g ({dtype}[{shape}] x) => ({dtype} y) {{ {body} }}"
    return finish(model_from_text(text, opset=opset, **numbers(dtype, **used)))


def finish(model: ir.Model) -> ir.Model:
    """Name the nodes as exporters do; a fusion must not cost more bytes than that."""
    model.graph.outputs[0].shape = None
    for index, node in enumerate(model.graph):
        node.name = f"/encoder/layer.0/intermediate/{node.op_type}_{index}"
    return model


ERF = "a = Div (x, root) e = Erf (a) p = Add (e, one) "
TANH = "q = Pow (x, three) a = Mul (q, cubic) b = Add (x, a) c = Mul (b, tanh) t = Tanh (c) "
CLIP = "a = Add (x, three) c = Clip (a, zero, six) "

FUSED = {
    "gelu, halved last": (20, ERF + "m = Mul (x, p) y = Mul (m, half)", ["Gelu"]),
    "gelu, halved first": (20, ERF + "h = Mul (half, x) y = Mul (h, p)", ["Gelu"]),
    "gelu, factor halved": (20, ERF + "h = Mul (p, half) y = Mul (x, h)", ["Gelu"]),
    "gelu, divided": (20, ERF + "m = Mul (p, x) y = Div (m, two)", ["Gelu"]),
    "gelu, erf halved": (
        20,
        "a = Mul (over_root, x) e = Erf (a) h = Mul (e, half) p = Add (h, half) y = Mul (p, x)",
        ["Gelu"],
    ),
    "gelu by tanh": (
        20,
        TANH + "p = Add (t, one) h = Mul (x, half) y = Mul (h, p)",
        ["Gelu"],
    ),
    "gelu by tanh, cube by products": (
        20,
        "q = Mul (x, x) r = Mul (x, q) a = Mul (cubic, r) b = Add (x, a) c = Mul (tanh, b)"
        " t = Tanh (c) p = Add (one, t) m = Mul (x, p) y = Mul (half, m)",
        ["Gelu"],
    ),
    "gelu by tanh, factored": (
        20,
        "a = Mul (x, cubic) b = Mul (a, x) c = Add (b, one) d = Mul (x, tanh) e = Mul (d, c)"
        " t = Tanh (e) p = Add (t, one) h = Mul (x, half) y = Mul (h, p)",
        ["Gelu"],
    ),
    "hard swish": (14, CLIP + "m = Mul (x, c) y = Div (m, six)", ["HardSwish"]),
    "hard swish, factor": (14, CLIP + "d = Mul (c, sixth) y = Mul (d, x)", ["HardSwish"]),
    "hard swish, input divided": (14, CLIP + "d = Div (x, six) y = Mul (d, c)", ["HardSwish"]),
    "hard swish, relu and min": (
        14,
        "a = Add (three, x) r = Relu (a) c = Min (r, six) m = Mul (c, x) y = Mul (m, sixth)",
        ["HardSwish"],
    ),
    "hard swish, attributes": (
        10,
        "a = Add (x, three) c = Clip <min = 0.0, max = 6.0> (a) m = Mul (x, c) y = Div (m, six)",
        ["HardSigmoid", "Mul"],
    ),
    "hard swish, gate": (
        14,
        "s = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul (x, s)",
        ["HardSwish"],
    ),
    "hard sigmoid": (14, CLIP + "y = Div (c, six)", ["HardSigmoid"]),
    "hard sigmoid, slope": (
        14,
        "a = Mul (x, fifth) b = Add (a, half) y = Clip (b, zero, one)",
        ["HardSigmoid"],
    ),
    "hard sigmoid, min and max": (
        14,
        "a = Mul (fifth, x) b = Add (half, a) c = Max (b, zero) y = Min (c, one)",
        ["HardSigmoid"],
    ),
    "relu": (14, "y = Max (zero, x)", ["Relu"]),
    "relu 6": (14, "a = Relu (x) y = Min (a, six)", ["Clip"]),
    "limits": (14, "a = Min (x, high) y = Max (low, a)", ["Clip"]),
    "limits, the other way": (9, "a = Max (x, low) y = Min (a, high)", ["Clip"]),
    "relu in clip": (14, "a = Relu (x) y = Clip (a, zero, six)", ["Clip"]),
    "clip in relu": (14, "a = Clip (x, zero, six) y = Relu (a)", ["Clip"]),
    "leaky relu, max": (14, "a = Mul (fifth, x) y = Max (a, x)", ["LeakyRelu"]),
    "leaky relu, where": (
        16,
        "c = Greater (x, zero) a = Mul (x, fifth) y = Where (c, x, a)",
        ["LeakyRelu"],
    ),
    "leaky relu, where less": (
        16,
        "c = Less (x, zero) a = Mul (x, minus) y = Where (c, a, x)",
        ["LeakyRelu"],
    ),
    "leaky relu, two relus": (
        14,
        "p = Relu (x) n = Neg (x) r = Relu (n) a = Mul (r, fifth) y = Sub (p, a)",
        ["LeakyRelu"],
    ),
    "leaky relu, two relus added": (
        14,
        "p = Relu (x) n = Neg (x) r = Relu (n) a = Mul (r, minus) y = Add (p, a)",
        ["LeakyRelu"],
    ),
    "sigmoid": (14, "n = Neg (x) e = Exp (n) p = Add (one, e) y = Div (one, p)", ["Sigmoid"]),
    "sigmoid, reciprocal": (
        14,
        "n = Neg (x) e = Exp (n) p = Add (e, one) y = Reciprocal (p)",
        ["Sigmoid"],
    ),
    "softsign": (14, "a = Abs (x) p = Add (a, one) y = Div (x, p)", ["Softsign"]),
    "mish": (18, "s = Softplus (x) t = Tanh (s) y = Mul (x, t)", ["Mish"]),
    "selu": (14, "e = Elu <alpha = 1.67> (x) y = Mul (e, high)", ["Selu"]),
}


@pytest.mark.parametrize("case", FUSED)
def test_fuses(case: str) -> None:
    opset, body, expected = FUSED[case]
    model = build(body, opset=opset)
    check(Fuse(), model, tolerance=TOLERANCE["float"])
    assert op_types(model) == expected
    if opset > 10:
        assert not any(name in model.graph.initializers for name in ("root", "three", "cubic"))


HALVES = [case for case in FUSED if not case.startswith(("leaky", "selu"))]


@pytest.mark.parametrize("case", HALVES)
def test_fuses_half_precision(case: str) -> None:
    opset, body, expected = FUSED[case]
    model = build(
        body, opset=max(opset, 14) if "attributes" not in case else opset, dtype="float16"
    )
    check(Fuse(), model, tolerance=F16)
    assert op_types(model) == expected


def test_double_precision_has_limits_only() -> None:
    model = build("a = Relu (x) y = Min (a, six)", dtype="double")
    check(Fuse(), model)
    assert op_types(model) == ["Clip"]
    model = build("a = Max (x, zero) y = Abs (a)", dtype="double")
    outcome = check(Fuse(), model)
    assert not outcome.modified  # onnxruntime cannot load a Relu before a Clip in double
    assert any("DOUBLE" in skip.reason for skip in outcome.skipped)


EXTRA = {
    "swishes_fused": (24, "s = Sigmoid (x) y = Mul (s, x)", ["Swish"]),
    "elus_fused": (
        14,
        "e = Exp (x) m = Sub (e, one) c = Greater (x, zero) y = Where (c, x, m)",
        ["Elu"],
    ),
    "softpluses_fused": (14, "e = Exp (x) p = Add (e, one) y = Log (p)", ["Softplus"]),
}


@pytest.mark.parametrize("name", EXTRA)
def test_slower_ones_are_left_until_asked_for(name: str) -> None:
    opset, body, expected = EXTRA[name]
    model = build(body, opset=opset)
    outcome = check(Fuse(), model)
    assert not outcome.modified
    assert any(f"fuse:extra={name}" in skip.reason for skip in outcome.skipped)
    check(Fuse(extra=(name,)), model, tolerance=TOLERANCE["float"])
    assert op_types(model) == expected


def test_prelu_when_asked_for() -> None:
    text = (
        "g (float[N,3,2] x) => (float y) "
        "{ p = Relu (x) n = Neg (x) r = Relu (n) a = Mul (r, s) y = Add (p, a) }"
    )
    slope = np.array([[0.1], [0.2], [-0.3]], np.float32)
    model = finish(model_from_text(text, opset=16, s=slope))
    check(Fuse(extra=("prelus_fused",)), model, tolerance=TOLERANCE["float"])
    assert op_types(model) == ["PRelu"]


def test_slopes_that_are_not_finite_stay() -> None:
    """Written out, zero times infinity is NaN; fused operators leave alone what is above 0."""
    for body in (
        "n = Neg (x) r = Relu (x) m = Relu (n) a = Mul (m, s) y = Sub (r, a)",
        "c = Greater (x, z) a = Mul (x, s) y = Where (c, x, a)",
        "a = Mul (x, s) b = Add (a, z) y = Clip (b, z, o)",
    ):
        zero, one = np.zeros((), np.float32), np.ones((), np.float32)
        made = {"s": np.array(np.inf, np.float32), "z": zero, "o": one}
        used = {name: made[name] for name in made if f"{name})" in body or f"({name}" in body}
        used |= {name: made[name] for name in made if f", {name}" in body}
        model = finish(model_from_text(f"g (float[N,4] x) => (float y) {{ {body} }}", **used))
        check(Fuse(), model)
        assert not {"LeakyRelu", "HardSigmoid"} & set(op_types(model)), body


def test_extra_names_are_checked() -> None:
    with pytest.raises(Exception, match="swishes_fused"):
        Fuse(extra=("swish",))


KEPT = {
    "wrong divisor": (20, ERF.replace("root", "two") + "m = Mul (x, p) y = Mul (m, half)"),
    "other input": (20, ERF + "z = Abs (x) m = Mul (z, p) y = Mul (m, half)"),
    "wrong tanh factor": (20, TANH.replace("tanh", "half") + "p = Add (t, one) y = Mul (x, p)"),
    "not halved": (20, ERF + "y = Mul (x, p)"),
    "early opset": (19, ERF + "m = Mul (x, p) y = Mul (m, half)"),
    "no swish": (14, CLIP + "m = Mul (c, c) y = Div (m, six)"),
    "wrong limit": (14, "a = Add (x, three) c = Clip (a, zero, two) m = Mul (x, c) y = Abs (m)"),
    "gate of another slope": (14, "s = HardSigmoid (x) y = Mul (x, s)"),
    "limits that cross": (14, "a = Min (x, low) y = Max (a, high)"),
    "steep": (14, "a = Mul (x, two) y = Max (x, a)"),
    "falling": (14, "a = Mul (x, minus) y = Max (x, a)"),
    "where the wrong way round": (
        16,
        "c = Greater (x, zero) a = Mul (x, fifth) y = Where (c, a, x)",
    ),
    "sigmoid of the other sign": (14, "e = Exp (x) p = Add (e, one) y = Div (one, p)"),
    "softsign of two": (14, "a = Abs (x) p = Add (a, two) y = Div (x, p)"),
}


@pytest.mark.parametrize("case", KEPT)
def test_leaves(case: str) -> None:
    opset, body = KEPT[case]
    model = build(body, opset=opset)
    before = op_types(model)
    check(Fuse(), model, tolerance=TOLERANCE["float"])
    assert op_types(model) == before
