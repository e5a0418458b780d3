"""Labels go through the graph: every node's row of the table is applied once, in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from converter.coupling.sizes import COMPUTED, Sizes
from converter.coupling.structure import Sink, Use
from converter.coupling.union import Labels as Union
from converter.ops.axes.site import STAYS, Axes, Labels, SinkKind, Unclear
from converter.ops.axes.table import AXES

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
_UNITE = "it goes with something that stays at "
_STATELESS_INTS = {"INT64", "STRING", "UNDEFINED"}
Chooser = Callable[["ir.Node", Sequence[int]], tuple[int, str | None]]


@dataclass(frozen=True, eq=False)
class RawWork:
    """Multiply-accumulates of one node, with labels."""

    node: ir.Node
    factor: int
    axes: tuple[Array, ...]


class Propagation:
    """The site of the node at which propagation stands, and all that was found before it.

    Args:
        model: In topological order; left as it is.
        shapes: Sizes by value name.
        choose: Which axis of a split one is removed from; see ``Site.prefer``.
    """

    def __init__(
        self, model: ir.Model, shapes: Mapping[str, tuple[int, ...]], choose: Chooser
    ) -> None:
        self.model = model
        self.shapes = shapes
        self.union = Union()
        self.values: dict[ir.Value, Axes] = {}
        self.uses: dict[Use, Axes] = {}
        self.sinks: list[Sink] = []
        self.work_done: list[RawWork] = []
        self.balances: list[Array] = []
        self.marks: list[tuple[Array, str]] = []
        self.splits: list[tuple[ir.Node, tuple[int, ...], int]] = []
        self.sizes = Sizes()
        self._choose = choose
        self._fixed: set[ir.Value] = set()
        self._shared: dict[ir.Value, Axes] = {}
        self._node: ir.Node | None = None
        self._opset = 0
        self._split = 0
        self._unit: str | None = None

    def run(self) -> None:
        """Visit every node of the main graph."""
        for node in self.model.graph:
            self._node = node
            self._opset = self.model.graph.opset_imports.get(node.domain) or 1
            self._visit(node)
            if g.is_op(node, "Shape", "Size") and node.inputs[0] is not None:
                known = self.size_of(node.inputs[0])
                if known is not None:
                    self.sizes.shape_of(node, known, self.labels(0))
            else:
                self.sizes.visit(node, self.size_of(node.outputs[0]) if node.outputs else None)
        for value in self.model.graph.outputs:
            producer = value.producer()
            if producer is not None:
                self.sizes.use(value, producer)
        for labels, node in self.sizes.used:
            self.union.freeze(labels, node, COMPUTED)
        for value in self.model.graph.outputs:
            axes = self.values.get(value, ()) or self.shared(value)
            self.freeze_all(axes, value.producer(), OUTPUT)

    def _visit(self, node: ir.Node) -> None:
        if self._is_constant(node):
            return
        if node.inputs and all(v is None or self._is_fixed(v) for v in node.inputs):
            self._fixed.update(node.outputs)
        row = AXES.find(node.domain, node.op_type, self._opset)
        reason = self._obstacle(node)
        if row is None:
            reason = f"operator {node.op_type} is unknown here"
        if reason is None and row is not None:
            try:
                row(self)
            except Unclear as error:
                reason = error.reason
            except (
                IndexError,
                KeyError,
                TypeError,
                ValueError,
            ):  # a model that no checker has seen
                reason = f"the inputs of {node.op_type} do not fit together"
        if reason is None:
            self._freeze_unread(node)
        else:
            for position in range(len(node.inputs)):
                self.freeze_all(self.labels(position), node, reason)
            for output in node.outputs:
                self.freeze_all(self.values.pop(output, ()), node, reason)

    def _freeze_unread(self, node: ir.Node) -> None:
        """Freeze large constants that the row did not ask for: others may share them."""
        for position, value in enumerate(node.inputs):
            if value is None or (node, position) in self.uses or g.constant(value) is None:
                continue
            if sum(size != 1 for size in self.size_of(value) or ()) > 1:
                self.freeze_all(self.labels(position), node, "it is read as a whole")

    def _obstacle(self, node: ir.Node) -> str | None:
        if any(True for _ in g.subgraphs(node)):
            return f"operator {node.op_type} has a body of its own"
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name and self.size_of(value) is None:
                return "the sizes of its values are unknown"
        return None

    def size_of(self, value: ir.Value) -> tuple[int, ...] | None:
        """Return the sizes of a value; a constant's are its own."""
        tensor = value.const_value
        if tensor is not None:
            return tuple(tensor.shape.numpy())
        return self.shapes.get(value.name or "")

    def freeze_all(self, axes: Axes, subject: Any, reason: str) -> None:
        """Freeze the labels of all axes of a value."""
        for labels in axes:
            if labels is not None:
                self.union.freeze(labels, subject, reason)

    # what rules see

    @property
    def node(self) -> ir.Node:
        """The node."""
        assert self._node is not None
        return self._node

    @property
    def opset(self) -> int:
        """Version of the operator's domain."""
        return self._opset

    def given(self, position: int) -> bool:
        """Tell whether the node has this input."""
        return position < len(self.node.inputs) and self.node.inputs[position] is not None

    def shape(self, position: int) -> tuple[int, ...]:
        """Return the sizes of an input."""
        value = self.node.inputs[position] if self.given(position) else None
        if value is None:
            raise Unclear(f"{self.node.op_type} lacks input {position}")
        sizes = self.size_of(value)
        if sizes is None:
            raise Unclear("the sizes of its values are unknown")
        return sizes

    def output_shape(self, index: int = 0) -> tuple[int, ...]:
        """Return the sizes of an output."""
        return self.shapes[self.node.outputs[index].name or ""]

    def labels(self, position: int) -> Axes:
        """Return the labels of an input; of a constant they are new ones."""
        if not self.given(position):
            return ()
        use = (self.node, position)
        if use not in self.uses:
            self.uses[use] = self._labels(self.node.inputs[position])
        return self.uses[use]

    def _labels(self, value: ir.Value | None) -> Axes:
        assert value is not None
        if value in self.values:
            return self.values[value]
        tensor = weight_of(value)
        if tensor is None:
            return (None,) * len(self.size_of(value) or ())
        sizes = tuple(tensor.shape.numpy())
        if tensor.dtype.name in _STATELESS_INTS:
            return (None,) * len(sizes)
        callers = value.is_graph_input()
        if not callers and (sum(size != 1 for size in sizes) <= 1 or _is_uniform(tensor)):
            return self._new(sizes)
        if value not in self._shared:
            self._shared[value] = self._new(sizes)
            if callers:
                self.freeze_all(self._shared[value], value, g.OVERRIDABLE)
        return self._shared[value]

    def shared(self, value: ir.Value) -> Axes:
        """Return the labels that all uses of a large constant have in common, if it has any."""
        return self._shared.get(value, ())

    def _new(self, sizes: Sequence[int]) -> Axes:
        return tuple(self.union.fresh(size) if size > 1 else None for size in sizes)

    def constant(self, position: int) -> Array | None:
        """Return a constant input."""
        value = self.node.inputs[position] if self.given(position) else None
        if value is None:
            return None
        array = g.constant_array(value)
        return self.sizes.exact(value) if array is None else array

    def fixed(self, position: int) -> bool:
        """Tell whether an input follows from constants alone."""
        value = self.node.inputs[position] if self.given(position) else None
        return value is None or self._is_fixed(value)

    def follows(self, value: ir.Value) -> bool:
        """Tell whether a value follows from constants alone."""
        return value in self._fixed

    def _is_fixed(self, value: ir.Value) -> bool:
        return value in self._fixed or g.constant(value) is not None

    def _is_constant(self, node: ir.Node) -> bool:
        return g.is_op(node, "Constant")

    def put(self, labels: Axes, index: int = 0) -> None:
        """Give an output its labels."""
        if index >= len(self.node.outputs):
            return
        output = self.node.outputs[index]
        sizes = self.size_of(output)
        if not output.name or sizes is None:
            return
        for axis in labels:
            if axis is not None and axis.size == 1:
                self.freeze(axis, "it is the only index of an axis")
        found = tuple(None if x is None or x.size == 1 else np.maximum(x, STAYS) for x in labels)
        if tuple(s if x is None else x.size for s, x in zip(sizes, found, strict=False)) != sizes:
            raise Unclear(f"the sizes of {self.node.op_type} do not fit together")
        self.values[output] = found
        if self._unit is not None:
            self.mark(found[self._split], self._unit)
            self._unit = None

    def fresh(self, size: int) -> Array:
        """Return new labels."""
        return self.union.fresh(size)

    def unite(self, first: Labels, second: Labels) -> Labels:
        """Let two axes be removed together."""
        if first is None or second is None:
            for one in (first, second):
                if one is not None:
                    self.freeze(one, _UNITE + name_of(self.node))
            return first if second is None else second
        if first.size != second.size:
            raise Unclear(f"the sizes of {self.node.op_type} do not fit together")
        if first is second:
            return first
        stays = (first == STAYS) | (second == STAYS)
        if stays.any():
            self.union.freeze(first[stays], self.node, _UNITE + name_of(self.node))
            self.union.freeze(second[stays], self.node, _UNITE + name_of(self.node))
            self.union.unite(first[~stays], second[~stays])
            return np.maximum(first, second)
        self.union.unite(first, second)
        return first

    def roots(self, labels: Array) -> Array:
        """Return labels such that united ones are equal numbers."""
        return self.union.find(labels)

    def freeze(self, labels: Labels, reason: str) -> None:
        """Forbid that any of the labels is removed."""
        if labels is not None:
            self.union.freeze(labels, self.node, reason)

    def balance(self, blocks: Array) -> None:
        """Demand equal numbers removed from each row."""
        if len(blocks) > 1:
            self.balances.append(blocks)

    def frozen(self, labels: Array) -> bool:
        """Tell whether none of the labels can be removed."""
        return self.union.frozen(labels)

    def mark(self, labels: Labels, unit: str) -> None:
        """Say what people call these labels."""
        if labels is not None:
            self.marks.append((labels, unit))

    def prefer(self, sizes: Sequence[int]) -> int:
        """Choose which part of a split axis is removed from."""
        axis, self._unit = self._choose(self.node, sizes)
        self.splits.append((self.node, tuple(sizes), axis))
        self._split = axis
        return axis

    def sink(
        self,
        position: int,
        axis: int,
        kind: SinkKind,
        *,
        weight: int | None = None,
        weight_axis: int | None = None,
    ) -> None:
        """Say that the node sums over an axis of an input; over weights alone it is frozen."""
        if kind not in ("weights", "product", "recurrent") and self.fixed(position):
            self.freeze(self.labels(position)[axis], "weights are computed from all of it")
            return
        self.sinks.append(Sink(self.node, position, axis, kind, weight, weight_axis))

    def work(self, factor: int, *axes: Labels | int) -> None:
        """Count multiply-accumulates."""
        numbers = [axis for axis in axes if isinstance(axis, int)]
        arrays = tuple(axis for axis in axes if axis is not None and not isinstance(axis, int))
        self.work_done.append(RawWork(self.node, int(factor) * math.prod(numbers), arrays))


def name_of(node: ir.Node | None) -> str:
    """Return the name of a node, or of its first output where it has none."""
    if node is None:
        return ""
    return node.name or next((o.name for o in node.outputs if o.name), None) or node.op_type


def weight_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor of a constant, or the default of an input that callers may override."""
    if value is None:
        return None
    return value.const_value if value.is_graph_input() else g.constant(value)


OUTPUT = "it is an output of the model"


def _is_uniform(tensor: ir.TensorProtocol) -> bool:
    """Tell whether a constant holds one number everywhere, so that it is shared by chance.

    The states that recurrent layers start from, for one, are zeros that exporters store once.
    """
    if not 0 < tensor.size <= _SMALL:
        return False
    array = tensor.numpy()
    return bool((array == array.flat[0]).all())


_SMALL = 1 << 14
"""Elements of a constant above which it is not looked at."""
