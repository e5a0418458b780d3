"""Choosing nodes by name, operator type or size: ``include=`` and ``exclude=`` of passes."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from converter.core.contract import Skip
from converter.errors import ParameterError

if TYPE_CHECKING:
    import onnx_ir as ir

_Test = Callable[["ir.Node"], bool]
_SIZE = re.compile(r"size(<=|>=|<|>)(\d+)")
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "<": lambda size, bound: size < bound,
    "<=": lambda size, bound: size <= bound,
    ">": lambda size, bound: size > bound,
    ">=": lambda size, bound: size >= bound,
}


@dataclass(frozen=True)
class Selection:
    """Which nodes a pass may touch.

    A pattern is one of

    - a node name (glob allowed, case sensitive). A literal name matches first, so names that
      contain ``[`` can be given as they are. The name of a node's first output also matches,
      because many exporters leave nodes unnamed;
    - ``op:TYPE``, an operator type (glob allowed);
    - ``re:PATTERN``, a regular expression that a name matches as a whole;
    - ``size<N`` (or ``<=``, ``>``, ``>=``): nodes whose largest constant has so many elements;
      nodes without a constant never match.

    Attributes:
        include: Patterns of nodes to take; empty means all nodes.
        exclude: Patterns of nodes to leave; wins over ``include``.

    Raises:
        ParameterError: A regular expression is not valid.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in (*self.include, *self.exclude):
            _test(pattern)

    def __contains__(self, node: ir.Node) -> bool:
        if not self.exclude and not self.include:
            return True
        if any(_test(pattern)(node) for pattern in self.exclude):
            return False
        return not self.include or any(_test(pattern)(node) for pattern in self.include)

    def unmatched(self, nodes: list[ir.Node]) -> tuple[str, ...]:
        """Patterns that match no node at all: most often a typing error, so passes report them."""
        patterns = (*self.include, *self.exclude)
        return tuple(p for p in patterns if not any(_test(p)(node) for node in nodes))

    def misses(self, nodes: Iterable[ir.Node]) -> list[Skip]:
        """Return :meth:`unmatched` as a pass reports it."""
        return [Skip(pattern, "matches no node") for pattern in self.unmatched(list(nodes))]


@lru_cache(maxsize=1024)
def _test(pattern: str) -> _Test:
    """Return what a pattern asks of a node."""
    if pattern.startswith("op:"):
        return lambda node: fnmatch.fnmatchcase(node.op_type, pattern[3:])
    if pattern.startswith("re:"):
        try:
            wanted = re.compile(pattern[3:])
        except re.error as error:
            raise ParameterError(
                f"{pattern[3:]!r} is not a regular expression: {error}",
                where=pattern,
                hint="write re:PATTERN with a Python regular expression, or a glob without re:",
            ) from error
        return lambda node: any(wanted.fullmatch(name) for name in _names(node))
    sized = _SIZE.fullmatch(pattern)
    if sized:
        compare, bound = _COMPARE[sized[1]], int(sized[2])
        return lambda node: (size := _largest(node)) > 0 and compare(size, bound)
    return lambda node: any(
        pattern == name or fnmatch.fnmatchcase(name, pattern) for name in _names(node)
    )


def _names(node: ir.Node) -> list[str]:
    names = [node.name or "", *([node.outputs[0].name or ""] if node.outputs else [])]
    return [name for name in names if name]


def _largest(node: ir.Node) -> int:
    """Return the number of elements of the node's largest constant; 0 when it has none."""
    from converter.core.graph import constant

    tensors = [constant(value) for value in node.inputs]
    return max((int(tensor.size) for tensor in tensors if tensor is not None), default=0)
