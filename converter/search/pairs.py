"""Which value of one model is which of another, and which pieces between them differ.

Values are found by name. A value that was put on an integer grid has two places in the other model:
where it enters (before QuantizeLinear) and what is read in its stead (after DequantizeLinear).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from converter.ops.quantizable import QUANTIZABLE, Role
from converter.search.wiring import OTHER, Wiring, same_constant, subgraphs

if TYPE_CHECKING:
    import onnx

_SUFFIXES = re.compile(r"(_dequantized|_DequantizeLinear_Output)(_\d+)?$")
_TRAILING = frozenset({"Relu", "Clip", "BatchNormalization", "PRelu"})
_WITH_CONSTANT = frozenset({"Add", "Mul", "Sub"})
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Pair:
    """One value in both models.

    Attributes:
        name: In the first model.
        entry: In the second model: where a float may be put in its place.
        end: In the second model: the float that is read; behind ``entry`` if it is rounded.
        integers: Between the two, the value on its grid; "" without one.
    """

    name: str
    entry: str
    end: str
    integers: str = ""


@dataclass(frozen=True)
class Layer:
    """A piece between paired values that the second model computes in another way.

    Attributes:
        name: Of its first node, or that node's first output.
        op_type: Of that node.
        pair: The value that the piece computes.
        first: Nodes of the first model.
        second: Nodes of the second model.
        inputs: Pairs that the piece reads, by the second model's entry.
        parameters: Elements of the constants that the first model's nodes read.
    """

    name: str
    op_type: str
    pair: Pair
    first: tuple[int, ...]
    second: tuple[int, ...]
    inputs: tuple[Pair, ...]
    parameters: int

    @property
    def label(self) -> str:
        """Name and operator type, for people."""
        return f"{self.name} ({self.op_type})"


def pair_values(a: Wiring, b: Wiring) -> dict[str, Pair]:
    """Pair the values of two graphs; the second one's names start with ``other/``.

    Values inside a layer are left out: what comes before a bias or an activation is another value
    in a model that has merged them.
    """
    ends: dict[str, str] = {}
    for node in b.nodes:
        for name in node.output:
            if node.op_type == DEQUANTIZE and name:
                ends.setdefault(_SUFFIXES.sub("", name.removeprefix(OTHER)), name)
    found = {}
    for name in (*a.inputs, *(n for node in a.nodes for n in node.output if n)):
        if name in a.constants or _inside(a, name):
            continue
        other = OTHER + name
        known = other in b.maker or other in b.inputs
        if known:
            found[name] = _of_known(a, b, name)
            continue
        end = next((ends[n] for n in (name, *_before(a, name)) if n in ends), None)
        if end is not None:
            found[name] = _of_end(b, name, end)
    return found


def _before(a: Wiring, name: str) -> Iterator[str]:
    """Yield the values inside a layer that its result may be called by in another model.

    A grid that does the work of an activation may keep the name of what came before it.
    """
    node = a.producer(name)
    while node is not None and node.op_type in _TRAILING and _inside(a, node.input[0]):
        yield node.input[0]
        node = a.producer(node.input[0])


def _inside(a: Wiring, name: str) -> bool:
    """Tell whether a value belongs to a layer whose last node comes later."""
    users = a.readers.get(name, ())
    if len(users) != 1 or name in a.outputs or name not in a.maker:
        return False
    user = a.nodes[users[0]]
    if user.domain not in {"", "ai.onnx"}:
        return False
    if user.op_type in _TRAILING:
        return bool(user.input[0] == name)
    others = [n for n in user.input if n != name]
    return user.op_type in _WITH_CONSTANT and all(n in a.constants for n in others)


def _of_known(a: Wiring, b: Wiring, name: str) -> Pair:
    other = OTHER + name
    maker, before = b.producer(other), a.producer(name)
    if maker is not None and maker.op_type == DEQUANTIZE:
        same = before is not None and before.op_type == DEQUANTIZE
        return Pair(name, other, other) if same else _of_end(b, name, other)
    for quantize in b.consumers(other):
        # What the first model rounds too is a node like any other.
        known = quantize.output[0].removeprefix(OTHER) in a.maker
        if quantize.op_type == QUANTIZE and quantize.input[0] == other and not known:
            for dequantize in b.consumers(quantize.output[0]):
                if dequantize.op_type == DEQUANTIZE:
                    return Pair(name, other, dequantize.output[0], quantize.output[0])
    return Pair(name, other, other)


def _of_end(b: Wiring, name: str, end: str) -> Pair:
    dequantize = b.producer(end)
    assert dequantize is not None
    quantize = b.producer(dequantize.input[0])
    if quantize is None or quantize.op_type != QUANTIZE:
        return Pair(name, end, end)
    return Pair(name, quantize.input[0], end, quantize.output[0])


def changed_layers(a: Wiring, b: Wiring, pairs: Mapping[str, Pair]) -> list[Layer]:
    """Return the pieces that differ, in the order of the first model.

    A piece that only moves elements, or that only reads or gives rounded values, is none: its
    neighbours did the rounding.
    """
    entries = {pair.entry: pair for pair in pairs.values()}
    found = []
    for pair in pairs.values():
        if pair.name not in a.maker:
            continue
        first, _ = a.back(pair.name, pairs)
        second, reached = b.back(pair.end, entries, pair.entry)
        if not second or not _changed(a, b, first, second):
            continue
        anchor = a.nodes[_anchor(a, first)]
        found.append(
            Layer(
                name=anchor.name or anchor.output[0],
                op_type=anchor.op_type,
                pair=pair,
                first=tuple(first),
                second=tuple(second),
                inputs=tuple(entries[name] for name in reached if name in entries),
                parameters=sum(_elements(a, n) for n in {n for i in first for n in a.reads[i]}),
            )
        )
    return found


def _changed(a: Wiring, b: Wiring, first: list[int], second: list[int]) -> bool:
    """Tell whether a piece computes in another way, or on integers.

    A float operator between rounded values is none: whoever needs integers rounded them.
    """
    if not _differ(a, b, first, second):
        return False
    core = [i for i in second if not _rounds(b, i)]
    if _differ(a, b, first, core):
        return True
    return any(_on_integers(b, b.nodes[i]) for i in core)


def _rounds(b: Wiring, index: int) -> bool:
    """Tell whether a node puts a computed value on its grid, or takes it off."""
    node = b.nodes[index]
    return node.op_type in {QUANTIZE, DEQUANTIZE} and node.input[0] not in b.constants


def _on_integers(b: Wiring, node: onnx.NodeProto) -> bool:
    row = QUANTIZABLE.find(node.domain, node.op_type, b.opsets.get("", 0))
    if row is None or row.role is Role.SHARED:
        return False
    makers = [b.producer(name) for name in node.input]
    read = any(maker is not None and maker.op_type == DEQUANTIZE for maker in makers)
    return read and any(n.op_type == QUANTIZE for o in node.output for n in b.consumers(o))


def _anchor(a: Wiring, nodes: list[int]) -> int:
    """Return the node that a piece is named after: the one with the largest constant."""
    real = [i for i in nodes if a.nodes[i].op_type != "Constant"] or nodes
    return max(real, key=lambda i: (max((_elements(a, n) for n in a.reads[i]), default=0), -i))


def _elements(a: Wiring, name: str) -> int:
    tensor = a.constants.get(name)
    return 0 if tensor is None else int(np.prod(list(tensor.dims), dtype=np.int64))


def _differ(a: Wiring, b: Wiring, first: list[int], second: list[int]) -> bool:
    ones = [a.nodes[i] for i in first if a.nodes[i].op_type != "Constant"]
    others = [b.nodes[i] for i in second if b.nodes[i].op_type != "Constant"]
    if len(ones) != len(others):
        return True
    couples = zip(sorted(ones, key=_form), sorted(others, key=_form), strict=True)
    return any(_nodes_differ(a, b, one, other) for one, other in couples)


def _nodes_differ(a: Wiring, b: Wiring, one: onnx.NodeProto, other: onnx.NodeProto) -> bool:
    # Weights may lie in the branches of If: what those hold is compared as it is written.
    if _form(one) != _form(other) or not _same_branches(one, other):
        return True
    for x, y in zip(one.input, other.input, strict=True):
        if (x in a.constants) != (y in b.constants):
            return True
        if x in a.constants and not same_constant((a, x), (b, y)):
            return True
    return False


def _form(node: onnx.NodeProto) -> tuple[str, ...]:
    plain = (x.SerializeToString() for x in node.attribute if not x.HasField("g") and not x.graphs)
    return node.domain, node.op_type, str(len(node.input)), *sorted(p.hex() for p in plain)


def _same_branches(one: onnx.NodeProto, other: onnx.NodeProto) -> bool:
    def forms(node: onnx.NodeProto) -> Iterator[object]:
        for graph in subgraphs(node):
            yield from (t.raw_data for t in graph.initializer)
            for inner in graph.node:
                yield _form(inner)
                yield from forms(inner)

    return list(forms(one)) == list(forms(other))
