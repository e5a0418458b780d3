"""Scopes of a model: which names a graph defines, who makes them, and in what order.

A scope is the main graph, a sub-graph or the body of a model function. Sub-graphs see the names of
the scopes around them, function bodies see only their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from converter.errors import InvalidModelError
from converter.io.limits import quoted
from converter.ops.node_facts import NOTHING, Known

if TYPE_CHECKING:
    import onnx

INPUT = -1
"""Position of a name that no node makes: an input or an initializer."""


@dataclass
class Scope:
    """One scope.

    Attributes:
        where: For messages.
        nodes: Its nodes.
        parent: The scope around it, or None.
        owner: Position of the node in the parent that the scope belongs to.
        depth: Number of scopes around it.
        function: It is the body of a model function.
        positions: Name -> position of the node that makes it, or :data:`INPUT`.
        known: What is known of some of the names.
        captures: (position of a node, name of this scope used in a sub-graph of it).
        in_order: No use of a name was seen before the node that makes it.
    """

    where: str
    nodes: Sequence[onnx.NodeProto]
    parent: Scope | None = None
    owner: int = 0
    depth: int = 0
    function: bool = False
    positions: dict[str, int] = field(default_factory=dict)
    known: dict[str, Known] = field(default_factory=dict)
    captures: list[tuple[int, str]] = field(default_factory=list)
    in_order: bool = True

    def define_inputs(self, names: Iterable[str]) -> None:
        """Enter the inputs.

        Raises:
            InvalidModelError: A name is empty or there twice.
        """
        for name in names:
            if not name:
                raise InvalidModelError("an input has no name", where=self.where)
            if name in self.positions:
                raise InvalidModelError(
                    f"the input {quoted(name)} is there twice", where=self.where
                )
            self.positions[name] = INPUT

    def define_initializers(self, names: Iterable[str]) -> None:
        """Enter the initializers; one may have the name of an input, which it is the default of.

        Raises:
            InvalidModelError: A name is empty or there twice.
        """
        seen: set[str] = set()
        for name in names:
            if not name:
                raise InvalidModelError("an initializer has no name", where=self.where)
            if name in seen:
                raise InvalidModelError(
                    f"the initializer {quoted(name)} is there twice", where=self.where
                )
            seen.add(name)
            self.positions[name] = INPUT

    def define_outputs(self) -> None:
        """Enter what the nodes make.

        Raises:
            InvalidModelError: Two nodes make one name, or a node one that is not free here.
        """
        for position, node in enumerate(self.nodes):
            for name in node.output:
                if not name:
                    continue
                if name in self.positions or self._shadows(name):
                    raise InvalidModelError(
                        f"the value {quoted(name)} is defined twice", where=self.where
                    )
                self.positions[name] = position

    def _shadows(self, name: str) -> bool:
        """Tell whether the name means something else where this scope begins."""
        scope: Scope | None = self
        while scope is not None and scope.parent is not None:
            position = scope.parent.positions.get(name)
            if position is not None and position < scope.owner:
                return True
            scope = scope.parent
        return False

    def use(self, name: str, position: int) -> Known:
        """Resolve a name used by the node at ``position`` and return what is known of it.

        Raises:
            InvalidModelError: Neither this scope nor one around it defines the name.
        """
        scope: Scope | None = self
        while scope is not None:
            made = scope.positions.get(name)
            if made is not None:
                if scope is not self:
                    scope.captures.append((position, name))
                if made >= position:
                    scope.in_order = False
                return scope.known.get(name, NOTHING)
            position, scope = scope.owner, scope.parent
        raise InvalidModelError(
            f"the value {quoted(name)} is used but nothing defines it", where=self.where
        )

    def check_order(self) -> None:
        """Check that the nodes can be put in an order; call it when all scopes inside are done.

        Raises:
            InvalidModelError: There is a cycle; or a sub-graph or function is not in order, which
                onnxruntime refuses, too.
        """
        if self.in_order:
            return
        waiting, users = self._dependencies()
        ready = [index for index, count in enumerate(waiting) if not count]
        done = 0
        while ready:
            done += 1
            for user in users[ready.pop()]:
                waiting[user] -= 1
                if not waiting[user]:
                    ready.append(user)
        if done < len(self.nodes):
            stuck = next(index for index, count in enumerate(waiting) if count)
            raise InvalidModelError(
                "the nodes form a cycle", where=f"{self.where}, node {stuck} is part of it"
            )
        if self.parent is not None or self.function:
            raise InvalidModelError(
                "a value is used before the node that makes it",
                where=self.where,
            )

    def _dependencies(self) -> tuple[list[int], list[list[int]]]:
        """Return how many values each node waits for, and which nodes wait for each node."""
        waiting = [0] * len(self.nodes)
        users: list[list[int]] = [[] for _ in self.nodes]
        uses = [(i, name) for i, node in enumerate(self.nodes) for name in node.input if name]
        for position, name in (*uses, *self.captures):
            made = self.positions.get(name, INPUT)
            if made != INPUT:
                waiting[position] += 1
                users[made].append(position)
        return waiting, users
