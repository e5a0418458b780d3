"""Dimension names that exporters write as arithmetic of other names: ``past + 1``, ``2*batch``."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

_LONGEST = 200
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def evaluate(text: str, sizes: Mapping[str, int]) -> int | None:
    """Return the size that a dimension name stands for, or None.

    A name is looked up first; otherwise it may be a sum, difference, product or floor division of
    names and numbers, all of them known.
    """
    if text in sizes:
        return sizes[text]
    if len(text) > _LONGEST:
        return None
    try:
        size = _value(ast.parse(text.strip(), mode="eval").body, sizes)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError):
        return None
    return size if size > 0 else None


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.Name) and node.id in sizes:
        return sizes[node.id]
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, sizes), _value(node.right, sizes))
    raise ValueError
