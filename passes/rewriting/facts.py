"""What is certain about values: element type, dimensions and, for shape vectors, their elements.

Evidence that counts: what onnxruntime enforces (element types, rank and fixed dimensions of the
main graph's inputs), constants, and what follows from them by the semantics of operators in
:mod:`passes.rewriting.shapes`. Shapes written in ``value_info`` or at graph outputs do not count:
files carry stale ones and nobody checks them. Names of dynamic dimensions do not count either: two
inputs with a dimension ``N`` may be fed with different sizes. An unknown dimension is an object of
its own, :class:`passes.rewriting.symbols.Dim`, and only equal to itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from converter.core.graph import DEFAULT_DOMAINS, constant, subgraphs
from passes.rewriting.symbols import Dim, Size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["UNKNOWN", "Dim", "Dims", "Fact", "Facts", "Size", "static"]
_SMALL = 64  # longest vector whose elements are followed


Dims = tuple[Size, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Fact:
    """What is certain about one value; None where nothing is.

    Attributes:
        dtype: Element type.
        dims: One entry per axis.
        content: Elements of an integer or bool tensor of rank 0 or 1; flags are 0 and 1.
    """

    dtype: ir.DataType | None = None
    dims: Dims | None = None
    content: Dims | None = None

    @property
    def static(self) -> tuple[int, ...] | None:
        """The dimensions if all of them are known."""
        return static(self.dims)


UNKNOWN = Fact()
Answer = Callable[[ir.Node, tuple[Fact, ...], int], tuple[Fact, ...]]


def static(sizes: Dims | None) -> tuple[int, ...] | None:
    """Return the sizes if all of them are known numbers."""
    if sizes is None:
        return None
    known = tuple(size for size in sizes if isinstance(size, int))
    return known if len(known) == len(sizes) else None


class Facts:
    """Facts about the values of one model, computed when asked for and kept.

    Rewrites never make a fact wrong as long as they keep what each value computes.

    Args:
        enforced: Values whose declared rank and fixed dimensions the runtime checks: the inputs of
            the main graph.
        opsets: Version of the default operator set by graph.
        answer: What an operator says about its outputs, given its node, one fact per input, and the
            operator set: :func:`passes.rewriting.shapes.answer`.
    """

    def __init__(
        self, enforced: set[ir.Value], opsets: Mapping[ir.Graph, int], answer: Answer
    ) -> None:
        self._answer = answer
        self._enforced = enforced
        self._opsets = opsets
        self._known: dict[ir.Value, Fact] = {}

    def of(self, value: ir.Value | None) -> Fact:
        """Return what is certain about the value."""
        if value is None:
            return UNKNOWN
        found = self._known.get(value)
        return found if found is not None else self._derive(value)

    def assume(self, value: ir.Value, fact: Fact) -> None:
        """Take a fact about a value from outside, such as the shape of one given sample.

        All that is derived afterwards holds for such samples only.
        """
        self._known[value] = fact

    def _derive(self, value: ir.Value) -> Fact:
        """Compute the fact of a value and of all that it depends on, without recursion."""
        known = self._known
        stack = [value]
        while stack:
            current = stack[-1]
            if current in known:
                stack.pop()
                continue
            producer = current.producer()
            if producer is None or constant(current) is not None:
                known[current] = self._source(current)
                continue
            missing = [v for v in _needed(producer) if v is not None and v not in known]
            if missing:
                stack.extend(missing)
                continue
            self._apply(producer)
        return known[value]

    def _source(self, value: ir.Value) -> Fact:
        tensor = constant(value)
        if tensor is not None:
            return _constant_fact(tensor)
        dims: Dims | None = None
        if value in self._enforced and value.shape is not None:
            # Some exporters write -1 for a dynamic dimension.
            sizes = [d if isinstance(d, int) and d >= 0 else Dim() for d in value.shape]
            dims = tuple(sizes)
        return Fact(value.dtype if isinstance(value.type, ir.TensorType) else None, dims)

    def _either(self, values: tuple[ir.Value, ...]) -> Fact:
        """Return what holds for each of several values."""
        facts = [self._known[value] for value in values]
        first = facts[0]
        for fact in facts[1:]:
            first = Fact(
                first.dtype if first.dtype == fact.dtype else None,
                _common(first.dims, fact.dims),
                first.content if first.content == fact.content else None,
            )
        return first

    def _apply(self, node: ir.Node) -> None:
        facts: tuple[Fact, ...] = ()
        if node.domain not in DEFAULT_DOMAINS:
            pass
        elif node.op_type == "If":
            facts = tuple(self._either(values) for values in _branches(node))
        elif not any(a.is_ref() for a in node.attributes.values()):
            inputs = tuple(UNKNOWN if v is None else self._known[v] for v in node.inputs)
            version = self._opsets.get(node.graph, 0) if isinstance(node.graph, ir.Graph) else 0
            facts = self._answer(node, inputs, version)
        for index, output in enumerate(node.outputs):
            fact = facts[index] if index < len(facts) else UNKNOWN
            if fact.dtype is None and isinstance(output.type, ir.TensorType):
                fact = Fact(output.type.dtype, fact.dims, fact.content)
            self._known[output] = fact


def _common(one: Dims | None, other: Dims | None) -> Dims | None:
    """Return the sizes that two shapes of one rank share."""
    if one is None or other is None or len(one) != len(other):
        return None
    return tuple(a if a == b else Dim() for a, b in zip(one, other, strict=True))


def _needed(node: ir.Node) -> Iterable[ir.Value | None]:
    """Return the values that say something about the node's outputs."""
    if node.op_type != "If":
        return node.inputs
    return [value for values in _branches(node) for value in values]


def _branches(node: ir.Node) -> Iterable[tuple[ir.Value, ...]]:
    """Return what the branches of an If give for each output."""
    return zip(*(graph.outputs for graph in subgraphs(node)), strict=False)


def _constant_fact(tensor: ir.TensorProtocol) -> Fact:
    dims = tuple(int(d) for d in tensor.shape.numpy())
    content: Dims | None = None
    followed = tensor.dtype in {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL}
    if followed and len(dims) <= 1 and tensor.size <= _SMALL:
        content = tuple(int(i) for i in np.asarray(tensor.numpy()).reshape(-1))
    return Fact(tensor.dtype, dims, content)
