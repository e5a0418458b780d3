"""Writing a plan into the model, in the form that onnxruntime fuses.

A product becomes::

    x -> DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul(input scale x weight scales) [-> Add]

which onnxruntime joins to DynamicQuantizeMatMul, or to MatMulIntegerToFloat where several products
read the same x: that is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from passes.affine.grid import Array
from passes.affine.numbers import QuantizedWeight
from passes.affine.scale import largest, quantize_weight, weight_scales
from passes.dynamic.plan import Constant, Lookup, Plan, Product
from passes.dynamic.recurrent import write_lstm
from passes.dynamic.store import Builder, constant, drop_unused, take_place

_FLOAT, _INT8 = ir.DataType.FLOAT, ir.DataType.INT8
_ROWS = 0
Rounding = Callable[[Array, int | None], QuantizedWeight]
"""From a float32 weight and the axis of its scales (None: one) to integers and scales."""


def nearest(weight: Array, axis: int | None) -> QuantizedWeight:
    """Round to the nearest of 255 steps that reach to the largest weight of every channel."""
    scales = weight_scales(largest(weight, axis))
    return QuantizedWeight(quantize_weight(weight, scales, axis), scales)


class Writer:
    """Rewrites one model in place; used once.

    Args:
        model: The model.
        chosen: Integers chosen already, by the name of the weight and the axis of its channels.
        per_channel: One scale per output channel of a weight and per row of a table.

    Attributes:
        counts: What was done so far.
    """

    def __init__(
        self,
        model: ir.Model,
        chosen: Mapping[tuple[str, int | None], QuantizedWeight] | None = None,
        *,
        per_channel: bool = True,
    ) -> None:
        self.model = model
        self.counts: dict[str, float] = {}
        self.per_channel = per_channel
        self._chosen = chosen or {}
        self._names = g.Names(model)
        self._stored: dict[tuple[ir.Value, int], tuple[ir.Value, ir.Value]] = {}
        self._turned: dict[tuple[ir.Value, int], bool] = {}
        self._columns: dict[ir.Value, ir.Value] = {}
        self._rounded: dict[tuple[ir.Value, ir.Graph], tuple[ir.Value, ...]] = {}

    def write(self, plan: Plan) -> None:
        """Let everything in the plan compute on integers."""
        # A weight is stored as the product reads it, unless a Gather needs its rows.
        for lookup in plan.lookups:
            self._turned[lookup.table.source, _ROWS] = False
        for product in plan.products:
            self._turned.setdefault(
                (product.weight.source, product.axis), product.weight.transposed
            )
        sources = [lookup.table.source for lookup in plan.lookups]
        sources += [product.weight.source for product in plan.products]
        for lookup in plan.lookups:
            self._write_lookup(lookup)
        for product in plan.products:
            self._write_product(product)
        for layer in plan.layers:
            sources += [layer.weight, layer.recurrence]
            write_lstm(layer, self.model, self._names, per_channel=self.per_channel)
            self._count("quantized_LSTM")
        scales = [stored[1] for stored in self._stored.values()]
        drop_unused([*sources, *scales])

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def _write_product(self, product: Product) -> None:
        node, output = product.node, product.node.outputs[0]
        name = output.name or "product"
        integers, scales = self._weight(product)
        rounded, scale, zero_point = self._round(product)
        build = Builder(self._names, node)
        summed = build("MatMulInteger", [rounded, integers, zero_point], name, ir.DataType.INT32)
        real = build("Cast", [summed], name, to=int(_FLOAT))
        step = build("Mul", [scale, scales], f"{name}_scale")
        result = build("Mul", [real, step], name)
        if product.bias is not None:
            result = build("Add", [result, product.bias], name)
        take_place(node, output, result)
        if product.added is not None:
            _put_first(product.added[0], result)
        self._count(f"quantized_{node.op_type}")

    def _round(self, product: Product) -> tuple[ir.Value, ...]:
        """Return x as integers, its scale and its zero point: once for all that read it."""
        x, key = product.x, (product.x, product.graph)
        if key not in self._rounded:
            kinds = {"": ir.DataType.UINT8, "_scale": _FLOAT, "_zero_point": ir.DataType.UINT8}
            outputs = [
                ir.Value(
                    name=self._names.fresh(f"{x.name}_quantized{suffix}"),
                    type=ir.TensorType(kind),
                    shape=ir.Shape([]) if suffix else x.shape,
                )
                for suffix, kind in kinds.items()
            ]
            name = self._names.fresh(f"{x.name}_DynamicQuantizeLinear")
            made = ir.Node("", "DynamicQuantizeLinear", [x], outputs=outputs, name=name)
            # The first product of the graph that reads x: the plan is in the order of the graph.
            product.graph.insert_before(product.node, made)
            self._rounded[key] = tuple(outputs)
            self._count("values_quantized")
        return self._rounded[key]

    def _weight(self, product: Product) -> tuple[ir.Value, ir.Value]:
        """Return the integers as (inputs, channels), and the scales (channels,)."""
        weight = product.weight
        integers, scales = self._store(weight, product.axis)
        build = Builder(self._names, product.node)
        if weight.transposed != self._turned[weight.source, product.axis]:
            name = f"{integers.name}_transposed"
            integers = build("Transpose", [integers], name, _INT8, perm=[1, 0])
        if product.factor != 1.0:
            factor = np.asarray(product.factor, np.float32)
            alpha = constant(self._names, weight.source, f"{scales.name}_alpha", factor)
            scales = build("Mul", [scales, alpha], f"{scales.name}_alpha")
        return integers, scales

    def _store(self, weight: Constant, axis: int) -> tuple[ir.Value, ir.Value]:
        """Store the integers of a weight and their scales, once for all that read them."""
        source, key = weight.source, (weight.source, axis)
        if key not in self._stored:
            rounded = self._rounding(source, axis if self.per_channel else None)
            integers = rounded.integers
            if self._turned[key]:
                integers = np.ascontiguousarray(integers.T)
            name = source.name or "weight"
            self._stored[key] = (
                constant(self._names, source, f"{name}_quantized", integers),
                constant(self._names, source, f"{name}_scale", rounded.scales),
            )
            self._count("weights_quantized")
        return self._stored[key]

    def _rounding(self, source: ir.Value, axis: int | None) -> QuantizedWeight:
        chosen = self._chosen.get((source.name or "", axis))
        if chosen is not None:
            return chosen
        weight = g.constant_array(source)
        assert weight is not None
        return nearest(weight, axis)

    def _write_lookup(self, lookup: Lookup) -> None:
        node, output, indices = lookup.node, lookup.node.outputs[0], lookup.node.inputs[1]
        assert indices is not None
        name = output.name or "rows"
        build = Builder(self._names, node)
        integers, scales = self._store(lookup.table, _ROWS)
        rows = build("Gather", [integers, indices], name, _INT8)
        real = build("Cast", [rows], name, to=int(_FLOAT))
        if self.per_channel:
            scales = build("Gather", [self._column(lookup, scales), indices], f"{name}_scale")
        take_place(node, output, build("Mul", [real, scales], name))
        self._count("quantized_Gather")

    def _column(self, lookup: Lookup, scales: ir.Value) -> ir.Value:
        """Return the scales of the rows as (rows, 1), so that a Gather of them fits the rows."""
        source = lookup.table.source
        if source not in self._columns:
            array = g.constant_array(scales)
            assert array is not None
            name = f"{scales.name}_rows"
            self._columns[source] = constant(self._names, source, name, array[:, None])
        return self._columns[source]


def _put_first(added: ir.Node, result: ir.Value) -> None:
    """Let the vector be the second operand: onnxruntime looks for it there."""
    if added.inputs[0] is not result:
        vector = added.inputs[0]
        added.replace_input_with(0, added.inputs[1])
        added.replace_input_with(1, vector)
