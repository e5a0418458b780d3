"""Finding the nodes that can be computed in advance, and saying why others cannot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core.graph import DEFAULT_DOMAINS, constant, subgraphs
from passes.rewriting import contents
from passes.rewriting.facts import static
from passes.rewriting.purity import RANDOM, TRAINABLE, is_standard
from passes.rewriting.work import Work

Array = np.ndarray[Any, Any]

BIGGER = "the result would make the file bigger"
_SOURCES = frozenset({"Shape", "Size"})
_FOLLOWED = contents.FOLLOWED | {
    *("Cast", "Concat", "ConstantOfShape", "Expand", "Gather", "Identity", "Reshape", "Slice"),
    *("Squeeze", "Transpose", "Unsqueeze"),
}
"""Operators whose integer vectors :mod:`passes.rewriting.facts` follows element by element."""

_FOLLOWED_TYPES = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})
_LARGEST_INPUT = 64 << 20
_SLACK = 1024
_UNKNOWN_SIZE_INPUT = 64 << 10
_TYPES = frozenset(
    {
        ir.DataType.BOOL,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.INT8,
        ir.DataType.INT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.UINT8,
        ir.DataType.UINT16,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
    }
)

_NEVER = {
    **dict.fromkeys(RANDOM, "it is random"),
    **dict.fromkeys(TRAINABLE, "it may be in training mode"),
    **dict.fromkeys(
        (
            "ConcatFromSequence",
            "Optional",
            "OptionalGetElement",
            "OptionalHasElement",
            "SequenceAt",
            "SequenceConstruct",
            "SequenceEmpty",
            "SequenceErase",
            "SequenceInsert",
            "SequenceLength",
            "SplitToSequence",
        ),
        "it works on a sequence or an optional value",
    ),
    "DequantizeLinear": "it stores a constant in fewer bits on purpose",
}


@dataclass
class Foldable:
    """Nodes whose outputs can be computed now.

    Attributes:
        nodes: In topological order.
        known: Outputs that follow from shapes alone, by value.
        nbytes: Expected size of outputs; absent where it is not known.
        growing: Nodes whose outputs are larger than their inputs.
        refused: Those of them that would make the file bigger.
    """

    nodes: dict[ir.Node, None] = field(default_factory=dict)
    known: dict[ir.Value, Array] = field(default_factory=dict)
    nbytes: dict[ir.Value, int] = field(default_factory=dict)
    growing: set[ir.Node] = field(default_factory=set)
    refused: set[ir.Node] = field(default_factory=set)

    def has(self, value: ir.Value | None) -> bool:
        """Tell whether a value can be computed."""
        producer = value.producer() if value is not None else None
        return producer is not None and producer in self.nodes


def foldable(work: Work, largest: int, refused: set[ir.Node]) -> Foldable:
    """Return the nodes that can be computed; notes the reasons for those that nearly can.

    Args:
        work: The model.
        largest: Bytes up to which results may be larger than what they are made of.
        refused: Nodes whose results turned out to be too large for the file.
    """
    found = Foldable()
    limits = _Limits(largest, refused)
    sizes: set[ir.Value] = set()
    for node in work.nodes():
        if node.domain not in DEFAULT_DOMAINS or node.op_type == "Constant":
            continue
        if node.op_type in work.redefined or node not in work.selection or not node.outputs:
            continue
        vector = None
        if node.op_type in _SOURCES or (
            node.op_type in _FOLLOWED and any(v in sizes for v in node.inputs)
        ):
            sizes.update(node.outputs)
            vector = _known_vector(node, work)
        if vector is not None:
            found.nodes[node] = None
            found.known[node.outputs[0]] = vector
            found.nbytes[node.outputs[0]] = vector.nbytes
        elif _is_constant_node(node, found):
            nature = _obstacle(node, work)
            reason = nature or _size_obstacle(node, work, found, limits)
            if reason is None:
                found.nodes[node] = None
            else:
                work.skip(node, "fold", reason, minor=nature is not None)
    return found


def _known_vector(node: ir.Node, work: Work) -> Array | None:
    """Return the output of a node that computes with shapes, if every element is certain."""
    if len(node.outputs) != 1:
        return None
    fact = work.facts.of(node.outputs[0])
    content = static(fact.content)
    if content is None or fact.dtype not in _FOLLOWED_TYPES or fact.dims is None:
        return None
    if len(fact.dims) > 1 or (not fact.dims and len(content) != 1):
        return None
    shape = () if not fact.dims else (len(content),)
    return np.array(content, np.int64).astype(fact.dtype.numpy()).reshape(shape)


def _is_constant_node(node: ir.Node, found: Foldable) -> bool:
    return all(v is None or constant(v) is not None or found.has(v) for v in node.inputs)


@dataclass(frozen=True)
class _Limits:
    """Sizes up to which results are computed."""

    largest: int
    refused: set[ir.Node]


def _obstacle(node: ir.Node, work: Work) -> str | None:
    """Return why a node is of a kind that is not computed in advance."""
    if node.op_type in _NEVER:
        return _NEVER[node.op_type]
    if not is_standard(node):
        return "the operator is not part of the ONNX specification"
    if next(subgraphs(node), None) is not None:
        return "it has inner graphs"
    if any(a.is_ref() for a in node.attributes.values()):
        return "it depends on an attribute of the function's call"
    if not node.inputs:
        return "it has no inputs"
    return _type_obstacle(node, work)


def _type_obstacle(node: ir.Node, work: Work) -> str | None:
    for output in node.outputs:
        if output.type is not None and not isinstance(output.type, ir.TensorType):
            return "its result is not a tensor"
        dtype = work.facts.of(output).dtype
        if dtype is not None and dtype not in _TYPES:
            return f"its result has type {dtype.name}"
    if node.op_type in {"Div", "Mod"}:
        return _division_obstacle(node)
    return None


def _division_obstacle(node: ir.Node) -> str | None:
    """Integer division by 0, or of the smallest number by -1, ends the process that computes it."""
    divisor = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if divisor is None:
        return "its divisor is not known yet"
    array = divisor.numpy()
    if array.dtype.kind in "iu" and bool(np.isin(array, (0, -1)).any()):
        return "it divides integers by 0 or -1"
    return None


def _size_obstacle(node: ir.Node, work: Work, found: Foldable, limits: _Limits) -> str | None:
    given = 0
    for value in dict.fromkeys(v for v in node.inputs if v is not None):
        tensor = constant(value)
        given += tensor.nbytes if tensor is not None else found.nbytes.get(value, 0)
    if given > _LARGEST_INPUT:
        return f"its inputs have {given} bytes"
    total = 0
    for output in node.outputs:
        fact = work.facts.of(output)
        known = fact.static
        if known is None or fact.dtype is None:
            return None if given <= _UNKNOWN_SIZE_INPUT else "the size of its result is not known"
        nbytes = _nbytes(known, fact.dtype)
        found.nbytes[output] = nbytes
        total += nbytes
    if total <= given + _SLACK:
        return None
    if node in limits.refused:
        return BIGGER
    if total > limits.largest:
        return f"its result would be larger than {limits.largest:,} bytes (fold_constants:largest=)"
    found.growing.add(node)
    return None


def _nbytes(dims: tuple[int, ...], dtype: ir.DataType) -> int:
    count = 1
    for size in dims:
        count *= size
    return (count * dtype.bitwidth + 7) // 8


# Clusters: nodes that are kept or folded together, because they share the constants they free
