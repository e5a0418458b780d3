"""GELU written so that onnxruntime joins it, or so that factors per channel can go into it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from converter.core import graph as g
from passes.dynamic.store import Builder, take_place

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_ir as ir

    from passes.affine.grid import Array


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


def _exact_gelu(node: ir.Node) -> bool:
    return g.is_op(node, "Gelu") and node.attributes.get_string("approximate", "none") == "none"


def _scalar(number: float) -> Array:
    return np.asarray(number, np.float32)
