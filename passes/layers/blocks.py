"""Parts of a model that hand on a value of the size of one they were given: what can be left out.

A block is a node with an input of the size of its output, and everything that only its other
inputs need: of ``Add(u, f(u))`` the branch ``f``, of ``Add(f(u), p(u))`` the branch that costs
more, so that a projection on the shortcut stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from converter.core import graph as g
from converter.core.contract import Skip
from converter.ops import work

if TYPE_CHECKING:
    from converter.core.select import Selection

Shape = tuple[int, ...]
Sizes = Mapping[str, Shape]

_MERGES = ("Add", "Mul", "Sub", "Sum")
"""Operators that join a branch and a shortcut."""
_LAYERS = (
    "BatchNormalization", "Conv", "Gemm", "GroupNormalization", "InstanceNormalization",
    "LayerNormalization", "MatMul", "PRelu", "RMSNormalization", "SimplifiedLayerNormalization",
)  # fmt: skip
"""Layers with weights of their own that may have outputs of the size of their input."""
_MOST = 2 / 3
"""A block with a larger share of all multiply-accumulates is the model, not a layer of it."""


@dataclass(frozen=True, eq=False)
class Block:
    """A part that can be left out.

    Attributes:
        node: Its last node.
        position: The input of that node that takes the place of its output.
        nodes: All of its nodes, in the order of the graph.
        macs: Multiply-accumulates of these nodes.
        branch: It has a shortcut around it.
    """

    node: ir.Node
    position: int
    nodes: tuple[ir.Node, ...]
    macs: int
    branch: bool

    @property
    def name(self) -> str:
        """Name for people."""
        return g.label(self.node)

    @property
    def key(self) -> tuple[str, int]:
        """What finds the block in a clone of the model."""
        return self.node.outputs[0].name or "", self.position

    @property
    def given(self) -> ir.Value:
        """The value that is handed on when the block is left out."""
        value = self.node.inputs[self.position]
        assert value is not None
        return value

    @property
    def made(self) -> ir.Value:
        """The value that the block makes."""
        return self.node.outputs[0]


def find_blocks(
    model: ir.Model, sizes: Sizes, selection: Selection, total: int
) -> tuple[list[Block], list[Skip]]:
    """Return the blocks of the main graph, in its order, and what cannot be left out.

    Args:
        model: Sorted.
        sizes: Of values by name, as observed.
        selection: Of blocks: any node of a block may be named.
        total: Multiply-accumulates of the whole model, before anything was left out.
    """
    nodes = list(model.graph)
    counts = {node: _macs(model, node, sizes) for node in nodes}
    found: list[Block] = []
    skipped: list[Skip] = []
    for index, node in enumerate(nodes):
        options = [
            _block(nodes[: index + 1], node, position, counts)
            for position in _positions(node, sizes)
        ]
        block = max(options, key=lambda block: block.macs, default=None)
        if block is None or not _chosen(block, selection):
            continue
        reason = _obstacle(block, total)
        if reason:
            skipped.append(Skip(block.name, reason))
        elif block.macs or not block.branch:
            found.append(block)
    return found, skipped


def find_block(model: ir.Model, sizes: Sizes, key: tuple[str, int]) -> Block:
    """Return the block with a key in a clone of the model that it was found in."""
    nodes = list(model.graph)
    name, position = key
    index = next(i for i, node in enumerate(nodes) if node.outputs[0].name == name)
    counts = {node: _macs(model, node, sizes) for node in nodes[: index + 1]}
    return _block(nodes[: index + 1], nodes[index], position, counts)


def _macs(model: ir.Model, node: ir.Node, sizes: Sizes) -> int:
    def size(value: ir.Value) -> Shape | None:
        return _size(value, sizes)

    return work.macs(node, model.opset_imports.get(node.domain, 1), size) or 0


def _size(value: ir.Value | None, sizes: Sizes) -> Shape | None:
    if value is None:
        return None
    tensor = g.constant(value)
    return sizes.get(value.name or "") if tensor is None else tuple(tensor.shape.numpy())


def _positions(node: ir.Node, sizes: Sizes) -> Iterator[int]:
    """Yield the inputs that could take the place of the output."""
    if not g.is_op(node, *_MERGES, *_LAYERS) or any(v.uses() for v in node.outputs[1:]):
        return
    made = _size(node.outputs[0], sizes)
    if made is None or len(made) < 2 or not _is_float(node.outputs[0]):
        return
    dynamic = [i for i, v in enumerate(node.inputs) if v is not None and not _fixed(v)]
    fitting = [i for i in dynamic if _size(node.inputs[i], sizes) == made]
    if g.is_op(node, *_MERGES) and len(dynamic) == 2 == len(node.inputs):
        yield from (i for i in fitting if i == 0 or node.op_type != "Sub")
    elif len(dynamic) == 1 and g.is_op(node, "Mul", *_LAYERS) and any(map(_is_weight, node.inputs)):
        yield from fitting


def _is_float(value: ir.Value) -> bool:
    return value.dtype in {None, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE}


def _fixed(value: ir.Value) -> bool:
    return g.constant(value) is not None


def _is_weight(value: ir.Value | None) -> bool:
    """Tell whether a value is a constant with more than one number."""
    tensor = g.constant(value)
    return tensor is not None and int(tensor.size) > 1


def _block(
    nodes: Sequence[ir.Node], last: ir.Node, position: int, counts: Mapping[ir.Node, int]
) -> Block:
    """Return the block that ends at a node: what nobody needs when the input is handed on.

    Args:
        nodes: Of the graph up to ``last``.
        last: The node.
        position: Of the input that is handed on.
        counts: Multiply-accumulates by node.
    """
    gone = {last}
    for node in reversed(nodes[:-1]):
        users = [use.node for value in node.outputs for use in value.uses()]
        public = any(value.is_graph_output() for value in node.outputs)
        if public or not users or any(user not in gone for user in users):
            continue
        if last in users and last.inputs[position] in node.outputs:
            continue
        if g.is_op(node, "Constant"):
            continue  # no work; it goes when nobody reads it
        gone.add(node)
    members = tuple(node for node in nodes if node in gone)
    branch = sum(v is not None and not _fixed(v) for v in last.inputs) > 1
    return Block(last, position, members, sum(counts[node] for node in members), branch)


def _chosen(block: Block, selection: Selection) -> bool:
    """Tell whether a block may go: one node that is excluded keeps it."""
    if not selection.include and not selection.exclude:
        return True
    from converter.core.select import Selection as Nodes

    kept = Nodes((), selection.exclude)
    wanted = Nodes(selection.include, ())
    return all(node in kept for node in block.nodes) and any(node in wanted for node in block.nodes)


def _obstacle(block: Block, total: int) -> str:
    given, made = block.given, block.made
    if made.is_graph_output():
        if given.producer() is None or given.is_graph_output():
            return "its output is an output of the model, and so would be its input"
        if given.dtype not in {None, made.dtype}:
            return "its output has another type than its input"
    if any(True for node in block.nodes for _ in g.subgraphs(node)):
        return "it holds sub-graphs"
    if total and block.macs > _MOST * total:
        return "it is most of the model"
    return ""
