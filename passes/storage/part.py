"""What computes some constants, as a model of its own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from converter.core import graph as g
from passes.rewriting.rename import renamed

WIDER = {
    ir.DataType.INT4: ir.DataType.INT8,
    ir.DataType.UINT4: ir.DataType.UINT8,
    ir.DataType.INT2: ir.DataType.INT8,
    ir.DataType.UINT2: ir.DataType.UINT8,
    ir.DataType.BFLOAT16: ir.DataType.FLOAT,
}
"""Types that cannot leave onnxruntime, and those that hold all their numbers and can."""
_LEAST_IR = 4


class Part:
    """Copies nodes that read nothing but constants into a model without inputs.

    Args:
        model: Where the nodes come from; left as it is.

    Attributes:
        fronts: The values wanted, by the names of the new model's outputs. Those of types that
            cannot leave onnxruntime come out as the types in :data:`WIDER`.
    """

    def __init__(self, model: ir.Model) -> None:
        self.fronts: dict[str, ir.Value] = {}
        self._model = model
        self._copies: dict[ir.Value, ir.Value] = {}
        self._initializers: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._outputs: list[ir.Value] = []

    def add(self, front: ir.Value, chain: Sequence[ir.Node]) -> None:
        """Add a value and the nodes that compute it, in their order."""
        for node in chain:
            if any(output in self._copies for output in node.outputs):
                continue
            inputs = [None if v is None else self._copy(v) for v in node.inputs]
            outputs = [self._copy(v) for v in node.outputs]
            kinds = node.attributes.values()
            self._nodes.append(ir.Node(node.domain, node.op_type, inputs, kinds, outputs=outputs))
        last = self._copies[front]
        wide = WIDER.get(front.dtype) if front.dtype is not None else None
        if wide is not None:
            narrow = last
            last = ir.Value(name=f"w{len(self.fronts)}", type=ir.TensorType(wide))
            self._nodes.append(ir.node("Cast", [narrow], {"to": int(wide)}, outputs=[last]))
        self._outputs.append(last)
        self.fronts[last.name or ""] = front

    def _copy(self, value: ir.Value) -> ir.Value:
        if value in self._copies:
            return self._copies[value]
        name = f"v{len(self._copies)}"
        copy = ir.Value(name=name, type=value.type)
        tensor = g.constant(value)
        if tensor is not None:
            copy.const_value = renamed(tensor, name)
            copy.type, copy.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
            self._initializers.append(copy)
        self._copies[value] = copy
        return copy

    def model(self) -> ir.Model:
        """Return the new model."""
        graph = ir.Graph(
            [],
            self._outputs,
            nodes=self._nodes,
            initializers=self._initializers,
            opset_imports=dict(self._model.graph.opset_imports),
            name="part",
        )
        return ir.Model(graph, ir_version=max(_LEAST_IR, self._model.ir_version))
