"""Element types of all values, and which ports of a node share one: read from the ONNX schemas.

A *slot* is an input or output that holds float32 because a type variable of the operator's schema
is bound to it, so that binding the variable to another type changes the precision of the node.
Ports whose type the schema fixes (the scales of Resize) are no slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from converter.core import graph as g

if TYPE_CHECKING:
    from collections.abc import Mapping

FLOAT = ir.DataType.FLOAT
_NAMES = {ir.DataType.FLOAT16: "tensor(float16)", ir.DataType.BFLOAT16: "tensor(bfloat16)"}
_NUMBERS = ("value_float", "value_floats")
_MADE = {"Cast": "to", "RandomNormal": "dtype", "RandomUniform": "dtype", "EyeLike": "dtype"}
"""Operators whose output has the type that an attribute names."""


@dataclass(frozen=True)
class Signature:
    """Type variables of an operator's ports.

    Attributes:
        inputs: Type variable or fixed type per formal input.
        outputs: The same for outputs.
        allowed: Types that each variable may be bound to.
        repeats: The last formal input may be given any number of times.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    allowed: Mapping[str, frozenset[str]]
    repeats: bool
    repeats_outputs: bool

    def input(self, index: int) -> str:
        """Return the variable of an actual input; "" where there is none."""
        return _at(self.inputs, index, repeats=self.repeats)

    def output(self, index: int) -> str:
        """Return the variable of an actual output; "" where there is none."""
        return _at(self.outputs, index, repeats=self.repeats_outputs)

    def allows(self, variable: str, dtype: ir.DataType) -> bool:
        """Tell whether the variable may be bound to the type."""
        return _NAMES[dtype] in self.allowed.get(variable, frozenset())


def _at(names: tuple[str, ...], index: int, *, repeats: bool) -> str:
    if index < len(names):
        return names[index]
    return names[-1] if repeats and names else ""


@lru_cache(maxsize=4096)
def signature(domain: str, op_type: str, opset: int) -> Signature | None:
    """Return the type variables of an operator, or None when ONNX does not define it."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, "" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:
        return None
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    mixed = any(
        p.option == variadic and not p.is_homogeneous for p in (*schema.inputs, *schema.outputs)
    )
    if mixed:  # the bodies of If, Loop and Scan: their ports have a type each
        return None
    return Signature(
        tuple(p.type_str for p in schema.inputs),
        tuple(p.type_str for p in schema.outputs),
        {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints},
        bool(schema.inputs) and schema.inputs[-1].option == variadic,
        bool(schema.outputs) and schema.outputs[-1].option == variadic,
    )


@dataclass(frozen=True)
class Slots:
    """Ports of one node that hold float32 through a type variable."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    variables: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.inputs or self.outputs)


NO_SLOTS = Slots((), (), frozenset())


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor of a constant, also of a Constant node that holds plain numbers."""
    tensor = g.constant(value)
    if tensor is not None or value is None or value.is_graph_input():
        return tensor
    producer = value.producer()
    if producer is None or not g.is_op(producer, "Constant"):
        return None
    for name in _NUMBERS:
        attribute = producer.attributes.get(name)
        if attribute is not None and not attribute.is_ref():
            return ir.tensor(np.asarray(attribute.value, np.float32), name=value.name)
    return None


def set_constant_tensor(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Give an initializer or the output of a Constant node another tensor."""
    producer = value.producer()
    if producer is not None:
        for name in _NUMBERS:
            producer.attributes.pop(name, None)
    g.replace_tensor(value, tensor)
    value.type = ir.TensorType(tensor.dtype)


class Types:
    """Element types of the values outside of functions, as far as they can be known.

    Args:
        model: Walked once, in order; its values must not change type while this is in use.
    """

    def __init__(self, model: ir.Model) -> None:
        self._known: dict[ir.Value, ir.DataType | None] = {}
        self._opsets = dict(model.graph.opset_imports)
        self._opsets.setdefault("", self._opsets.get("ai.onnx", 0))
        self._walk(model.graph)

    def of(self, value: ir.Value | None) -> ir.DataType | None:
        """Return the element type of a tensor; None where it is unknown or no tensor."""
        return None if value is None else self._known.get(value)

    def is_float(self, value: ir.Value | None) -> bool:
        """Tell whether the value is certainly a float32 tensor."""
        return self.of(value) is FLOAT

    def signature(self, node: ir.Node) -> Signature | None:
        """Return the type variables of the node's operator."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = self._opsets.get(domain, 0)
        return signature(domain, node.op_type, version) if version and not node.overload else None

    def version(self, node: ir.Node) -> int:
        """Return the opset version in force for the node."""
        return self._opsets.get("" if node.domain == "ai.onnx" else node.domain, 0)

    def slots(self, node: ir.Node, fixed: Sequence[int] = ()) -> Slots:
        """Return the float32 slots of a node, without the inputs ``fixed``."""
        found = self.signature(node)
        if found is None:
            return NO_SLOTS
        variables = {
            found.input(i)
            for i, value in enumerate(node.inputs)
            if i not in fixed and self.is_float(value) and found.input(i) in found.allowed
        }
        inputs = [
            i
            for i, value in enumerate(node.inputs)
            if i not in fixed and value is not None and found.input(i) in variables
        ]
        outputs = [i for i, _ in enumerate(node.outputs) if found.output(i) in variables]
        return Slots(tuple(inputs), tuple(outputs), frozenset(variables))

    def _walk(self, graph: ir.Graph) -> None:
        for value in (*graph.inputs, *graph.initializers.values()):
            if value not in self._known:
                self._known[value] = _declared(value)
        for node in graph:
            for inner in g.subgraphs(node):
                self._enter(node, inner)
                self._walk(inner)
            self._unify(node)
            for output, dtype in zip(node.outputs, self._results(node), strict=True):
                self._known[output] = _declared(output) or dtype

    def _unify(self, node: ir.Node) -> None:
        """Give inputs of unknown type that of another input which must have the same one."""
        if all(value is None or self.of(value) for value in node.inputs):
            return
        found = self.signature(node)
        if found is None:
            return
        bound = {found.input(i): self.of(v) for i, v in enumerate(node.inputs) if self.of(v)}
        for index, value in enumerate(node.inputs):
            variable = found.input(index)
            if value is not None and not self.of(value) and variable in found.allowed:
                self._known[value] = bound.get(variable)

    def _enter(self, node: ir.Node, body: ir.Graph) -> None:
        """Give the inputs of a body the types of what enters it."""
        extra = len(node.inputs) - len(body.inputs)
        for index, value in enumerate(body.inputs):
            source = node.inputs[index + extra] if 0 <= index + extra < len(node.inputs) else None
            self._known[value] = _declared(value) or self.of(source)

    def _results(self, node: ir.Node) -> Iterator[ir.DataType | None]:
        found = self.signature(node)
        bodies = list(g.subgraphs(node))
        for index, output in enumerate(node.outputs):
            if found is not None:
                yield self._result(node, found, index, output)
            elif bodies and g.is_op(node, "If") and index < len(bodies[0].outputs):
                yield self.of(bodies[0].outputs[index])
            elif bodies and g.is_op(node, "Loop") and index + 1 < len(bodies[0].outputs):
                yield self.of(bodies[0].outputs[index + 1])
            elif bodies and g.is_op(node, "Scan") and index < len(bodies[0].outputs):
                yield self.of(bodies[0].outputs[index])
            else:
                yield None

    def _result(
        self, node: ir.Node, found: Signature, index: int, output: ir.Value
    ) -> ir.DataType | None:
        variable = found.output(index)
        if variable not in found.allowed:
            return _fixed(variable)
        tensor = constant_tensor(output)
        if tensor is not None:
            return tensor.dtype
        for i, value in enumerate(node.inputs):
            if found.input(i) == variable and self.of(value) is not None:
                return self.of(value)
        return _from_attribute(node, index)


def _from_attribute(node: ir.Node, index: int) -> ir.DataType | None:
    """Return the type that an attribute gives to an output."""
    if g.is_op(node, *_MADE):
        attribute = node.attributes.get(_MADE[node.op_type])
        if attribute is not None and attribute.type is ir.AttributeType.INT:
            return ir.DataType(attribute.as_int())
        return FLOAT if node.op_type.startswith("Random") else None
    if g.is_op(node, "ConstantOfShape"):
        attribute = node.attributes.get("value")
        return FLOAT if attribute is None else attribute.as_tensor().dtype
    if g.is_op(node, "LayerNormalization") and index and "stash_type" not in node.attributes:
        return FLOAT
    return None


def _declared(value: ir.Value) -> ir.DataType | None:
    if value.const_value is not None:
        return value.const_value.dtype
    return value.type.dtype if isinstance(value.type, ir.TensorType) else None


def _fixed(name: str) -> ir.DataType | None:
    return {
        "tensor(float)": FLOAT,
        "tensor(int64)": ir.DataType.INT64,
        "tensor(int32)": ir.DataType.INT32,
        "tensor(bool)": ir.DataType.BOOL,
        "tensor(double)": ir.DataType.DOUBLE,
        "tensor(string)": ir.DataType.STRING,
    }.get(name)
