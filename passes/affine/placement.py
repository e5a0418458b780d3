"""Where integers pay: which nodes run on 8 bits, and which values therefore lie on a grid.

A node with a constant weight is the reason to quantize. Other operators follow only where integers
flow in on every input and an integer operator (or a smaller tensor) follows; everything else stays
in float, because onnxruntime would convert back and forth around it. Activations such as Relu are
absorbed: the range of the grid before them cuts off the same values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from converter.core.contract import Skip
from converter.core.select import Selection
from converter.ops.quantizable import (
    ABSORBED_ACTIVATIONS,
    QUANTIZABLE,
    WITHOUT_INTEGER_FORM,
    QuantizableOp,
    Role,
)
from converter.ops.targets import Target
from passes.affine.eligible import (
    becomes_gemm,
    bias_add,
    bound,
    only_user,
    refusal,
    usable_constant,
)
from passes.affine.rules import PLAIN, Rules


@dataclass(eq=False)
class Unit:
    """One node that runs on integers, with what is merged into it.

    Attributes:
        node: The node.
        row: Its facts.
        inputs: Its activation inputs that are not constant.
        constants: Positions of activation inputs that are constant.
        bias: The constant bias, float32 (channels,), or None.
        bias_use: The node and position that read the bias: the node itself, or an Add after MatMul.
        absorbed: Activations after it that the grid of the output replaces.
        outputs: The values after all of that.
        float_output: The node may give float, where nobody needs its integers.
        integer_output: The outputs lie on a grid; else the node gives float.
    """

    node: ir.Node
    row: QuantizableOp
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    constants: tuple[int, ...] = ()
    bias: ir.Value | None = None
    bias_use: tuple[ir.Node, int] | None = None
    absorbed: tuple[ir.Node, ...] = ()
    float_output: bool = False
    integer_output: bool = True

    @property
    def weight(self) -> ir.Value:
        """The weight of a weighted node."""
        assert self.row.weight is not None
        value = self.node.inputs[self.row.weight]
        assert value is not None
        return value

    @property
    def axis(self) -> int:
        """The axis of the weight's output channels, not negative."""
        assert self.row.channel_axis is not None
        return self.row.channel_axis(self.node) % len(self._weight_shape)

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return self._weight_shape[self.axis]

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        tensor = g.constant(self.weight)
        assert tensor is not None
        return tuple(tensor.shape.numpy())


@dataclass
class Placement:
    """The plan for a model.

    Attributes:
        units: What runs on integers, in the order of the graph.
        skipped: Nodes of quantizable type that stay as they are.
    """

    units: list[Unit] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)

    def ranged(self) -> dict[ir.Value, ir.Value]:
        """Return, for each value on a grid, the value whose range decides that grid."""
        root: dict[ir.Value, ir.Value] = {}
        for unit in self.units:
            for value in unit.inputs:
                root.setdefault(value, value)
            if not unit.integer_output:
                continue
            for value in unit.outputs:
                shared = unit.row.role is Role.SHARED
                root[value] = root[unit.inputs[0]] if shared else value
        self._join(root)
        return root

    def _join(self, root: dict[ir.Value, ir.Value]) -> None:
        """Let what is only concatenated lie on the result's grid: else it is rounded twice."""
        members: dict[ir.Value, list[ir.Value]] = {}
        for value, first in root.items():
            members.setdefault(first, []).append(value)
        fixed = {v for unit in self.units if unit.row.output_range for v in unit.outputs}
        cuts: dict[ir.Value, tuple[float, float] | None] = {}
        for unit in self.units:
            inherited = {cuts.get(root[v]) for v in unit.inputs} if unit.row.joins else {None}
            cut = inherited.pop() if len(inherited) == 1 else None
            cuts.update(dict.fromkeys(unit.outputs, _cut_off(unit) or cut))
        for unit in reversed(self.units):
            if not (unit.row.joins and unit.integer_output):
                continue
            # The grid does what absorbed activations did, so it can do it for all inputs or none.
            if len({cuts.get(root[value]) for value in unit.inputs}) > 1:
                continue
            target = root[unit.outputs[0]]
            for value in unit.inputs:
                group = members.get(root[value], [])
                if root[value] in fixed or any(only_user(v) is None for v in group):
                    continue
                members.setdefault(target, []).extend(members.pop(root[value]))
                root.update(dict.fromkeys(group, target))


def place(
    model: ir.Model,
    selection: Selection,
    unusable: Mapping[ir.Value, str] | None = None,
    *,
    rules: Rules = PLAIN,
    declined: Mapping[ir.Node, str] | None = None,
) -> Placement:
    """Decide which nodes of the main graph run on integers.

    Args:
        model: Left as it is.
        selection: Nodes that may be chosen.
        unusable: Values that cannot lie on a grid, e.g. because they were never computed, and why.
        rules: The target, and the form of the grids.
        declined: Nodes that stay in float although they could be chosen, and why.
    """
    planner = _Planner(model, selection, unusable or {}, rules)
    planner.declined = declined or {}
    plan = Placement(skipped=planner.skipped)
    plan.units = _with_use(list(planner.forward()), rules.target)
    plan.skipped += _elsewhere(model, selection, planner.opset)
    return plan


class _Planner:
    """Walks the main graph once, in order, and offers units."""

    def __init__(
        self,
        model: ir.Model,
        selection: Selection,
        unusable: Mapping[ir.Value, str],
        rules: Rules,
    ) -> None:
        self.graph = model.graph
        self.rules = rules
        self.target = rules.target
        self.table = rules.target.table
        self.opset = rules.opset or g.opset(model)
        self.selection = selection
        self.unusable = unusable
        self.skipped: list[Skip] = []
        self.declined: Mapping[ir.Node, str] = {}
        self.merged: set[ir.Node] = set()
        self.available: set[ir.Value] = set()
        self.integer: set[ir.Value] = set()

    def forward(self) -> Iterator[Unit]:
        """Yield every weighted node that can be quantized, and every node that integers reach."""
        weighted = dict(self._weighted())
        for unit in weighted.values():
            self.available.update(unit.inputs)
            if not self.target.inputs_only:
                self.available.update(unit.outputs)
            if not unit.float_output:
                self.integer.update(unit.outputs)
        for node in self.graph:
            if node in weighted:
                yield weighted[node]
            elif node not in self.merged:
                follower = self._follower(node)
                if follower is not None:
                    self.available.update(follower.outputs)
                    self.integer.update(self._integer_outputs(follower))
                    yield follower

    def _integer_outputs(self, follower: Unit) -> tuple[ir.Value, ...]:
        integer = any(value in self.integer for value in follower.inputs)
        return follower.outputs if integer else ()

    def _weighted(self) -> Iterator[tuple[ir.Node, Unit]]:
        for node in self.graph:
            row = self.table.find(node.domain, node.op_type, self.opset)
            if row is None and g.is_op(node, *WITHOUT_INTEGER_FORM) and node in self.selection:
                self.skipped.append(Skip(g.label(node), _FORMLESS))
            if row is None or row.role is not Role.WEIGHTED or node not in self.selection:
                continue
            offer: Unit | str = refusal(node, row) or self.declined.get(node, "")
            offer = offer or self._merge(node, row)
            if isinstance(offer, Unit):
                offer = _bias_refusal(offer) or self._blocked(offer) or offer
            if isinstance(offer, str):
                self.skipped.append(Skip(g.label(node), offer))
                continue
            self.merged.update(offer.absorbed)
            if offer.bias_use is not None and offer.bias_use[0] is not node:
                self.merged.add(offer.bias_use[0])
            yield node, offer

    def _blocked(self, unit: Unit) -> str:
        needed = [unit.weight, *unit.inputs]
        if not unit.float_output:
            needed += unit.outputs
        return next((self.unusable[value] for value in needed if value in self.unusable), "")

    def _merge(self, node: ir.Node, row: QuantizableOp) -> Unit:
        """Join a weighted node with the bias Add and the activation after it."""
        x, bias, use = node.inputs[0], None, None
        assert x is not None
        if self.target.inputs_only:
            return Unit(node, row, (x,), (node.outputs[0],), float_output=True)
        if row.bias is not None and len(node.inputs) > row.bias:
            bias = node.inputs[row.bias]
            use = (node, row.bias) if bias is not None else None
        output = node.outputs[0]
        if row.bias is None:
            added = bias_add(node)
            if added is not None:
                follower, position = added
                bias, use, output = follower.inputs[position], added, follower.outputs[0]
        absorbed, output = self._absorb(output)
        floats = row.float_output and (use is not None or not becomes_gemm(node))
        return Unit(node, row, (x,), (output,), (), bias, use, absorbed, floats)

    def _absorb(self, value: ir.Value) -> tuple[tuple[ir.Node, ...], ir.Value]:
        """Follow Relu and Clip as long as they are the value's only user."""
        absorbed: list[ir.Node] = []
        while True:
            user = only_user(value)
            if user is None or user in self.merged or not self._absorbable(user):
                return tuple(absorbed), value
            absorbed.append(user)
            value = user.outputs[0]

    def _absorbable(self, node: ir.Node) -> bool:
        """Tell whether cutting off at the ends of a grid does all that the activation does."""
        if node.graph is not self.graph or not g.is_op(node, *ABSORBED_ACTIVATIONS):
            return False
        if node.op_type == "Relu":
            return True
        low = bound(node, 1, "min", -np.inf)
        high = bound(node, 2, "max", np.inf)
        if low is None or high is None or not low <= 0.0 <= high:
            return False
        return not self.rules.symmetric or low in {0.0, -high}

    def _follower(self, node: ir.Node) -> Unit | None:
        """Offer a node without weight if integers flow in on every activation input."""
        row = self.table.find(node.domain, node.op_type, self.opset)
        if row is None or not self._may_follow(node, row):
            return None
        positions = row.activations or tuple(range(len(node.inputs)))
        values = [node.inputs[i] if i < len(node.inputs) else None for i in positions]
        constants = tuple(i for i, v in zip(positions, values, strict=True) if usable_constant(v))
        inputs = tuple(
            v
            for i, v in zip(positions, values, strict=True)
            if v is not None and i not in constants
        )
        whole = len(inputs) + len(constants) == len(positions)
        if not inputs or not whole or (constants and not row.constant_input):
            return None
        if any(v in self.unusable for v in inputs) or not self._reached(row, inputs):
            return None
        if self.target.inputs_only:
            return self._residual(node, row, inputs)
        return self._follower_unit(node, row, inputs, constants)

    def _may_follow(self, node: ir.Node, row: QuantizableOp) -> bool:
        chosen = node in self.selection and node not in self.declined
        return chosen and row.role is not Role.WEIGHTED and row.accepts(node)

    def _residual(
        self, node: ir.Node, row: QuantizableOp, inputs: tuple[ir.Value, ...]
    ) -> Unit | None:
        """Let a sum read the operand that is on a grid anyway from there."""
        known = tuple(value for value in inputs if value in self.available)
        if not self.target.residual or len(inputs) != 2 or len(known) != 1:
            return None
        return Unit(node, row, known, (node.outputs[0],), float_output=True)

    def _reached(self, row: QuantizableOp, inputs: tuple[ir.Value, ...]) -> bool:
        """Tell whether integers flow in on every input.

        Of two operands one is enough if it is integer anyway: rounding the other one costs less
        than going to float and back.
        """
        if self.target.inputs_only or all(value in self.available for value in inputs):
            return True
        return row.activations == (0, 1) and any(value in self.integer for value in inputs)

    def _follower_unit(
        self,
        node: ir.Node,
        row: QuantizableOp,
        inputs: tuple[ir.Value, ...],
        constants: tuple[int, ...],
    ) -> Unit | None:
        outputs: tuple[ir.Value, ...] = tuple(v for v in node.outputs if v.name)
        absorbed: tuple[ir.Node, ...] = ()
        if row.role is Role.GRID and row.output_range is None:
            absorbed, output = self._absorb(outputs[0])
            outputs = (output,)
        if any(v in self.unusable for v in outputs) and row.role is Role.GRID:
            return None
        self.merged.update(absorbed)
        return Unit(node, row, inputs, outputs, constants, None, None, absorbed)


def _cut_off(unit: Unit) -> tuple[float, float] | None:
    """Return where the activations that a unit absorbed cut off; None when it absorbed none."""
    low, high = -np.inf, np.inf
    for node in unit.absorbed:
        if node.op_type == "Relu":
            low = max(low, 0.0)
            continue
        low = max(low, bound(node, 1, "min", -np.inf) or 0.0)
        end = bound(node, 2, "max", np.inf)
        high = min(high, np.inf if end is None else end)
    return (low, high) if unit.absorbed else None


_FORMLESS = "no integer form in onnxruntime; quantize_weights makes its weights smaller"


def _bias_refusal(unit: Unit) -> str:
    if unit.bias is None:
        return ""
    tensor, weight = g.constant(unit.bias), g.constant(unit.weight)
    assert weight is not None
    if tensor is None:
        return "the bias is not constant"
    channels = weight.shape.numpy()[unit.axis]
    shape = tensor.shape.numpy()
    fits = tensor.size == 1 or (tensor.size == channels and shape[-1] == channels)
    if tensor.dtype != ir.DataType.FLOAT or not fits:
        return "the bias is not float32 with one number per channel"
    return ""


def _with_use(units: list[Unit], target: Target) -> list[Unit]:
    """Drop followers whose integers nobody reads, and let the others' readers decide on float."""
    read: set[ir.Value] = set()
    kept = []
    for unit in reversed(units):
        wanted = any(v in read for v in unit.outputs)
        if target.everything and not wanted and _is_final(unit):
            continue
        unit.integer_output = wanted or not unit.float_output or target.everything
        needed = unit.row.shrinks or unit.float_output or target.everything
        if unit.row.role is Role.WEIGHTED or wanted or needed:
            read.update(unit.inputs)
            kept.append(unit)
    return kept[::-1]


def _is_final(unit: Unit) -> bool:
    """Tell whether the unit makes the shares that the model ends with: 8 bits are too few there."""
    return g.is_op(unit.node, "Softmax", "LogSoftmax")


def _elsewhere(model: ir.Model, selection: Selection, opset: int) -> Iterator[Skip]:
    """Name weighted nodes outside the main graph: they have no range that calibration can see."""
    for graph in g.graphs(model):
        if graph is model.graph:
            continue
        for node in graph:
            row = QUANTIZABLE.find(node.domain, node.op_type, opset)
            if row is not None and row.role is Role.WEIGHTED and node in selection:
                yield Skip(g.label(node), "inside a sub-graph or function")
