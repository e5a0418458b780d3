"""Activations that exporters write as arithmetic.

The figures are latencies with onnxruntime 1.31 on a CPU, fused over written out, one thread, for
float32 tensors of a hundred thousand elements. What is slower there is off by default.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.rewriting.substitute import Check, Found, New, Rewrite, Substitution

BROADCASTS = 8
"""Operator set from which on arithmetic, Max and Min broadcast as numpy does."""
ROUNDING = "float rounding of the steps: relative 1e-6 for float32, 2e-3 for float16"
SINGLE = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
"""Types for which onnxruntime has the fused operators; it lacks most of them in double."""
ALSO_DOUBLE = SINGLE | {ir.DataType.DOUBLE}
_SLOW = "onnxruntime on a CPU takes {} times as long for the fused operator"
_MOST_SLOPE = 1.0


def _unary(op_type: str, **attributes: object) -> Rewrite:
    """Return a rewrite to one operator of ``x``."""
    return lambda found: New(op_type, (found["x"],), attributes)


# GELU

_ERF = "Erf(Div(x, 1.4142135623730951) | Mul(x, 0.7071067811865476))"
_CUBE = "Pow(x, 3.0) | Mul(x, Mul(x, x) | Pow(x, 2.0))"
_SQUARED = "Mul(0.044715, Mul(x, x) | Pow(x, 2.0)) | Mul(x, Mul(x, 0.044715))"
_TANH = (
    f"Tanh(Mul(0.7978845608028654, Add(x, Mul({_CUBE}, 0.044715)))"
    f" | Mul(x, Mul(0.7978845608028654, Add({_SQUARED}, 1.0)))"
    f" | Mul(Mul(x, 0.7978845608028654), Add({_SQUARED}, 1.0)))"
)


def _halved(odd: str) -> tuple[str, ...]:
    """Write ``x * (1 + odd) / 2`` in all ways that are in use."""
    return (
        f"Mul(Mul(x, Add({odd}, 1.0)), 0.5)",
        f"Div(Mul(x, Add({odd}, 1.0)), 2.0)",
        f"Mul(Mul(x, 0.5) | Div(x, 2.0), Add({odd}, 1.0))",
        f"Mul(x, Mul(Add({odd}, 1.0), 0.5) | Div(Add({odd}, 1.0), 2.0))",
        f"Mul(x, Add(Mul({odd}, 0.5) | Div({odd}, 2.0), 0.5))",
    )


GELU = Substitution(  # 0.9 to 1.0
    name="gelus_fused",
    makes="Gelu",
    patterns=_halved(_ERF),
    rewrite=_unary("Gelu"),
    since=20,
    tolerance=ROUNDING,
    dtypes=SINGLE,
    shaped="x",
)
GELU_TANH = Substitution(  # 0.4
    name="gelus_by_tanh_fused",
    makes="Gelu",
    patterns=_halved(_TANH),
    rewrite=_unary("Gelu", approximate="tanh"),
    since=20,
    tolerance=ROUNDING,
    dtypes=SINGLE,
    shaped="x",
)

# Hard sigmoid and hard swish

_CLIP = "Clip(Add(x, 3.0), 0.0, 6.0) | Min(Max(Add(x, 3.0), 0.0) | Relu(Add(x, 3.0)), 6.0)"
_CLIP = f"{_CLIP} | (clip := Clip(Add(x, 3.0))) | Max(Min(Add(x, 3.0), 6.0), 0.0)"


def _clips(node: str, low: float, high: float) -> Check:
    """Check the limits of a Clip that has them as attributes."""

    def check(found: Found) -> str | None:
        if node not in found.match.nodes:
            return None
        limits = (found.attribute(node, "min"), found.attribute(node, "max"))
        return None if limits == (low, high) else f"Clip has the limits {limits}"

    return check


def _hard_sigmoid(found: Found) -> New | str:
    slope, shift = 1.0 / 6.0, 0.5
    if "A" in found:
        given = (found.number("A"), found.number("B"))
        if given[0] is None or given[1] is None:
            return "its factors are not one number each"
        slope, shift = given[0], given[1]
        if not np.isfinite([slope, shift]).all():
            return "its factors are not finite"
    return New("HardSigmoid", (found["x"],), {"alpha": slope, "beta": shift})


def _both(*checks: Check) -> Check:
    return lambda found: next((r for r in (check(found) for check in checks) if r), None)


HARD_SIGMOID = Substitution(  # 0.4
    name="hard_sigmoids_fused",
    patterns=(
        f"Div({_CLIP}, 6.0)",
        f"Mul({_CLIP}, 0.16666666666666666)",
        "Clip(Add(Mul(x, A), B), 0.0, 1.0)",
        "Clip(Div(Add(x, 3.0), 6.0) | Mul(Add(x, 3.0), 0.16666666666666666), 0.0, 1.0)",
        "(unit := Clip(Add(Mul(x, A), B)))",
        "(unit := Clip(Div(Add(x, 3.0), 6.0) | Mul(Add(x, 3.0), 0.16666666666666666)))",
        "Min(Max(Add(Mul(x, A), B), 0.0) | Relu(Add(Mul(x, A), B)), 1.0)",
        "Max(Min(Add(Mul(x, A), B), 1.0), 0.0)",
    ),
    rewrite=_hard_sigmoid,
    check=_both(_clips("clip", 0.0, 6.0), _clips("unit", 0.0, 1.0)),
    since=BROADCASTS,
    tolerance=ROUNDING,
    dtypes=SINGLE,
    shaped="x",
)


def _hard_swish(found: Found) -> New:
    if found.opset >= 14:
        return New("HardSwish", (found["x"],))
    gate = New("HardSigmoid", (found["x"],), {"alpha": 1.0 / 6.0, "beta": 0.5})
    return New("Mul", (found["x"], gate))


HARD_SWISH = Substitution(  # 0.6; 1.0 from a hard sigmoid
    name="hard_swishes_fused",
    patterns=(
        f"Div(Mul(x, {_CLIP}), 6.0)",
        f"Mul(Mul(x, {_CLIP}), 0.16666666666666666)",
        f"Mul(x, Div({_CLIP}, 6.0) | Mul({_CLIP}, 0.16666666666666666))",
        f"Mul(Div(x, 6.0) | Mul(x, 0.16666666666666666), {_CLIP})",
    ),
    rewrite=_hard_swish,
    check=_clips("clip", 0.0, 6.0),
    since=BROADCASTS,
    tolerance=ROUNDING,
    dtypes=SINGLE,
    shaped="x",
)
HARD_SWISH_GATE = Substitution(
    name="hard_swishes_fused",
    makes="HardSwish",
    patterns=("Mul(x, HardSigmoid(x, alpha=0.16666666666666666, beta=0.5))",),
    rewrite=_unary("HardSwish"),
    since=14,
    tolerance=ROUNDING,
    dtypes=SINGLE,
)

# Limits: Max and Min with numbers


def _limits(found: Found) -> tuple[float, float] | str:
    """Return the least and the greatest number of a chain of limits."""
    names = ("LOW", "HIGH")
    given = [found.number(name) if name in found else None for name in names]
    if any(name in found and number is None for name, number in zip(names, given, strict=True)):
        return "its limits are not one number each"
    low = 0.0 if given[0] is None else given[0]
    high = np.inf if given[1] is None else given[1]
    return (low, high) if low <= high else "its lower limit lies above the upper one"


def _clip(found: Found) -> New | str:
    limits = _limits(found)
    if isinstance(limits, str):
        return limits
    low, high = limits
    if found.opset < 11:
        return New("Clip", (found["x"],), {"min": low, "max": high})
    dtype = found.work.facts.of(found.root.outputs[0]).dtype
    assert dtype is not None
    bounds = [np.array(limit, dtype.numpy()) for limit in limits]
    given = [_scalar(found, name) for name in ("LOW", "HIGH")]
    return New("Clip", (found["x"], *(g or b for g, b in zip(given, bounds, strict=True))))


def _scalar(found: Found, name: str) -> ir.Value | None:
    """Return a limit that can be used as it is."""
    if name not in found or len(found.array(name).shape):
        return None
    return found[name]


CLIP = Substitution(  # 0.4
    name="limits_fused",
    patterns=(
        "Min(Max(x, LOW) | Relu(x), HIGH)",
        "Max(Min(x, HIGH), LOW)",
    ),
    rewrite=_clip,
    since=BROADCASTS,
    dtypes=ALSO_DOUBLE,
    shaped="x",
)
RELU = Substitution(  # 0.7; in double onnxruntime cannot load a Relu before a Clip
    name="relus_fused",
    patterns=("Max(x, 0.0)",),
    rewrite=_unary("Relu"),
    since=BROADCASTS,
    dtypes=SINGLE,
    shaped="x",
)


def _relu_clip(found: Found) -> New | str:
    if "LOW" not in found:
        return New("Clip", (found["x"], *found.root.inputs[1:]))
    low, high = found.number("LOW"), found.number("HIGH")
    if low is None or high is None or not 0.0 <= low <= high:
        return "Clip before it has a negative limit"
    return New("Clip", (found["x"], found["LOW"], found["HIGH"]))


RELU_CLIP = Substitution(  # 1.0: onnxruntime does it, too
    name="relus_in_clips_fused",
    patterns=("Clip(Relu(x), 0.0, ...)", "Relu(Clip(x, LOW, HIGH))"),
    rewrite=_relu_clip,
    since=11,
    dtypes=SINGLE,
)


# Leaky ones


def _leaky(found: Found) -> New | str:
    slope = found.number("A")
    if slope is None or not np.isfinite(slope):
        return "its slope is not one finite number"
    if found.root.op_type == "Max" and not 0.0 < slope <= _MOST_SLOPE:
        return f"Max of x and {slope:g} x is no LeakyRelu"
    if found.root.op_type == "Add":
        slope = -slope
    return New("LeakyRelu", (found["x"],), {"alpha": slope})


LEAKY_RELU = Substitution(  # 0.4 to 0.7
    name="leaky_relus_fused",
    patterns=(
        "Max(x, Mul(x, A))",
        "Where(Greater(x, 0.0) | GreaterOrEqual(x, 0.0), x, Mul(x, A))",
        "Where(Less(x, 0.0) | LessOrEqual(x, 0.0), Mul(x, A), x)",
        "Sub(Relu(x), Mul(Relu(Neg(x)), A))",
        "Add(Relu(x), Mul(Relu(Neg(x)), A))",
    ),
    rewrite=_leaky,
    since=BROADCASTS,
    tolerance=ROUNDING,
    dtypes=frozenset({ir.DataType.FLOAT}),  # float16: 1.0 to 1.15
    shaped="x",
)


def _prelu(found: Found) -> New | str:
    slope, dims = found.array("A"), found.dims("x")
    if slope.size == 1 or not np.isfinite(slope).all():
        return "its slope is one number, or not finite"
    if dims is None or slope.ndim > len(dims):
        return "its slope may have more axes than its input"
    pairs = zip(slope.shape[::-1], dims[::-1], strict=False)
    if any(size not in (1, dim) for size, dim in pairs):
        return "its slope may be larger than its input"
    negated = found.root.op_type == "Add"
    return New("PRelu", (found["x"], np.asarray(-slope) if negated else found["A"]))


PRELU = Substitution(
    name="prelus_fused",
    makes="PRelu",
    patterns=LEAKY_RELU.patterns[1:],
    rewrite=_prelu,
    since=9,
    tolerance=ROUNDING,
    dtypes=SINGLE,
    extra=_SLOW.format(6),
)

# Others

SIGMOID = Substitution(  # 0.6; 1.8 in double
    name="sigmoids_fused",
    patterns=("Div(1.0, Add(Exp(Neg(x)), 1.0))", "Reciprocal(Add(Exp(Neg(x)), 1.0))"),
    rewrite=_unary("Sigmoid"),
    since=BROADCASTS,
    tolerance=ROUNDING,
    dtypes=SINGLE,
    shaped="x",
)
SOFTSIGN = Substitution(  # 0.6
    name="softsigns_fused",
    patterns=("Div(x, Add(Abs(x), 1.0))",),
    rewrite=_unary("Softsign"),
    since=BROADCASTS,
    tolerance=ROUNDING,
    dtypes=SINGLE,
    shaped="x",
)
MISH = Substitution(  # 1.0: onnxruntime expands it
    name="mishes_fused",
    makes="Mish",
    patterns=("Mul(x, Tanh(Softplus(x)))",),
    rewrite=_unary("Mish"),
    since=18,
    tolerance=ROUNDING,
    dtypes=SINGLE,
)


def _selu(found: Found) -> New | str:
    factor = found.number("G")
    if factor is None:
        return "its factor is not one number"
    alpha = found.attribute("elu", "alpha")
    return New("Selu", (found["x"],), {"alpha": alpha, "gamma": factor})


SELU = Substitution(  # 1.0
    name="selus_fused",
    patterns=("Mul((elu := Elu(x)), G)",),
    rewrite=_selu,
    since=BROADCASTS,
    tolerance=ROUNDING,
    dtypes=SINGLE,
    shaped="x",
)
SWISH = Substitution(
    name="swishes_fused",
    makes="Swish",
    patterns=("Mul(x, Sigmoid(x))",),
    rewrite=_unary("Swish"),
    since=24,
    tolerance=ROUNDING,
    dtypes=SINGLE,
    extra=_SLOW.format(1.7),
)
ELU = Substitution(
    name="elus_fused",
    patterns=(
        "Where(Greater(x, 0.0) | GreaterOrEqual(x, 0.0), x, Sub(Exp(x), 1.0))",
        "Add(Relu(x), Sub(Exp(Min(x, 0.0)), 1.0))",
    ),
    rewrite=_unary("Elu"),
    since=BROADCASTS,
    tolerance=ROUNDING,
    dtypes=SINGLE,
    shaped="x",
    extra=_SLOW.format(2.3),
)
SOFTPLUS = Substitution(
    name="softpluses_fused",
    patterns=("Log(Add(Exp(x), 1.0))",),
    rewrite=_unary("Softplus"),
    since=BROADCASTS,
    tolerance=ROUNDING + "; finite where the exponential overflows",
    dtypes=SINGLE,
    shaped="x",
    extra=_SLOW.format(5),
)

SUBSTITUTIONS = (
    GELU,
    GELU_TANH,
    HARD_SWISH,
    HARD_SWISH_GATE,
    HARD_SIGMOID,
    LEAKY_RELU,
    PRELU,
    CLIP,
    RELU,
    RELU_CLIP,
    SIGMOID,
    SOFTSIGN,
    MISH,
    SELU,
    SWISH,
    ELU,
    SOFTPLUS,
)
RULES = tuple(substitution.rule() for substitution in SUBSTITUTIONS)
EXTRA = tuple(s.name for s in SUBSTITUTIONS if s.extra)
"""Names of the rules that are off by default."""
