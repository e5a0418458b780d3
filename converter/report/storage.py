"""How constants are stored: as they are used, or in a smaller form that nodes decode at load.

A decoder is recognised by what it is, whoever wrote it: nodes whose inputs are all constants,
between stored tensors and a layer. Its form is told by its operators.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from converter.core.graph import (
    DEFAULT_DOMAINS,
    constant,
    constant_array,
    graphs,
    subgraphs,
    tensors,
)
from converter.measure.sparsity import count_zeros
from converter.ops.summed import MICROSOFT, View, views_of

SMALL = 64
"""Elements below which a computed constant is no weight."""

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
    | {"RandomUniformLike"}
)
# The first row of which all operators are among a decoder's names its form.
_FORMS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"ScatterElements"}), "gaps"),
    (frozenset({"ScatterND"}), "gaps"),
    (frozenset({"CumSum"}), "bitmask"),
    (frozenset({"NonZero"}), "bitmask"),
    (frozenset({"GatherElements"}), "palette"),
    (frozenset({"Gather"}), "palette"),
    (frozenset({"DequantizeLinear"}), "DequantizeLinear"),
    (frozenset({"Cast", "Mul"}), "Cast, Mul"),
    (frozenset({"Cast"}), "Cast"),
)
_UNNAMED = "computed"
_SAME_SHAPE = {
    **dict.fromkeys(("Cast", "DequantizeLinear", "Identity", "Not", "QuantizeLinear", "CumSum"), 0),
    **dict.fromkeys(("ScatterElements", "ScatterND"), 0),
    "GatherElements": 1,
}
"""Operator -> the input that has the shape of the output."""
_BROADCAST = frozenset({"Add", "And", "Div", "Mod", "Mul", "Or", "Sub"})


@dataclass(frozen=True)
class Decoded:
    """A weight that nodes decode: its name, shape, share of zeros and their pattern."""

    name: str
    shape: tuple[int, ...]
    zeros: float | None
    pattern: str


@dataclass(eq=False)
class Packed:
    """Constants that are decoded together, from tensors that no other decoder reads.

    Attributes:
        names: The decoded values, as layers use them.
        form: ``bitmask``, ``gaps``, ``palette``, ``Cast, Mul`` ...; see :data:`_FORMS`.
        kinds: Element types stored, the largest first.
        elements: Elements of the decoded values; None where a shape is not known.
        nbytes: Bytes of the stored tensors.
        zeros: Zeros among the elements, where the stored tensors tell.
        stored: Identities of the stored tensors.
        encoded: Those of them whose elements are not the weights one by one.
        tensors: The weights one by one, where they were decoded to look at them.
    """

    names: tuple[str, ...]
    form: str
    kinds: tuple[str, ...]
    elements: int | None
    nbytes: int
    zeros: int | None = None
    stored: frozenset[int] = frozenset()
    encoded: frozenset[int] = frozenset()
    tensors: tuple[Decoded, ...] = ()


def packed(model: ir.Model, *, read: bool = True) -> list[Packed]:
    """List what is stored in another form than it is used in, in the order of the graphs.

    Args:
        model: The model.
        read: Read tensors, to count zeros.
    """
    found: list[Packed] = []
    for graph in graphs(model):
        computed, order = _computed(graph)
        found += [_describe(one, read=read) for one in _groups(order, computed)]
        found += [one for node in graph if (one := _blocks(node)) is not None]
    return [one for one in found if _is_smaller(one)]


def parameters(model: ir.Model, groups: Iterable[Packed], stored: int) -> int:
    """Count the numbers that layers compute with: of decoded tensors those that come out.

    Args:
        model: The model.
        groups: What :func:`packed` found in it.
        stored: Elements of all stored tensors.
    """
    told = [one for one in groups if one.elements is not None]
    read = {identity for one in told for identity in one.stored}
    replaced = sum(tensor.size for tensor in tensors(model) if id(tensor) in read)
    return stored - replaced + sum(one.elements or 0 for one in told)


def _is_smaller(group: Packed) -> bool:
    """Tell a decoder from arithmetic that turns or reshapes a constant."""
    if group.form == _UNNAMED:
        return group.elements is not None and group.nbytes < 2 * group.elements
    return group.elements is None or group.elements >= SMALL


@dataclass(eq=False)
class _Group:
    """Decoders that share stored tensors."""

    outputs: list[ir.Value] = field(default_factory=list)
    nodes: dict[int, ir.Node] = field(default_factory=dict)
    stored: dict[int, ir.Value] = field(default_factory=dict)


def _computed(graph: ir.Graph) -> tuple[set[int], list[ir.Value]]:
    """Return the values that follow from constants alone, and those that other nodes use."""
    known: set[int] = set()
    for node in graph:
        if _follows(node, known):
            known.update(id(value) for value in node.outputs)
    made = (value for node in graph for value in node.outputs if id(value) in known)
    return known, [value for value in made if _leaves(value, known)]


def _follows(node: ir.Node, known: set[int]) -> bool:
    inputs = [value for value in node.inputs if value is not None]
    plain = node.domain in DEFAULT_DOMAINS and node.op_type not in _RANDOM
    if not inputs or not plain or any(True for _ in subgraphs(node)):
        return False
    return all(id(value) in known or constant(value) is not None for value in inputs)


def _leaves(value: ir.Value, known: set[int]) -> bool:
    """Tell whether something beside other constants uses the value."""
    if value.is_graph_output():
        return True
    return any(not node.outputs or id(node.outputs[0]) not in known for node, _ in value.uses())


def _groups(ends: Iterable[ir.Value], computed: set[int]) -> list[_Group]:
    """Join the decoders that read the same large tensor."""
    owners: dict[int, _Group] = {}
    groups: list[_Group] = []
    for end in ends:
        nodes, stored = _upstream(end, computed)
        large = [value for value in stored if _size(value) >= SMALL]
        if not large:
            continue
        joined = list({id(g): g for v in large if (g := owners.get(id(v)))}.values())
        group = joined[0] if joined else _Group()
        for other in joined[1:]:
            group.outputs += other.outputs
            group.nodes |= other.nodes
            group.stored |= other.stored
            groups.remove(other)
        if not joined:
            groups.append(group)
        group.outputs.append(end)
        group.nodes |= {id(node): node for node in nodes}
        group.stored |= {id(value): value for value in stored}
        owners |= dict.fromkeys(group.stored, group)
    return groups


def _upstream(end: ir.Value, computed: set[int]) -> tuple[list[ir.Node], list[ir.Value]]:
    nodes: dict[int, ir.Node] = {}
    stored: dict[int, ir.Value] = {}
    waiting = [end]
    while waiting:
        value = waiting.pop()
        if id(value) not in computed:
            stored[id(value)] = value
            continue
        node = value.producer()
        if node is not None and id(node) not in nodes:
            nodes[id(node)] = node
            waiting += [v for v in node.inputs if v is not None]
    return list(nodes.values()), list(stored.values())


def _describe(group: _Group, *, read: bool) -> Packed:
    operators = {node.op_type for node in group.nodes.values()}
    form = next((name for wanted, name in _FORMS if wanted <= operators), _UNNAMED)
    tensors = [t for v in group.stored.values() if (t := constant(v)) is not None]
    tensors.sort(key=lambda t: -t.nbytes)
    main = [t for t in tensors if t.size >= SMALL and 16 * t.nbytes > tensors[0].nbytes]
    kinds = tuple(dict.fromkeys(t.dtype.name.lower() for t in main or tensors[:1]))
    shapes = [shape_of(value) for value in group.outputs]
    known = [math.prod(shape) for shape in shapes if shape is not None]
    elements = sum(known) if len(known) == len(shapes) else None
    return Packed(
        names=tuple(value.name or "" for value in group.outputs),
        form=form,
        kinds=kinds,
        elements=elements,
        nbytes=sum(t.nbytes for t in tensors),
        zeros=_zeros(form, group, elements) if read else None,
        stored=frozenset(id(t) for t in tensors),
        encoded=frozenset(id(t) for t in tensors if not (form in _PLAIN and t.size == elements)),
    )


def _zeros(form: str, group: _Group, elements: int | None) -> int | None:
    """Count zeros where stored tensors tell: one element or one bit of a mask for each weight."""
    for value in group.stored.values():
        tensor = constant(value)
        if tensor is None or elements is None:
            continue
        if form in _PLAIN and tensor.size == elements:
            return count_zeros(tensor, _zero_point(value))
        is_mask = tensor.dtype == ir.DataType.UINT8 and tensor.size == math.ceil(elements / 8)
        if form == "bitmask" and is_mask:
            return elements - int(np.bitwise_count(tensor.numpy()).sum(dtype=np.int64))
    return None


_PLAIN = frozenset({"Cast", "Cast, Mul", "DequantizeLinear"})


def _size(value: ir.Value) -> int:
    tensor = constant(value)
    return 0 if tensor is None else tensor.size


def _blocks(node: ir.Node) -> Packed | None:
    """Describe the weight of an operator that decodes blocks of 4 or 8 bits while it runs."""
    if node.domain != MICROSOFT or node.op_type not in _BLOCKED:
        return None
    tensors = [t for v in node.inputs[1:] if (t := constant(v)) is not None]
    if not tensors:
        return None
    bits = node.attributes.get_int("bits", 4)
    rows, columns = (node.attributes.get_int(name, 0) for name in ("N", "K"))
    elements = (rows or 0) * (columns or 0) or tensors[0].size * 8 // (bits or 4)
    name = node.inputs[1].name if node.inputs[1] is not None else ""
    total = sum(t.nbytes for t in tensors)
    stored = frozenset(id(t) for t in tensors)
    return Packed(
        names=(name or "",),
        form=node.op_type,
        kinds=(f"uint{bits}",),
        elements=elements,
        nbytes=total,
        stored=stored,
        encoded=stored,
    )


_BLOCKED = frozenset({"GatherBlockQuantized", "MatMulBnb4", "MatMulNBits"})


def shape_of(value: ir.Value) -> tuple[int, ...] | None:
    """Return the shape of a computed constant: as declared, else as its operators give it."""
    tensor = constant(value)
    if tensor is not None:
        return tuple(int(d) for d in tensor.shape.numpy())
    if value.shape is not None and all(isinstance(d, int) for d in value.shape):
        return tuple(int(d) for d in value.shape.numpy())
    node = value.producer()
    if node is None or node.domain not in DEFAULT_DOMAINS:
        return None
    return _shape_after(node)


def _shape_after(node: ir.Node) -> tuple[int, ...] | None:
    """Return the shape of the first output, of the few operators that decoders end with."""
    if node.op_type == "Reshape":
        wanted = constant_array(node.inputs[1])
        return tuple(map(int, wanted)) if wanted is not None and (wanted > 0).all() else None
    known = [None if v is None else shape_of(v) for v in node.inputs]
    shapes = [shape for shape in known if shape is not None]
    if node.op_type in _SAME_SHAPE:
        return known[_SAME_SHAPE[node.op_type]]
    if node.op_type == "Gather" and len(shapes) == 2:
        axis = node.attributes.get_int("axis", 0) or 0
        axis += len(shapes[0]) if axis < 0 else 0
        return (*shapes[0][:axis], *shapes[1], *shapes[0][axis + 1 :])
    if node.op_type == "Transpose" and shapes:
        order = node.attributes.get_ints("perm", ()) or range(len(shapes[0]))[::-1]
        return tuple(shapes[0][axis] for axis in order)
    if node.op_type in _BROADCAST and len(shapes) == len(known):
        with suppress(ValueError):
            return np.broadcast_shapes(*shapes)
    return None


def uses(model: ir.Model) -> Iterator[tuple[int, tuple[tuple[View, ...], int]]]:
    """Yield, for each tensor by identity, how the first layer sees it, and what counts as zero."""
    for graph in graphs(model):
        values = [*graph.initializers.values(), *(v for n in graph for v in n.outputs)]
        for value in values:
            tensor = value.const_value if value.is_initializer() else constant(value)
            if tensor is not None and tensor.size >= SMALL:
                shape = tuple(int(d) for d in tensor.shape.numpy())
                found = (views_of(node, port, shape) for node, port in readers(value))
                yield id(tensor), (next((v for v in found if v), ()), _zero_point(value))


def readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Yield the uses of a stored weight, seen through operators that keep every element's place."""
    waiting, seen = [value], {id(value)}
    while waiting:
        for node, index in waiting.pop().uses():
            if node.domain in DEFAULT_DOMAINS and node.op_type in _THROUGH and index == 0:
                following = node.outputs[0]
                if id(following) not in seen:
                    seen.add(id(following))
                    waiting.append(following)
            else:
                yield node, index


_THROUGH = frozenset({"Cast", "DequantizeLinear", "Identity", "Mul"})
_ZERO_POINTS = {"DequantizeLinear": 2, "QLinearConv": 5, "QLinearMatMul": 5}


def _zero_point(value: ir.Value) -> int:
    """Return the integer that stands for zero, if all rows share one."""
    for node, _ in value.uses():
        port = _ZERO_POINTS.get(node.op_type)
        if port is not None and len(node.inputs) > port:
            points = constant_array(node.inputs[port])
            if points is not None and points.size and (points == points.flat[0]).all():
                return int(points.flat[0])
    return 0
