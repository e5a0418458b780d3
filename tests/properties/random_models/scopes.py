"""Steps that open a scope: If, Loop and Scan with captured values, and model functions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper
from properties.random_models.builder import BOOL, F32, I64, Builder, Dims, Shared, Tensor

_DEEPEST = 2


def _port(name: str, dtype: int, dims: Dims | None) -> onnx.ValueInfoProto:
    if dims is None:
        return helper.make_tensor_value_info(name, dtype, None)
    shown = [None if isinstance(d, str) else d for d in dims]
    return helper.make_tensor_value_info(name, dtype, shown)


def _body(b: Builder, inputs: list[Tensor], outputs: list[str], name: str) -> onnx.GraphProto:
    """Close the scope; outputs have a type and, as in many exported models, no shape."""
    kinds = {value.name: value.dtype for value in b.visible()}
    return helper.make_graph(
        b.nodes,
        name,
        [_port(value.name, value.dtype, None if value.dims else ()) for value in inputs],
        [_port(output, kinds.get(output, F32), None) for output in outputs],
        b.initializers,
    )


def _grow(b: Builder) -> None:
    from properties.random_models.model import step

    for _ in range(b.choose((0, 1, 2, 4))):
        step(b)


def _result(b: Builder, like: Tensor) -> str:
    """Return an output of the scope with the form of ``like``; often nearly nothing is done."""
    value = b.pick(lambda v: (v.dtype, v.dims) == (like.dtype, like.dims)) or like
    op = b.choose(("Identity", "Identity", "Neg" if like.dtype in (F32, I64) else "Identity"))
    return b.node(op, [value], like).name


def if_node(b: Builder) -> None:
    """A condition from an input, from a constant, or computed from constants."""
    if b.depth >= _DEEPEST:
        return
    like = b.floats()
    if like is None:
        return
    condition: Tensor | str | None = b.pick(lambda v: v.dtype == BOOL and v.dims == ())
    kind = b.random.random()
    if kind < 0.25 or condition is None:
        condition = b.constant(b.chance(0.5), np.bool_)
    elif kind < 0.35:
        condition = b.node("Not", [b.constant(b.chance(0.5), np.bool_)], (BOOL, ()))
    count = b.choose((1, 1, 2))
    branches = {}
    for name in ("then_branch", "else_branch"):
        inner = Builder(b.shared, b)
        _grow(inner)
        outputs = [_result(inner, like) for _ in range(count)]
        branches[name] = _body(inner, [], outputs, name)
    b.many("If", [condition], [(like.dtype, like.dims)] * count, **branches)


def loop(b: Builder) -> None:
    """One carried value, captured ones, and often a scan output; 0 to 3 turns."""
    like = b.floats()
    if b.depth >= _DEEPEST or like is None:
        return
    inner = Builder(b.shared, b)
    turn = Tensor(inner.name(), I64, ())
    going = Tensor(inner.name(), BOOL, ())
    carried = Tensor(inner.name(), like.dtype, like.dims)
    inner.values += [turn, going, carried]
    _grow(inner)
    state = _result(inner, carried)
    again = inner.node("Identity", [going], going).name
    scanned = [_result(inner, carried)] if b.chance(0.5) else []
    body = _body(inner, [turn, going, carried], [again, state, *scanned], "body")
    turns: Tensor | str = b.constant(b.choose((0, 1, 2, 3)), np.int64)
    count: int | str = b.symbol()
    if scanned:
        # what onnxruntime stacks of no turns has the shape that it happened to infer
        turns = b.constant(b.choose((1, 2, 3)), np.int64)
    elif like.rank and b.chance(0.3):
        shape = b.node("Shape", [like], (I64, (like.rank,)))
        turns = b.node("Gather", [shape, b.constant(0, np.int64)], (I64, ()))
    inputs = [turns, b.constant(True, np.bool_) if b.chance(0.7) else "", like]
    outs = [(like.dtype, like.dims), *[(like.dtype, (count, *like.dims)) for _ in scanned]]
    b.many("Loop", inputs, outs, body=body)


def scan(b: Builder) -> None:
    """A running sum over axis 0 of a value; two outputs that may be one value."""
    like = b.floats(1, 3)
    if b.depth >= _DEEPEST or like is None:
        return
    inner = Builder(b.shared, b)
    row = Tensor(inner.name(), F32, like.dims[1:])
    total = Tensor(inner.name(), F32, like.dims[1:])
    inner.values += [total, row]
    summed = inner.node("Add", [total, row], row)
    _grow(inner)
    shown = inner.node(b.choose(("Identity", "Tanh")), [summed], row)
    body = _body(inner, [total, row], [summed.name, shown.name], "body")
    first = b.node("Gather", [like, b.constant(0, np.int64)], (F32, like.dims[1:]))
    start = b.node("Mul", [first, b.constant(0.0)], first)
    outs = [(F32, like.dims[1:]), (F32, like.dims)]
    b.many("Scan", [start, like], outs, body=body, num_scan_inputs=1)


def function(b: Builder) -> None:
    """Call a model function, made now or before; some take an attribute, some call another."""
    x = b.floats()
    if x is None:
        return
    made = b.shared.functions
    if not made or (b.chance(0.3) and len(made) < 3):
        made.append(_define(b))
    target = b.choose(made)
    alpha = {"alpha": b.choose((0.1, 0.5))} if list(target.attribute) else {}
    b.node(target.name, [x], x, domain="local", **alpha)
    if b.chance(0.3):
        b.node(target.name, [x], x, domain="local", **alpha)


def _define(b: Builder) -> onnx.FunctionProto:
    inner = Builder(Shared(b.random, b.opset, b.shared.names))
    inner.in_function = True
    x = Tensor("x", F32, ("?in",))
    inner.values.append(x)
    attributes = []
    if b.chance(0.4):
        attributes = ["alpha"]
        node = helper.make_node("LeakyRelu", ["x"], ["leaky"])
        node.attribute.append(onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT))
        node.attribute[0].ref_attr_name = "alpha"
        inner.nodes.append(node)
        inner.values.append(Tensor("leaky", F32, ("?in",)))
    steps: tuple[Callable[[Builder], Tensor], ...] = (
        lambda f: f.node("Mul", [f.values[-1], _inline(f, 1.0)], x),
        lambda f: f.node("Add", [f.values[-1], _inline(f, -0.0)], x),
        lambda f: f.node("Identity", [f.values[-1]], x),
        lambda f: f.node("Relu", [f.values[-1]], x),
        lambda f: f.node("Cast", [f.values[-1]], x, to=F32),
        lambda f: f.node("Add", [f.values[-1], f.node("Neg", [_inline(f, 2.0)], (F32, ()))], x),
        lambda f: f.node("Mul", [f.values[-1], f.choose(f.values)], x),
    )
    for _ in range(b.choose((1, 2, 4))):
        b.choose(steps)(inner)
    if b.shared.functions and b.chance(0.4):
        called = b.choose(b.shared.functions)
        kw = {"alpha": 0.25} if list(called.attribute) else {}
        inner.node(called.name, [inner.values[-1]], x, domain="local", **kw)
    last = inner.values[-1].name
    if last == "x":
        last = inner.node("Identity", [x], x).name
    name = f"F{len(b.shared.functions)}"
    imports = [helper.make_opsetid("", b.opset), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, ["x"], [last], inner.nodes, imports, attributes)


def _inline(b: Builder, number: float) -> str:
    name = b.name("c")
    tensor = numpy_helper.from_array(np.float32(number), name)
    b.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
    return name


STEPS = ((if_node, 4), (loop, 2), (scan, 2), (function, 3))
