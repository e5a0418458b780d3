"""Sizes and indices that nodes read as inputs, after axes have become shorter.

The facts of the rewriting engine say what every size is, in terms of the unknown sizes of the
inputs. Walking through the nodes in order, the shape that a node's output must have is known from
the atoms; where the operand of Reshape, Expand and the like would give another one, its entries are
written anew, and no others. Sizes that are used as numbers (the root of the length of a head, say)
keep the value that they had: what is left computes what it computed before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from converter.core import graph as g
from passes.coupling.edit import Edit
from passes.coupling.kept import Keep
from passes.coupling.unshare import is_operand
from passes.coupling.vectors import Entry, Old
from passes.rewriting.facts import UNKNOWN, Dim, Dims, Fact, Facts, Size
from passes.rewriting.shapes import answer
from passes.rewriting.symbols import divide, multiply

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.coupling.structure import Coupling


Rule = Callable[["Sizes", Edit, "ir.Node"], None]
_NAMES = "Reshape Expand Tile ConstantOfShape Resize MaxUnpool Slice Split Gather Pad"
_REWRITTEN = frozenset(_NAMES.split())


class Sizes:
    """What is known about sizes before and after a cut.

    Make it before the model is edited.

    Args:
        model: In topological order.
        keep: What will be left.
    """

    def __init__(self, model: ir.Model, keep: Keep) -> None:
        self.keep = keep
        self.model = model
        self.old = _facts(model)
        self._inputs: dict[ir.Node, tuple[Fact, ...]] = {}
        free = {size for value in model.graph.inputs for size in self.old.of(value).dims or ()}
        for node in model.graph:
            self._inputs[node] = tuple(self.old.of(value) for value in node.inputs)
            for output in node.outputs:
                fact = self.old.of(output)
                dims = _completed(output, fact.dims, keep.coupling, free)
                self.old.assume(output, Fact(fact.dtype, dims, fact.content))
        self.new = _facts(model)
        for value in model.graph.inputs:
            self.new.assume(value, self.old.of(value))

    def old_input(self, node: ir.Node, position: int) -> Fact:
        """Return what was known about an input of a node before the cut."""
        facts = self._inputs.get(node, ())
        return facts[position] if position < len(facts) else UNKNOWN

    def required(self, value: ir.Value) -> Dims | None:
        """Return the shape that a node output must have after the cut."""
        dims = self.old.of(value).dims
        atoms = self.keep.coupling.values.get(value)
        if dims is None or not atoms or len(atoms) != len(dims):
            return dims
        return tuple(self._left(size, each) for size, each in zip(dims, atoms, strict=True))

    def _left(self, size: Size, atoms: np.ndarray | None) -> Size:
        count = self.keep.count(atoms)
        if count is None or atoms is None:
            return size
        if isinstance(size, Dim):
            scaled = divide(multiply(size, count), len(atoms))
            return count if scaled is None else scaled
        return count

    def is_cut(self, value: ir.Value, axis: int) -> bool:
        """Tell whether an axis of a node output loses indices."""
        atoms = self.keep.coupling.values.get(value)
        return bool(atoms) and self.keep.axis(atoms[axis]) is not None  # type: ignore[index]

    def update(self, edit: Edit, rules: Mapping[str, Rule]) -> None:
        """Write operands anew where they no longer fit; call it after the constants were cut.

        Args:
            edit: Of the model.
            rules: How operands are rewritten, by operator: ``passes.coupling.operands.RULES``.
        """
        for node, before in list(self._inputs.items()):
            now = tuple(self.new.of(value) for value in node.inputs)
            if not self._cuts(node) and all(map(_same, before, now)):
                for output in node.outputs:
                    self.new.assume(output, self.old.of(output))
                continue
            self._patch(edit, node, rules)
            for output in node.outputs:
                content = self.new.of(output).content
                fact = self.old.of(output)
                self.new.assume(output, Fact(fact.dtype, self.required(output), content))

    def _cuts(self, node: ir.Node) -> bool:
        for output in node.outputs:
            for atoms in self.keep.coupling.values.get(output) or ():
                if self.keep.axis(atoms) is not None:
                    return True
        return False

    def _patch(self, edit: Edit, node: ir.Node, rules: Mapping[str, Rule]) -> None:
        rule = rules.get(node.op_type) if g.is_op(node, node.op_type) else None
        if rule is not None:
            rule(self, edit, node)
        follows = rule is not None or self._followed(node)
        for position, value in enumerate(node.inputs):
            if value is None or (follows and not self._pinned(node, position)):
                continue
            self._pin(edit, node, position, value)

    def _followed(self, node: ir.Node) -> bool:
        """Tell whether the outputs of a node are sizes, too, or are read as shapes alone."""
        return g.is_op(node, "Shape", "Size") or any(
            self.new.of(output).content is not None for output in node.outputs
        )

    def _pinned(self, node: ir.Node, position: int) -> bool:
        return is_operand(node, position) and node.op_type not in _REWRITTEN

    def _pin(self, edit: Edit, node: ir.Node, position: int, value: ir.Value) -> None:
        """Let a node that computes with sizes read the numbers of before."""
        before, now = self.old.of(value), self.new.of(value)
        if before.content is None or before.content == now.content or before.dtype is None:
            return
        if g.constant(value) is not None:  # a bias of integers, say: it was cut
            return
        numbers = [size for size in before.content if isinstance(size, int)]
        if len(numbers) < len(before.content):
            return
        array = np.array(numbers, before.dtype.numpy())
        rank = len(before.dims or ())
        edit.connect(
            node,
            position,
            edit.constant(f"{value.name}_before", array if rank else array.reshape(())),
        )


def _facts(model: ir.Model) -> Facts:
    opsets = {model.graph: g.opset(model)}
    return Facts(set(model.graph.inputs), opsets, answer)


def _same(before: Fact, now: Fact) -> bool:
    return before.dims == now.dims and before.content == now.content


def _completed(
    value: ir.Value, dims: Dims | None, coupling: Coupling, free: set[Size]
) -> Dims | None:
    """Fill in sizes that the facts do not know: those of axes with atoms were observed.

    Args:
        value: A node output.
        dims: What the facts say.
        coupling: Knows atoms and observed sizes.
        free: Sizes of the model's inputs.
    """
    seen = coupling.shapes.get(value.name or "")
    if seen is None or (dims is not None and len(dims) != len(seen)):
        return dims
    atoms = coupling.values.get(value) or (None,) * len(seen)
    declared: tuple[object, ...] = tuple(value.shape) if value.shape is not None else ()
    if len(declared) != len(seen):
        declared = (None,) * len(seen)
    known = dims or tuple(Dim() for _ in seen)
    return tuple(
        seen[axis]
        if isinstance(size, Dim)
        and size.terms is None
        and size not in free
        and (atoms[axis] is not None or (dims is None and isinstance(declared[axis], int)))
        else size
        for axis, size in enumerate(known)
    )


def fitted(wanted: Dims, given: Dims | None, cut: Callable[[int], bool]) -> list[Entry] | None:
    """Return the entries of a vector that must hold ``wanted``; None: it holds them already.

    Args:
        wanted: Sizes that the entries must have.
        given: Sizes that the vector has now; None: not known.
        cut: Tells whether an entry belongs to an axis that lost indices.
    """
    if given is not None and given == wanted:
        return None
    entries: list[Entry] = []
    for index, size in enumerate(wanted):
        now = None if given is None or index >= len(given) else given[index]
        if isinstance(size, int) and (now is not None or cut(index)):
            entries.append(size)
        else:
            entries.append(scaled(index, size, now))
    same = all(isinstance(e, Old) and e == Old(i) for i, e in enumerate(entries))
    return None if same else entries


def scaled(index: int, wanted: Size, now: Size | None) -> Old:
    """Return an element as a multiple of what it is now; the element itself if there is none."""
    if now is None or now in (wanted, 0):
        return Old(index)
    for over in range(1, 65):
        times = divide(multiply(wanted, over), now)
        if isinstance(times, int):
            return Old(index, times, over)
    return Old(index)
