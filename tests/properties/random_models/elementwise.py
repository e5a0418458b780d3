"""Steps that compute element by element, in all types, with constants that invite rewrites."""

from __future__ import annotations

import numpy as np
from properties.random_models.builder import (
    BOOL,
    F16,
    F32,
    F64,
    FLOATS,
    I32,
    I64,
    INTEGERS,
    U8,
    Builder,
    Tensor,
    broadcast,
)

NUMPY = {F32: np.float32, F16: np.float16, F64: np.float64, I64: np.int64, I32: np.int32}
_UNARY = ("Relu", "Tanh", "Neg", "Abs", "Sigmoid", "Identity", "Floor", "Sign", "Softplus", "Ceil")
_MORE = ("Erf", "HardSigmoid", "LeakyRelu", "Elu", "Round", "Selu", "Cos", "Atan", "Sqrt", "Exp")
_NUMBERS = (0.0, -0.0, 1.0, -1.0, 2.5, 0.5, 3.0, 1e-3)
_IDEMPOTENT = ("Relu", "Abs", "Ceil", "Floor", "Round", "Sign", "Not", "Neg", "Identity")


def unary(b: Builder) -> None:
    x = b.pick(lambda v: v.dtype in (F32, F32, F64))
    if x is None:
        return
    op = b.choose(_UNARY if x.dtype == F64 or b.chance(0.6) else _MORE)
    op = "Tanh" if x.dtype == F64 and op in ("Softplus", "Sign") else op
    if op in ("Sqrt", "Exp"):
        x = b.node("Abs" if op == "Sqrt" else "Tanh", [x], x)
    b.node(op, [x], x)


def twice(b: Builder) -> None:
    """The same operator again: idempotent, an involution, or neither."""
    x = b.pick(lambda v: v.dtype in (F32, BOOL, I64))
    if x is None:
        return
    if x.dtype == BOOL:
        ops = ("Not",)
    elif x.dtype == I64:
        ops = ("Abs", "Neg", "Sign", "Identity")
    else:
        ops = tuple(op for op in _IDEMPOTENT if op != "Not")
    op = b.choose(ops)
    b.node(op, [b.node(op, [x], x)], x)


def binary(b: Builder) -> None:
    x = b.pick(lambda v: v.dtype in (F32, I64, F64, I32))
    if x is None:
        return
    y = b.pick(lambda v: v.dtype == x.dtype and broadcast(v.dims, x.dims) is not None)
    assert y is not None
    dims = broadcast(x.dims, y.dims)
    assert dims is not None
    ops = ("Add", "Sub", "Mul", "Max", "Min", "Add", "Mul")
    if x.dtype in INTEGERS:
        ops = ("Add", "Sub", "Mul")
    result = b.node(b.choose(ops), [x, y], (x.dtype, dims))
    if x.dtype == F32 and b.chance(0.3):
        b.node("Tanh", [result], result)


def _operand(b: Builder, x: Tensor) -> tuple[np.ndarray, tuple[int | str, ...]]:
    """Make a constant that broadcasts with ``x``: scalar, vectors, or of a higher rank."""
    kind = b.random.random()
    number = b.choose(_NUMBERS)
    last = x.dims[-1] if x.dims and isinstance(x.dims[-1], int) else 1
    if kind < 0.35:
        array = np.array(number)
    elif kind < 0.5:
        array = np.array([number])
    elif kind < 0.65:
        array = np.full((1,) * (x.rank + b.choose((0, 0, 1))), number)
    elif kind < 0.8:
        array = np.full((last,), number)
    else:
        array = np.round(b.weights(last).astype(np.float64), 3)
    dims = broadcast(x.dims, array.shape)
    assert dims is not None
    return array, dims


def with_constant(b: Builder) -> None:
    """A chain of one to three Add, Sub, Mul, Div, Pow with constants, on either side."""
    x = b.pick(lambda v: v.dtype in (*FLOATS, *INTEGERS))
    if x is None:
        return
    for _ in range(b.choose((1, 1, 2, 3))):
        array, dims = _operand(b, x)
        op = b.choose(("Add", "Mul", "Sub", "Div", "Add", "Mul", "Max", "Min", "Pow", "Div"))
        if x.dtype in INTEGERS:
            array = np.round(array)
            op = "Mul" if op in ("Pow", "Max", "Min") else op
        if x.dtype == F16 and op in ("Pow", "Max", "Min"):
            op = "Add"
        if op == "Pow":
            array, dims = np.array(b.choose((0.0, 1.0, 2.0, 3.0, -1.0, 0.5))), x.dims
            x = b.node("Abs", [x], x) if array == 0.5 else x
        if op == "Div":
            array = np.where(array == 0, 1, array)
        other = b.constant(array, NUMPY[x.dtype])
        swap = op in ("Add", "Mul", "Sub", "Max") and b.chance(0.4)
        x = b.node(op, [other, x] if swap else [x, other], (x.dtype, dims))


def cast(b: Builder) -> None:
    """Chains of casts, widening, narrowing and back; big and odd numbers pass through them."""
    x = b.pick()
    if x is None:
        return
    for _ in range(b.choose((1, 1, 2, 3))):
        options = (F32, F32, F64, F16, I64, I32, BOOL, U8)
        to = b.choose(options)
        if to in (I64, I32, U8) and x.dtype in FLOATS:
            # what lies outside the range of the integers is not defined
            low, high = (0.0, 200.0) if to == U8 else (-1e4, 1e4)
            kind = NUMPY[x.dtype]
            x = b.node("Clip", [x, b.constant(low, kind), b.constant(high, kind)], x)
            x = _without_nan(b, x)
        x = b.node("Cast", [x], (to, x.dims), to=to)


def _without_nan(b: Builder, x: Tensor) -> Tensor:
    if x.dtype == F64:
        return b.node("Max", [x, b.constant(-1e4, np.float64)], x)
    if b.opset < 13 or x.dtype == F16:
        return x
    nan = b.node("IsNaN", [x], (BOOL, x.dims))
    return b.node("Where", [nan, b.constant(0.0, NUMPY[x.dtype]), x], x)


def compare(b: Builder) -> None:
    x = b.pick(lambda v: v.dtype in (F32, I64))
    if x is None:
        return
    y = b.pick(lambda v: v.dtype == x.dtype and broadcast(v.dims, x.dims) is not None)
    assert y is not None
    op = b.choose(("Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal"))
    if op.endswith("OrEqual") and b.opset < 12:
        op = op[:-7]
    if b.chance(0.3):
        number = b.constant(b.choose((0.0, -0.0, 1.0)), NUMPY[x.dtype])
        b.node(op, [x, number], (BOOL, x.dims))
        return
    b.node(op, [x, y], (BOOL, broadcast(x.dims, y.dims) or ()))


def logic(b: Builder) -> None:
    x = b.pick(lambda v: v.dtype == BOOL)
    if x is None:
        return
    y = b.pick(lambda v: v.dtype == BOOL and broadcast(v.dims, x.dims) is not None)
    assert y is not None
    dims = broadcast(x.dims, y.dims) or ()
    other: Tensor | str = y
    if b.chance(0.4):
        other, dims = b.constant(b.chance(0.5), np.bool_), x.dims
    b.node(b.choose(("And", "Or", "Xor")), [x, other], (BOOL, dims))


def where(b: Builder) -> None:
    x = b.floats()
    if x is None:
        return
    condition = b.pick(lambda v: v.dtype == BOOL and broadcast(v.dims, x.dims) is not None)
    if condition is None or b.chance(0.3):
        b.node("Where", [b.constant(b.chance(0.5), np.bool_), x, x], x)
        return
    other = b.constant(b.choose(_NUMBERS))
    dims = broadcast(condition.dims, x.dims) or ()
    b.node("Where", [condition, x, other if b.chance(0.5) else x], (F32, dims))


def clip(b: Builder) -> None:
    """One after the other, with limits left out, and sometimes with min above max."""
    x = b.floats()
    if x is None:
        return
    for _ in range(b.choose((1, 2))):
        low = b.constant(b.choose((-1.0, 0.0, -np.inf, 2.0))) if b.chance(0.7) else ""
        high = b.constant(b.choose((1.0, 6.0, np.inf, 0.5))) if b.chance(0.7) else ""
        if b.chance(0.3):
            x = b.node("Relu", [x], x)
        x = b.node("Clip", [x, low, high], x)


def integers(b: Builder) -> None:
    x = b.pick(lambda v: v.dtype in INTEGERS)
    if x is None:
        return
    number = b.constant(b.choose((1, 2, 3, -2, 1 << 20)), NUMPY[x.dtype])
    b.node(b.choose(("Div", "Mod", "Mul", "Add")), [x, number], x)


STEPS = (
    (unary, 8),
    (twice, 3),
    (binary, 8),
    (with_constant, 9),
    (cast, 5),
    (compare, 3),
    (logic, 2),
    (where, 2),
    (clip, 3),
    (integers, 2),
)
