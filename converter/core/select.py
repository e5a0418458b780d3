"""Choosing nodes by name, glob or operator type: ``include=`` and ``exclude=`` of passes."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Selection:
    """Which nodes a pass may touch.

    A pattern is ``op:TYPE`` (operator type, glob allowed) or a node name (glob allowed, case
    sensitive). A literal name matches first, so names that contain ``[`` can be given as they are.
    The name of a node's first output also matches, because many exporters leave nodes unnamed.

    Attributes:
        include: Patterns of nodes to take; empty means all nodes.
        exclude: Patterns of nodes to leave; wins over ``include``.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __contains__(self, node: ir.Node) -> bool:
        if not self.exclude and not self.include:
            return True
        if any(_matches(pattern, node) for pattern in self.exclude):
            return False
        return not self.include or any(_matches(pattern, node) for pattern in self.include)

    def unmatched(self, nodes: list[ir.Node]) -> tuple[str, ...]:
        """Patterns that match no node at all: most often a typing error, so passes report them."""
        patterns = (*self.include, *self.exclude)
        return tuple(p for p in patterns if not any(_matches(p, node) for node in nodes))


def _matches(pattern: str, node: ir.Node) -> bool:
    if pattern.startswith("op:"):
        return fnmatch.fnmatchcase(node.op_type, pattern[3:])
    names = [node.name or ""]
    if node.outputs:
        names.append(node.outputs[0].name or "")
    return any(pattern == name or fnmatch.fnmatchcase(name, pattern) for name in names if name)
