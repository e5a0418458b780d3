"""Writing a placement into the model: QuantizeLinear, DequantizeLinear and integer constants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from passes.affine.grid import INT8_SYMMETRIC, Array, Grid, asymmetric
from passes.affine.numbers import Numbers, QuantizedWeight, WeightKey, bias_key, weight_key
from passes.affine.placement import Unit
from passes.affine.scale import (
    bias_scales,
    quantize_bias,
    quantize_weight,
    weight_scales,
)

INT4_OPSET = 21
"""The first opset with 4-bit integers."""


class Writer:
    """Rewrites the main graph of one model in place; used once.

    A value is quantized once, whoever reads it; onnxruntime copies the DequantizeLinear per reader
    when it fuses.

    Args:
        model: The model.
        numbers: Grids of all values, and what was chosen for weights and biases.
        per_channel: One scale per output channel of a weight (needs opset 13).

    Attributes:
        counts: What was done so far.
        scales: The scale in the model of every grid that was written.
        biases: Biases that were written: the unit, its bias and the scales of its weight.
    """

    def __init__(
        self,
        model: ir.Model,
        numbers: Numbers,
        *,
        per_channel: bool,
    ) -> None:
        self.graph = model.graph
        self.numbers = numbers
        self.per_channel = per_channel
        self.counts: dict[str, float] = {}
        self.scales: dict[ir.Value, Grid] = {}
        self.biases: list[tuple[Unit, Array, Array]] = []
        self._names = g.Names(model)
        self._opset = g.opset(model)
        self._front: list[ir.Node] = []
        self._parameters: dict[int, tuple[ir.Value, ir.Value]] = {}
        self._on_grid: dict[ir.Value, ir.Value] = {}
        self._zero_points: dict[tuple[int, ...], ir.Value] = {}
        self._weights: dict[WeightKey, tuple[ir.Value, Array]] = {}
        self._grids: dict[ir.Value, Grid] = {}

    def write(self, units: Sequence[Unit]) -> None:
        """Let every unit run on integers."""
        # Looked up now: a value that is an output of the model gives its name to what replaces it.
        values = (value for unit in units for value in (*unit.inputs, *unit.outputs))
        grids = self.numbers.grids
        self._grids = {v: grids[v.name] for v in values if v.name in grids}
        constants = _constants_of(units)
        self._quantize_weights(units)
        for unit in units:
            self._count(f"quantized_{unit.node.op_type}")
            self._read_integers(unit)
            if unit.integer_output:
                self._write_integers(unit)
        self.graph.insert_before(next(iter(self.graph)), self._front)
        self._drop_unused(constants)

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def _quantize_weights(self, units: Iterable[Unit]) -> None:
        """Round every weight once, on a scale that suits the biases of all nodes that share it."""
        users: dict[WeightKey, list[Unit]] = {}
        for unit in units:
            if unit.row.weight is not None:
                users.setdefault(weight_key(unit, per_channel=self.per_channel), []).append(unit)
        for key, sharing in users.items():
            chosen = self.numbers.weights.get(key) or self._nearest(key, sharing)
            name = key[0] or "weight"
            integers = self._integers(name, chosen.integers, chosen.bits)
            value = self._dequantized(name, integers, chosen.scales, key[1])
            self._weights[key] = (value, chosen.scales)
            self._count("weights_quantized")

    def _nearest(self, key: WeightKey, sharing: Sequence[Unit]) -> QuantizedWeight:
        weight = g.constant_array(sharing[0].weight)
        assert weight is not None
        magnitude = self.numbers.magnitudes[key]
        scales = weight_scales(magnitude)
        for unit in sharing:
            bias = self._bias(unit)
            if bias is not None:
                step = self._grid(unit.inputs[0]).scale
                scales = np.asarray(np.maximum(scales, weight_scales(magnitude, bias, step)))
        raised = int(np.count_nonzero(scales > weight_scales(magnitude)))
        if raised:  # or their biases would not fit into int32
            self.counts["scales_raised_for_biases"] = (
                self.counts.get("scales_raised_for_biases", 0) + raised
            )
        return QuantizedWeight(quantize_weight(weight, scales, key[1]), scales)

    def _grid(self, value: ir.Value) -> Grid:
        return self._grids[value]

    def _bias(self, unit: Unit) -> Array | None:
        """Return the bias of a unit as float32 (channels,), or None."""
        corrected = self.numbers.biases.get(bias_key(unit))
        if corrected is not None:
            return corrected
        array = g.constant_array(unit.bias)
        return None if array is None else np.broadcast_to(array.reshape(-1), (unit.channels,))

    def _read_integers(self, unit: Unit) -> None:
        """Give the node its inputs through DequantizeLinear."""
        node = unit.node
        for value in dict.fromkeys(unit.inputs):
            if value not in self._on_grid:
                self._on_grid[value] = self._quantized(value)
            # What another unit wrote is read through its grid already; see _write_integers.
            _replace(node, value, self._on_grid[value])
        for position in unit.constants:
            self._replace_constant(node, position)
        if unit.row.weight is None:
            return
        weight, scales = self._weights[weight_key(unit, per_channel=self.per_channel)]
        bias = self._bias(unit)
        node.replace_input_with(unit.row.weight, weight)
        if bias is not None:
            self._write_bias(unit, bias, scales)

    def _write_bias(self, unit: Unit, bias: Array, scales: Array) -> None:
        self.biases.append((unit, bias, scales))
        step = bias_scales(scales, self._grid(unit.inputs[0]).scale)
        name = f"{bias_key(unit)}_bias" if unit.bias is None else unit.bias.name or "bias"
        axis = 0 if step.ndim else None
        value = self._constant(name, quantize_bias(bias, step), step, axis)
        if unit.bias_use is not None:
            unit.bias_use[0].replace_input_with(unit.bias_use[1], value)
            return
        assert unit.row.bias is not None, "an operator without a bias input cannot be corrected"
        if len(unit.node.inputs) <= unit.row.bias:
            unit.node.resize_inputs(unit.row.bias + 1)
        unit.node.replace_input_with(unit.row.bias, value)

    def _write_integers(self, unit: Unit) -> None:
        """Put the results on their grids; that also does what the absorbed activations did."""
        last = unit.node if unit.bias_use is None else unit.bias_use[0]
        for value in unit.outputs:
            raw = last.outputs[0] if len(unit.outputs) == 1 else value
            quantize, dequantize = self._pair(raw, value)
            self.graph.insert_after(last, [quantize, dequantize])
            result = dequantize.outputs[0]
            g.redirect(value, result)
            if value is raw:
                quantize.replace_input_with(0, raw)
                if result.is_graph_output():
                    raw.name = self._names.fresh(f"{result.name}_float")
            self._on_grid[value] = result
        for node in reversed(unit.absorbed):
            self.graph.remove(node, safe=True)
            self._count("activations_absorbed")

    def _quantized(self, value: ir.Value) -> ir.Value:
        """Put a float value on its grid; only readers that ask for it see the rounding."""
        pair = self._pair(value, value)
        producer = value.producer()
        if producer is None:
            self._front.extend(pair)
        else:
            self.graph.insert_after(producer, pair)
        return pair[1].outputs[0]

    def _pair(self, source: ir.Value, like: ir.Value) -> tuple[ir.Node, ir.Node]:
        """Make QuantizeLinear of ``source`` and DequantizeLinear on the grid of ``like``."""
        grid, name = self._grid(like), like.name or "value"
        scale, zero_point = self._grid_values(grid, name)
        integers = ir.Value(
            name=self._names.fresh(f"{name}_quantized"),
            type=ir.TensorType(zero_point.dtype or ir.DataType.UINT8),
            shape=like.shape,
        )
        quantize = self._node("QuantizeLinear", [source, scale, zero_point], integers)
        floats = self._float(f"{name}_dequantized", like.shape)
        self._count("values_on_grid")
        return quantize, self._node("DequantizeLinear", [integers, scale, zero_point], floats)

    def _grid_values(self, grid: Grid, name: str) -> tuple[ir.Value, ir.Value]:
        """Return the scale and zero point of a grid, one pair for all values that share it."""
        if id(grid) not in self._parameters:
            self._parameters[id(grid)] = (
                self._initializer(f"{name}_scale", np.asarray(grid.scale, np.float32)),
                self._initializer(
                    f"{name}_zero_point", np.asarray(grid.zero_point, grid.integers.dtype)
                ),
            )
        self.scales[self._parameters[id(grid)][0]] = grid
        return self._parameters[id(grid)]

    def _integers(self, name: str, integers: Array, bits: int) -> ir.Value:
        """Store the integers of a weight, two in a byte where they have 4 bits.

        No operator reads 4-bit integers; onnxruntime computes the Cast once, when it loads.
        """
        if bits > 4 or self._opset < INT4_OPSET:
            return self._initializer(f"{name}_quantized", integers)
        packed = self._initializer(f"{name}_packed", integers.astype(ml_dtypes.int4))
        kind = ir.TensorType(ir.DataType.INT8)
        fresh = self._names.fresh(f"{name}_quantized")
        output = ir.Value(name=fresh, type=kind, shape=ir.Shape(integers.shape))
        self._front.append(self._node("Cast", [packed], output, {"to": ir.DataType.INT8.value}))
        self._count("weights_of_4_bits")
        return output

    def _constant(self, name: str, integers: Array, scales: Array, axis: int | None) -> ir.Value:
        """Store integers and return the value of their DequantizeLinear."""
        stored = self._initializer(f"{name}_quantized", integers)
        return self._dequantized(name, stored, scales, axis)

    def _dequantized(
        self, name: str, integers: ir.Value, scales: Array, axis: int | None
    ) -> ir.Value:
        inputs = [integers, self._initializer(f"{name}_scale", scales)]
        if integers.dtype == ir.DataType.INT8:
            inputs.append(self._zeros(scales.shape))
        output = self._float(f"{name}_dequantized", integers.shape)
        attributes = {} if axis is None else {"axis": axis}
        self._front.append(self._node("DequantizeLinear", inputs, output, attributes))
        return output

    def _zeros(self, shape: tuple[int, ...]) -> ir.Value:
        """Return the zero points of a weight: one initializer for all weights of that width."""
        if shape not in self._zero_points:
            zeros = np.zeros(shape, INT8_SYMMETRIC.dtype)
            self._zero_points[shape] = self._initializer("weight_zero_point", zeros)
        return self._zero_points[shape]

    def _replace_constant(self, node: ir.Node, position: int) -> None:
        """Store a constant operand of a follower on a grid of its own."""
        value = node.inputs[position]
        array = g.constant_array(value)
        assert array is not None
        assert value is not None
        kind = next(iter(self.numbers.grids.values())).integers  # all grids have the same
        grid = asymmetric(float(array.min()), float(array.max()), kind)
        name = value.name or "operand"
        scale, zero_point = self._grid_values(grid, name)
        integers = self._initializer(f"{name}_quantized", grid.quantize(array))
        output = self._float(f"{name}_dequantized", ir.Shape(array.shape))
        self._front.append(self._node("DequantizeLinear", [integers, scale, zero_point], output))
        node.replace_input_with(position, output)

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        output: ir.Value,
        attributes: Mapping[str, int] | None = None,
    ) -> ir.Node:
        name = self._names.fresh(f"{output.name}_{op_type}")
        given = [ir.AttrInt64(key, value) for key, value in (attributes or {}).items()]
        return ir.Node("", op_type, inputs, given, outputs=[output], name=name)

    def _float(self, name: str, shape: ir.Shape | None) -> ir.Value:
        kind = ir.TensorType(ir.DataType.FLOAT)
        return ir.Value(name=self._names.fresh(name), type=kind, shape=shape)

    def _initializer(self, name: str, array: Array) -> ir.Value:
        # Built directly: the constructors that inspect what they are given cost half the pass.
        return g.add_initializer(self.graph, self._names.fresh(name), ir.Tensor(array))

    def _drop_unused(self, values: Iterable[ir.Value]) -> None:
        """Remove the float constants that nobody reads any more."""
        for value in values:
            if value.uses() or value.is_graph_output() or value.is_graph_input():
                continue
            producer = value.producer()
            if producer is not None:
                self.graph.remove(producer, safe=True)
            elif value.name is not None and value.name in self.graph.initializers:
                del self.graph.initializers[value.name]


def _replace(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    for position, value in enumerate(node.inputs):
        if value is old:
            node.replace_input_with(position, new)


def _constants_of(units: Iterable[Unit]) -> list[ir.Value]:
    """List the constants that units read now, each once; they may be unused afterwards."""
    found: dict[ir.Value, None] = {}
    for unit in units:
        nodes = [unit.node, *unit.absorbed]
        if unit.bias_use is not None:
            nodes.append(unit.bias_use[0])
        for node in nodes:
            found.update((v, None) for v in node.inputs if v is not None and g.constant(v))
    return list(found)
