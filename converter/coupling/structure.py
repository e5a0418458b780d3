"""The result of coupling: atoms, the components they form, and what is frozen and why.

An atom is a set of indices of axes, all over the model, that can only be removed together. Atoms
that occur at the same places (the channels of one stream, say) form a component: they cost the
same, and how many of them go is one decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.ops.axes.site import SinkKind

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
Atoms = Array | None
"""Atom of every index of one axis: int64 (size,), -1 for an index that stays; None: all stay."""
Use = tuple["ir.Node", int]
"""An input of a node. Constants have atoms by use: what is small is shared only by chance."""


@dataclass(frozen=True, eq=False)
class Sink:
    """A place where atoms are summed up: what is removed must be zero here, and nowhere else.

    Attributes:
        node: Reads the value.
        position: Of the input.
        axis: Of that input.
        kind: How it is summed.
        weight: Position of the constant that is summed with it, or None.
        weight_axis: The axis of that constant which goes with it.
    """

    node: ir.Node
    position: int
    axis: int
    kind: SinkKind
    weight: int | None = None
    weight_axis: int | None = None


@dataclass(frozen=True, eq=False)
class Component:
    """Atoms that occur at the same places.

    Attributes:
        index: Its number, in the order of the graph.
        name: Name of the first node that makes it, for people.
        unit: "channel", "head" or "hidden".
        atoms: int64 (atoms,), ascending: in the order of the first axis that holds them.
        blocks: int64 (atoms,): equal numbers must be left in every block; None: no such rule.
        producers: Constants whose axes make the atoms: (node, position, axis).
        sinks: Where they are summed up.
        macs: Multiply-accumulates that go with one atom while all others are there.
        parameters: Weights that go with one atom while all others are there.
    """

    index: int
    name: str
    unit: str
    atoms: Array
    blocks: Array | None
    producers: tuple[tuple[ir.Node, int, int], ...]
    sinks: tuple[Sink, ...]
    macs: int
    parameters: int


@dataclass(frozen=True)
class Freeze:
    """Labels that cannot be removed.

    Attributes:
        subject: Name of the node that makes them.
        size: How many.
        reason: Why, as a short phrase.
    """

    subject: str
    size: int
    reason: str


@dataclass(frozen=True, eq=False)
class Work:
    """Multiply-accumulates of one node: a factor times the sizes of axes."""

    node: ir.Node
    factor: int
    axes: tuple[Array, ...]

    def count(self, alive: Array) -> int:
        """Return the multiply-accumulates with these atoms left: bool (atoms + 1,), last True."""
        total = self.factor
        for axis in self.axes:
            total *= int(np.count_nonzero(alive[axis]))
        return total


@dataclass(eq=False)
class Coupling:
    """All atoms of a model. Valid for this very model object until it is edited.

    The numbering is deterministic: a clone of the model with the same shapes has the same atoms.

    Attributes:
        size: Number of atoms.
        components: In the order of the graph.
        frozen: What cannot be removed, merged by subject and reason.
        shapes: Observed sizes by value name.
        values: Atoms of the axes of every node output of the main graph.
        uses: Atoms of the axes of every input of every node, constants included.
        work: Multiply-accumulates of every node that has any.
        constants: Atoms of the axes of every constant that holds weights.
        numbers: Computed vectors of integers that are certain, such as paddings, by value.
        reasons: By output of a node: axis, number of indices that stay, and why.
    """

    size: int
    components: tuple[Component, ...]
    frozen: tuple[Freeze, ...]
    shapes: Mapping[str, tuple[int, ...]]
    values: Mapping[ir.Value, tuple[Atoms, ...]]
    uses: Mapping[Use, tuple[Atoms, ...]]
    work: tuple[Work, ...] = ()
    constants: tuple[tuple[Array, ...], ...] = field(default=(), repr=False)
    numbers: Mapping[ir.Value, Array] = field(default_factory=dict, repr=False)
    reasons: Mapping[ir.Value, tuple[tuple[int, int, str], ...]] = field(
        default_factory=dict, repr=False
    )

    def all_alive(self) -> Array:
        """Return bool (atoms,), all True."""
        return np.ones(self.size, bool)

    def macs(self, alive: Array | None = None) -> int:
        """Return multiply-accumulates of Conv, Gemm, MatMul (and recurrent layers) that are left.

        Args:
            alive: bool (atoms,); None: all.
        """
        extended = self._extended(alive)
        return sum(work.count(extended) for work in self.work)

    def parameters(self, alive: Array | None = None) -> int:
        """Return elements of constants that are left, each constant counted once."""
        extended = self._extended(alive)
        total = 0
        for axes in self.constants:
            count = 1
            for axis in axes:
                count *= int(np.count_nonzero(extended[axis]))
            total += count
        return total

    def _extended(self, alive: Array | None) -> Array:
        """Append the entry that index -1 reads."""
        given = self.all_alive() if alive is None else alive
        return np.append(given, True)
