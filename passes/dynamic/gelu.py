"""GELU written so that onnxruntime joins it, or so that factors per channel can go into it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from converter.core import graph as g
from converter.core.tensors import MappedTensor
from passes.dynamic.store import Builder, constant, take_place

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_ir as ir

    from passes.affine.grid import Array
    from passes.dynamic.plan import Product

_CLOSE = 1e-4


def expand(model: ir.Model, values: Iterable[ir.Value]) -> int:
    """Write Gelu nodes as the arithmetic that onnxruntime joins to one operator again.

    ``x * (1 + erf(x / sqrt(2))) * 0.5`` costs the same, and its last constant can take up factors.

    Args:
        model: Changed in place.
        values: Float32 values of the main graph; those that Gelu makes are rewritten.

    Returns:
        How many there were.
    """
    makers = dict.fromkeys(value.producer() for value in values)
    nodes = [node for node in makers if node is not None and _exact_gelu(node)]
    if not nodes:
        return 0
    names = g.Names(model)
    constants = {
        name: g.add_initializer(model.graph, names.fresh(f"gelu_{name}"), _scalar(number))
        for name, number in {"root": math.sqrt(2.0), "one": 1.0, "half": 0.5}.items()
    }
    for node in nodes:
        x, output = node.inputs[0], node.outputs[0]
        assert x is not None
        build, name = Builder(names, node), output.name or "gelu"
        shaped = build("Erf", [build("Div", [x, constants["root"]], name)], name)
        gate = build("Add", [shaped, constants["one"]], name)
        product = build("Mul", [x, gate], name)
        take_place(node, output, build("Mul", [product, constants["half"]], name))
    return len(nodes)


def join(model: ir.Model, products: Iterable[Product]) -> int:
    """Write GELU in the order of ``x * (1 + erf(x / sqrt(2))) * 0.5``.

    onnxruntime joins only that to Gelu, which is nearly twice as fast as the arithmetic. Where
    simplification moved the half into the weight of the product that follows, it comes back and
    the weight is doubled, which is exact.

    Returns:
        How many were changed.
    """
    readers: dict[ir.Value, list[Product]] = {}
    for product in products:
        readers.setdefault(product.x, []).append(product)
    found = [(_parts(value), users) for value, users in readers.items() if _read_by(value, users)]
    chosen = [(parts, users) for parts, users in found if parts is not None]
    names = g.Names(model) if chosen else None
    changed = 0
    for parts, users in chosen:
        assert names is not None
        x, gate, halved = parts
        if not halved and not all(_own_weight(user) for user in users):
            continue
        half = constant(names, users[0].weight.source, "gelu_half", _scalar(0.5))
        before = users[0].x
        build, name = Builder(names, users[0].node), before.name or "gelu"
        result = build("Mul", [build("Mul", [x, gate], name), half], name)
        for user in users:
            user.node.replace_input_with(0, result)
            if not halved:
                g.set_constant(user.weight.source, MappedTensor(user.weight.tensor, _doubled))
        _remove_unread(before)
        changed += 1
    return changed


def _remove_unread(value: ir.Value) -> None:
    """Remove the product that made a value that nobody reads any more, and the half before it."""
    for _ in range(2):
        node = value.producer()
        if node is None or node.graph is None or value.uses() or not g.is_op(node, "Mul"):
            return
        inner = [v for v in node.inputs if v is not None and v.producer() is not None]
        node.graph.remove(node, safe=True)
        value = next((v for v in inner if not v.uses()), value)


def _read_by(value: ir.Value, users: list[Product]) -> bool:
    """Tell whether only these products read the value, in the graph that makes it."""
    producer = value.producer()
    if producer is None or value.is_graph_output():
        return False
    if any(user.graph is not producer.graph for user in users):
        return False
    return {use.node for use in value.uses()} == {user.node for user in users}


def _parts(value: ir.Value) -> tuple[ir.Value, ir.Value, bool] | None:
    """Take GELU in an order that is not joined to (x, 1 + erf(x / sqrt(2)), has its half)."""
    product = value.producer()
    if product is None or not g.is_op(product, "Mul"):
        return None
    for position in (0, 1):
        gate, x = product.inputs[position], product.inputs[1 - position]
        halved = gate is not None and _halves(gate)
        if halved and gate is not None:
            maker = gate.producer()
            assert maker is not None
            gate = next((v for v in maker.inputs if g.constant(v) is None), None)
        if x is not None and gate is not None and _is_gate(gate, x):
            return x, gate, halved
    return None


def _halves(value: ir.Value) -> bool:
    node = value.producer()
    if node is None or not g.is_op(node, "Mul") or len(value.uses()) != 1:
        return False
    return any(_is_scalar(v, 0.5) for v in node.inputs)


def _own_weight(product: Product) -> bool:
    source = product.weight.source
    return source.is_initializer() and len(tuple(source.uses())) == 1


def _is_gate(gate: ir.Value | None, x: ir.Value | None) -> bool:
    """Tell whether the value is ``1 + erf(x / sqrt(2))`` and nobody else reads its parts."""
    for op_type, number in (("Add", 1.0), ("Erf", None), ("Div", math.sqrt(2.0))):
        node = gate.producer() if gate is not None else None
        if gate is None or node is None or not g.is_op(node, op_type) or len(gate.uses()) != 1:
            return False
        if number is not None and not any(_is_scalar(v, number) for v in node.inputs):
            return False
        if op_type == "Div" and not _is_scalar(node.inputs[1], math.sqrt(2.0)):
            return False
        inner = [v for v in node.inputs if g.constant(v) is None]
        gate = inner[0] if len(inner) == 1 else None
    return gate is not None and gate is x


def _is_scalar(value: ir.Value | None, number: float) -> bool:
    tensor = g.constant(value)
    return (
        tensor is not None
        and tensor.size == 1
        and abs(float(tensor.numpy().reshape(-1)[0]) - number) < _CLOSE
    )


def _doubled(chunk: Array, _: int) -> Array:
    return chunk * np.float32(2.0)


def _exact_gelu(node: ir.Node) -> bool:
    return g.is_op(node, "Gelu") and node.attributes.get_string("approximate", "none") == "none"


def _scalar(number: float) -> Array:
    return np.asarray(number, np.float32)
