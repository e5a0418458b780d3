"""``format=qoperator``: the operators that onnxruntime would fuse are written out.

A node between DequantizeLinear and QuantizeLinear becomes the integer operator that onnxruntime
makes of it while it loads the file: QLinearConv and QLinearMatMul of ONNX, QGemm, QLinearAdd and
others of ``com.microsoft``. The results are the same to the last bit. What has no such operator
stays between its conversions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from converter.core import graph as g
from converter.ops.quantizable import Role
from passes.affine.placement import Unit

_CONTRIB = "com.microsoft"
_Inputs = list[ir.Value | None]


@dataclass(frozen=True)
class _Grid:
    """Integers of a value, with their scale and zero point."""

    integers: ir.Value
    scale: ir.Value
    zero_point: ir.Value

    @property
    def flat(self) -> _Inputs:
        return [self.integers, self.scale, self.zero_point]


@dataclass(frozen=True)
class _Form:
    """An integer operator: name, domain, and how its inputs follow from those of the node."""

    op_type: str
    inputs: Callable[[list[_Grid], ir.Value | None, _Inputs], _Inputs]
    domain: str = _CONTRIB
    dropped: tuple[str, ...] = ()


def _product(grids: list[_Grid], bias: ir.Value | None, result: _Inputs) -> _Inputs:
    return [*grids[0].flat, *grids[1].flat, *result, *([bias] if bias is not None else [])]


def _gemm(grids: list[_Grid], bias: ir.Value | None, result: _Inputs) -> _Inputs:
    return [*grids[0].flat, *grids[1].flat, bias, *result]


def _operands(grids: list[_Grid], _: ir.Value | None, result: _Inputs) -> _Inputs:
    return [*(v for grid in grids for v in grid.flat), *result]


def _joined(grids: list[_Grid], _: ir.Value | None, result: _Inputs) -> _Inputs:
    return [*result, *(v for grid in grids for v in grid.flat)]


_FORMS: dict[str, _Form] = {
    "Conv": _Form("QLinearConv", _product, domain=""),
    "MatMul": _Form("QLinearMatMul", _product, domain=""),
    "Gemm": _Form("QGemm", _gemm, dropped=("beta",)),
    "Add": _Form("QLinearAdd", _operands),
    "Mul": _Form("QLinearMul", _operands),
    "Concat": _Form("QLinearConcat", _joined),
    "AveragePool": _Form("QLinearAveragePool", _operands, dropped=("dilations",)),
    "GlobalAveragePool": _Form("QLinearGlobalAveragePool", _operands),
    "LeakyRelu": _Form("QLinearLeakyRelu", _operands),
    "Sigmoid": _Form("QLinearSigmoid", _operands),
}


def write_operators(model: ir.Model, units: Iterable[Unit]) -> int:
    """Replace nodes between conversions by integer operators, in place.

    Args:
        model: Written by :class:`passes.affine.insert.Writer`.
        units: What was written.

    Returns:
        Number of nodes that compute on integers now.
    """
    names, count = g.Names(model), 0
    for unit in units:
        if unit.row.role is Role.SHARED:
            count += _moves_integers(unit.node)
        else:
            count += _computes_on_integers(model, unit, names)
    _drop_unread(model.graph)
    return count


def _computes_on_integers(model: ir.Model, unit: Unit, names: g.Names) -> bool:
    node, form = unit.node, _FORMS.get(unit.node.op_type)
    apart = unit.bias_use is not None and unit.bias_use[0] is not node
    quantize = _rounding(node.outputs[0])
    if form is None or apart or quantize is None:
        return False
    ports = [v for i, v in enumerate(node.inputs) if i != unit.row.bias and v is not None]
    grids = [grid for grid in map(_grid, ports) if grid is not None]
    whole, bias = _bias(unit)
    if len(grids) != len(ports) or not whole:
        return False
    inputs = form.inputs(grids, bias, list(quantize.inputs[1:]))
    attributes = [a for name, a in node.attributes.items() if name not in form.dropped]
    _replace(node, quantize, ir.Node(form.domain, form.op_type, inputs, attributes), names)
    if form.domain:
        model.graph.opset_imports.setdefault(form.domain, 1)
    return True


def _bias(unit: Unit) -> tuple[bool, ir.Value | None]:
    """Return the int32 bias, if there is one, and whether it is in integers."""
    position, inputs = unit.row.bias, unit.node.inputs
    value = None if position is None or len(inputs) <= position else inputs[position]
    if value is None:
        return True, None
    grid = value.producer()
    if grid is None or not g.is_op(grid, "DequantizeLinear"):
        return False, None
    return True, grid.inputs[0]


def _moves_integers(node: ir.Node) -> bool:
    """Let a node that only moves elements read and give integers."""
    value = node.inputs[0]
    grid = None if value is None else _grid(value)
    rounding = [_rounding(output) for output in node.outputs if output.name]
    if grid is None or any(quantize is None for quantize in rounding):
        return False
    node.replace_input_with(0, grid.integers)
    for quantize in rounding:
        assert quantize is not None
        source, result = quantize.inputs[0], quantize.outputs[0]
        assert source is not None
        name = result.name
        g.redirect(result, source)
        _remove(quantize)
        source.type, source.name = ir.TensorType(grid.integers.dtype or ir.DataType.UINT8), name
    return True


def _replace(node: ir.Node, quantize: ir.Node, new: ir.Node, names: g.Names) -> None:
    old, output = quantize.outputs[0], new.outputs[0]
    new.name = node.name or names.fresh(f"{old.name}_{new.op_type}")
    output.type, output.shape = old.type, old.shape
    name = old.name
    assert node.graph is not None
    node.graph.insert_before(quantize, new)
    g.redirect(old, output)
    _remove(quantize)
    output.name = name
    _remove(node)


def _remove(node: ir.Node) -> None:
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _grid(value: ir.Value) -> _Grid | None:
    """Return the integers that a value is read from."""
    node = value.producer()
    if node is None or not g.is_op(node, "DequantizeLinear") or len(node.inputs) < 3:
        return None
    integers, scale, zero_point = node.inputs[:3]
    if integers is None or scale is None or zero_point is None:
        return None
    return _Grid(integers, scale, zero_point)


def _rounding(value: ir.Value) -> ir.Node | None:
    """Return the QuantizeLinear that alone reads a value."""
    uses = tuple(value.uses())
    alone = len(uses) == 1 and not value.is_graph_output()
    return uses[0].node if alone and g.is_op(uses[0].node, "QuantizeLinear") else None


def _drop_unread(graph: ir.Graph) -> None:
    """Remove conversions to float, and numbers, that nobody reads any more."""
    for node in reversed(graph):
        value = node.outputs[0] if node.outputs else None
        if value is None or not g.is_op(node, "DequantizeLinear"):
            continue
        if value.uses() or value.is_graph_output():
            continue
        numbers = [number for number in node.inputs if number is not None]
        _remove(node)
        for number in numbers:
            kept = number.uses() or number.is_graph_output() or number.is_graph_input()
            if number.is_initializer() and not kept:
                del graph.initializers[number.name or ""]
