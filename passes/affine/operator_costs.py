"""What one planned node costs in float and on integers, from the shapes of its values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from converter.core import graph as g
from converter.ops.integer_cost import (
    RATES,
    Amounts,
    Product,
    cost,
    float_conv,
    integer_conv,
    matrix,
)
from converter.ops.quantizable import Role
from passes.affine.placement import Unit
from passes.affine.sizes import Shapes


@dataclass(frozen=True)
class Costs:
    """Nanoseconds of one node.

    Attributes:
        real: In float, with the activations after it.
        integer: On integers, where those are free.
    """

    real: float
    integer: float


def costs(unit: Unit, shapes: Shapes) -> Costs | None:
    """Return both costs of a unit; None when a shape or the operator is unknown."""
    out = shapes.get(unit.node.outputs[0].name or "")
    into = shapes.get(unit.inputs[0].name or "")
    if out is None or into is None:
        return None
    found = _ESTIMATES.get(unit.node.op_type, _elementwise)(unit, into, out)
    if found is None or not unit.absorbed or unit.node.op_type == "Conv":
        return found
    # A convolution in float has its activation built in as well; others run it after them.
    activation = _each(math.prod(out))
    return Costs(found.real + cost("float:LeakyRelu", activation), found.integer)


def _each(elements: float) -> Amounts:
    return {"node": 1, "element": elements}


def _conv(unit: Unit, into: tuple[int, ...], out: tuple[int, ...]) -> Costs | None:
    weight = g.constant(unit.weight)
    if weight is None or len(out) < 3:
        return None
    shape = weight.shape.numpy()
    product = Product(
        rows=math.prod(out) // max(1, out[1]),
        inputs=into[1],
        outputs=shape[0],
        taps=math.prod(shape[2:]),
        groups=max(1, unit.node.attributes.get_int("group", 1)),
        planar=len(out) == 4,
    )
    (real, amounts), (integer, others) = float_conv(product), integer_conv(product)
    return Costs(cost(f"float:{real}", amounts), cost(f"integer:{integer}", others))


def _matrix(unit: Unit, _: tuple[int, ...], out: tuple[int, ...]) -> Costs:
    weight = g.constant(unit.weight)
    assert weight is not None
    columns = unit.channels
    product = Product(math.prod(out) // max(1, columns), weight.size // max(1, columns), columns)
    kind = unit.node.op_type
    return Costs(
        cost(f"float:{kind}", matrix(product, 4)), cost(f"integer:{kind}", matrix(product, 1))
    )


def _elementwise(unit: Unit, _: tuple[int, ...], out: tuple[int, ...]) -> Costs | None:
    kind = unit.node.op_type
    if unit.row.role is Role.SHARED and f"integer:{kind}" not in RATES:
        kind = "Transpose"  # moves every element once
    if f"integer:{kind}" not in RATES:
        return None
    elements = _each(math.prod(out))
    return Costs(cost(f"float:{kind}", elements), cost(f"integer:{kind}", elements))


def _pool(unit: Unit, _: tuple[int, ...], out: tuple[int, ...]) -> Costs:
    kind, taps = unit.node.op_type, math.prod(unit.node.attributes.get_ints("kernel_shape", ()))
    elements = _each(math.prod(out) * taps)
    return Costs(cost(f"float:{kind}", elements), cost(f"integer:{kind}", elements))


def _reduction(unit: Unit, into: tuple[int, ...], _: tuple[int, ...]) -> Costs:
    kind, elements = unit.node.op_type, _each(math.prod(into))
    return Costs(cost(f"float:{kind}", elements), cost(f"integer:{kind}", elements))


def _view(_: Unit, into: tuple[int, ...], out: tuple[int, ...]) -> Costs:
    return Costs(0.0, 0.0)


_Estimate = Callable[[Unit, tuple[int, ...], tuple[int, ...]], Costs | None]
_ESTIMATES: dict[str, _Estimate] = {
    "Conv": _conv,
    "Gemm": _matrix,
    "MatMul": _matrix,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _reduction,
    "Reshape": _view,
    "Flatten": _view,
    "Squeeze": _view,
    "Unsqueeze": _view,
}
