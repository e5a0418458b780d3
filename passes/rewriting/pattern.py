"""Graph patterns as text, and where they match.

A pattern is written the way the computation would be written in Python, and read with Python's own
parser::

    Mul(Mul(x, Add(Erf(Div(x, 1.4142135623730951)), 1.0)), 0.5)

========================  ======================================================================
``x``                     any value; the same name again means the same value
``_``                     anything, also an input that is left out
``W``                     any constant (a name without lower-case letters)
``0.5``                   a constant with one element of this value, rounded to its type
``None``                  an optional input that is left out
``Relu(x)``               the first output of that operator of the default domain
``Split(x)[1]``           another of its outputs
``Conv(x, W, ...)``       more inputs may follow
``Softmax(x, axis=-1)``   an attribute has this value, given or by default
``(n := Relu(x))``        the node is kept under a name
``+Shape(x)``             the node may have users outside the pattern, and stays
``Relu(x) | Clip(x)``     one or the other
========================  ======================================================================

Operands of commutative operators match in either order. Nodes below the root take part only if
nothing else uses what they compute: the rewrite removes them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core.graph import DEFAULT_DOMAINS, constant, label

COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum"})
"""Operators whose two operands may be swapped without changing a bit of the result."""
_MOST_STEPS = 2000  # commutative operands and alternatives make a search; this bounds it


class PatternError(ValueError):
    """A text that is no pattern: a mistake in a rule, never in a model."""


@dataclass(frozen=True)
class Anything:
    """Matches whatever is there."""


@dataclass(frozen=True)
class Missing:
    """An optional input that is not given."""


@dataclass(frozen=True)
class Variable:
    """A value; one name stands for one value. ``fixed``: it has to be a constant."""

    name: str
    fixed: bool


@dataclass(frozen=True)
class Number:
    """A constant of one element."""

    value: float


@dataclass(frozen=True)
class Either:
    """One of several patterns."""

    options: tuple[Operand, ...]


@dataclass(frozen=True)
class Call:
    """An operator.

    Attributes:
        op_type: Of the default domain.
        inputs: One pattern per input.
        attributes: Values that attributes must have.
        more: Further inputs may follow.
        name: What the node is kept as, or "".
        output: Index of the output that is meant.
        stays: It may have users outside the pattern.
    """

    op_type: str
    inputs: tuple[Operand, ...]
    attributes: tuple[tuple[str, Any], ...] = ()
    more: bool = False
    name: str = ""
    output: int = 0
    stays: bool = False


Operand = Anything | Missing | Variable | Number | Either | Call


def first_operators(pattern: Call) -> frozenset[str]:
    """Return operators of which at least one is directly below the root of every match."""
    for operand in pattern.inputs:
        options = operand.options if isinstance(operand, Either) else (operand,)
        if all(isinstance(option, Call) for option in options):
            return frozenset(option.op_type for option in options if isinstance(option, Call))
    return frozenset()


def plausible(pattern: Call, node: ir.Node) -> bool:
    """Tell quickly whether the operators below a node can be those of a pattern.

    Names, numbers and attributes are left to :class:`Matcher`; most nodes fail here already.
    """
    values = node.inputs
    swaps = pattern.op_type in COMMUTATIVE
    for index, operand in enumerate(pattern.inputs):
        if type(operand) in _LOOSE:
            continue
        for value in values if swaps else values[index : index + 1]:
            if _may_be(operand, value):
                break
        else:
            return False
    return True


_LOOSE = frozenset({Anything, Missing})


def _may_be(operand: Operand, value: ir.Value | None) -> bool:
    if isinstance(operand, Variable):
        return value is not None and (not operand.fixed or constant(value) is not None)
    if isinstance(operand, Number):
        return constant(value) is not None
    if isinstance(operand, Either):
        return any(_may_be(option, value) for option in operand.options)
    if not isinstance(operand, Call):
        return True
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != operand.op_type:
        return False
    return plausible(operand, producer)


@cache
def parse(text: str) -> Call:
    """Read one pattern.

    Raises:
        PatternError: It is no pattern; the message says what is wrong and where.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise PatternError(f"{error.msg} in the pattern {text!r}") from error
    pattern = _operand(tree)
    if not isinstance(pattern, Call):
        raise PatternError(f"a pattern starts with an operator, not {text!r}")
    return pattern


def _operand(tree: ast.expr) -> Operand:
    reader = _READERS.get(type(tree))
    if reader is None:
        raise PatternError(f"{ast.unparse(tree)!r} has no meaning in a pattern")
    try:
        return reader(tree)
    except PatternError:
        raise
    except (TypeError, ValueError) as error:
        raise PatternError(f"{ast.unparse(tree)!r} has no meaning in a pattern") from error


def _name(tree: ast.Name) -> Operand:
    return Anything() if tree.id == "_" else Variable(tree.id, fixed=tree.id == tree.id.upper())


def _literal(tree: ast.Constant) -> Operand:
    return Missing() if tree.value is None else Number(float(ast.literal_eval(tree)))


def _call(tree: ast.Call) -> Call:
    if not isinstance(tree.func, ast.Name):
        raise PatternError(f"{ast.unparse(tree.func)!r} is no operator")
    more = bool(tree.args) and _is_ellipsis(tree.args[-1])
    inputs = tuple(_operand(argument) for argument in (tree.args[:-1] if more else tree.args))
    if any(keyword.arg is None for keyword in tree.keywords):
        raise PatternError(f"{ast.unparse(tree)!r} names no attribute")
    attributes = tuple((str(k.arg), ast.literal_eval(k.value)) for k in tree.keywords)
    return Call(tree.func.id, inputs, attributes, more)


def _is_ellipsis(tree: ast.expr) -> bool:
    return isinstance(tree, ast.Constant) and tree.value is ...


def _changed(tree: ast.expr, **fields: Any) -> Call:
    inner = _operand(tree)
    if not isinstance(inner, Call):
        raise PatternError(f"{ast.unparse(tree)!r} is no operator")
    return Call(**{**inner.__dict__, **fields})


def _sign(tree: ast.UnaryOp) -> Operand:
    if isinstance(tree.op, ast.UAdd):
        return _changed(tree.operand, stays=True)
    return Number(float(ast.literal_eval(tree)))


def _either(tree: ast.BinOp) -> Either:
    if not isinstance(tree.op, ast.BitOr):
        raise PatternError(f"alternatives are written with |, not as in {ast.unparse(tree)!r}")
    left, right = _operand(tree.left), _operand(tree.right)
    first = left.options if isinstance(left, Either) else (left,)
    return Either((*first, right))


_READERS: dict[type[ast.expr], Callable[[Any], Operand]] = {
    ast.Name: _name,
    ast.Constant: _literal,
    ast.Call: _call,
    ast.UnaryOp: _sign,
    ast.BinOp: _either,
    ast.NamedExpr: lambda tree: _changed(tree.value, name=tree.target.id),
    ast.Subscript: lambda tree: _changed(tree.value, output=ast.literal_eval(tree.slice)),
}


@dataclass
class Match:
    """Where a pattern was found.

    Attributes:
        root: The node that the pattern starts with.
        values: Values by the names of the pattern; one that an optional branch has is missing here.
        nodes: Nodes by the names of the pattern.
        inner: Nodes below the root that the rewrite removes.
    """

    root: ir.Node
    values: dict[str, ir.Value] = field(default_factory=dict)
    nodes: dict[str, ir.Node] = field(default_factory=dict)
    inner: tuple[ir.Node, ...] = ()

    def __getitem__(self, name: str) -> ir.Value:
        return self.values[name]

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """Return a constant of the pattern; the array must not be written to."""
        tensor = constant(self.values[name])
        assert tensor is not None
        return np.asarray(tensor.numpy())

    def number(self, name: str) -> float | None:
        """Return a constant with one element, or None when it has another number of them."""
        array = self.array(name)
        return float(array.reshape(-1)[0]) if array.size == 1 else None


@dataclass(frozen=True)
class _State:
    values: Mapping[str, ir.Value]
    nodes: Mapping[str, ir.Node]
    taken: tuple[ir.Node, ...]
    stays: frozenset[ir.Node]


_Goals = tuple[tuple[Operand, ir.Value | None], ...]


class Matcher:
    """Searches for one pattern.

    Args:
        pattern: The pattern.
        version: Default operator set in force where it is searched.

    Attributes:
        farthest: How many nodes the best attempt that failed had matched, and why it failed.
    """

    def __init__(self, pattern: Call, version: int) -> None:
        self.pattern = pattern
        self.version = version
        self.farthest = (0, "")
        self._steps = 0

    def match(self, root: ir.Node) -> Match | None:
        """Return where the pattern matches with ``root`` as its first operator."""
        self.farthest, self._steps = (0, ""), 0
        state = _State({}, {}, (), frozenset())
        for goals, first in self._enter(self.pattern, root, state):
            found = self._solve(goals, first)
            if found is not None:
                # A pattern may name the same node twice: merging equal ones is another pass.
                below = dict.fromkeys(n for n in found.taken if n is not root)
                inner = tuple(n for n in below if n not in found.stays)
                return Match(root, dict(found.values), dict(found.nodes), inner)
        return None

    def _solve(self, goals: _Goals, state: _State) -> _State | None:
        if not goals:
            return state
        self._steps += 1
        if self._steps > _MOST_STEPS:
            return None
        (pattern, value), rest = goals[0], goals[1:]
        for more, new in self._meet(pattern, value, state):
            found = self._solve((*more, *rest), new)
            if found is not None:
                return found
        return None

    def _meet(
        self, pattern: Operand, value: ir.Value | None, state: _State
    ) -> Iterator[tuple[_Goals, _State]]:
        """Yield what remains to be met for every way in which the value fits the pattern."""
        if isinstance(pattern, Either):
            for option in pattern.options:
                yield from self._meet(option, value, state)
        elif isinstance(pattern, Call):
            producer = value.producer() if value is not None else None
            if value is None or producer is None or value.index() != pattern.output:
                self._note(state, f"no {pattern.op_type} where one is needed")
            else:
                yield from self._enter(pattern, producer, state)
        else:
            new = self._leaf(pattern, value, state)
            if new is not None:
                yield (), new

    def _leaf(self, pattern: Operand, value: ir.Value | None, state: _State) -> _State | None:
        """Return the state after a pattern without inputs, or None when it does not fit."""
        if isinstance(pattern, Variable):
            return None if value is None else self._bind(pattern, value, state)
        if isinstance(pattern, Number):
            fits = value is not None and _is_number(value, pattern.value)
            if not fits:
                self._note(state, f"no constant {pattern.value:g} where one is needed")
        else:
            fits = isinstance(pattern, Anything) or value is None
        return state if fits else None

    def _bind(self, pattern: Variable, value: ir.Value, state: _State) -> _State | None:
        known = state.values.get(pattern.name)
        if known is not None:
            return state if known is value else None
        if pattern.fixed and constant(value) is None:
            self._note(state, f"{value.name} is no constant")
            return None
        values = {**state.values, pattern.name: value}
        return _State(values, state.nodes, state.taken, state.stays)

    def _enter(
        self, pattern: Call, node: ir.Node, state: _State
    ) -> Iterator[tuple[_Goals, _State]]:
        reason = _obstacle(pattern, node, self.version)
        if reason:
            self._note(state, reason)
            return
        nodes = {**state.nodes, pattern.name: node} if pattern.name else state.nodes
        stays = state.stays | {node} if pattern.stays else state.stays
        new = _State(state.values, nodes, (*state.taken, node), stays)
        given = [*node.inputs, *[None] * (len(pattern.inputs) - len(node.inputs))]
        yield tuple(zip(pattern.inputs, given, strict=False)), new
        if pattern.op_type in COMMUTATIVE and len(pattern.inputs) == len(given) == 2:
            yield tuple(zip(pattern.inputs, given[::-1], strict=True)), new

    def _note(self, state: _State, reason: str) -> None:
        """Keep why the attempt that got farthest failed."""
        if len(state.taken) > self.farthest[0]:
            where = label(state.taken[-1])
            self.farthest = (len(state.taken), f"{reason} before {where}")


def _obstacle(pattern: Call, node: ir.Node, version: int) -> str:
    """Say why the node is not the operator that is meant, inputs left aside."""
    if node.op_type != pattern.op_type or node.domain not in DEFAULT_DOMAINS or node.overload:
        return f"{label(node)} instead of {pattern.op_type}"
    extra = () if pattern.more else node.inputs[len(pattern.inputs) :]
    if any(value is not None for value in extra):
        return f"{label(node)} has more inputs"
    for name, wanted in pattern.attributes:
        if not _same_attribute(attribute_value(node, name, version), wanted):
            return f"{name} of {label(node)} is not {wanted}"
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return f"{label(node)} depends on an attribute of the function's call"
    return ""


def attribute_value(node: ir.Node, name: str, version: int) -> Any:
    """Return an attribute's value, by default the one of the specification; None without one."""
    attribute = node.attributes.get(name)
    if attribute is None:
        return _default(node.op_type, name, version)
    if attribute.is_ref():
        return None
    return attribute.as_string() if attribute.type == ir.AttributeType.STRING else attribute.value


@lru_cache(maxsize=1024)
def _default(op_type: str, name: str, version: int) -> Any:
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, version or onnx.defs.onnx_opset_version(), "")
    except onnx.defs.SchemaError:
        return None
    attribute = schema.attributes.get(name)
    if attribute is None or not attribute.default_value.type:
        return None
    value = onnx.helper.get_attribute_value(attribute.default_value)
    return value.decode() if isinstance(value, bytes) else value


def _same_attribute(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list | tuple):
        return isinstance(value, list | tuple) and list(value) == list(wanted)
    if isinstance(wanted, float):
        return isinstance(value, int | float) and abs(value - wanted) <= 1e-6 * abs(wanted)
    return bool(value == wanted)


def _is_number(value: ir.Value, wanted: float) -> bool:
    tensor = constant(value)
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return False
    return is_close(float(np.asarray(tensor.numpy()).reshape(-1)[0]), wanted, tensor.dtype)


_STEP = {
    ir.DataType.DOUBLE: 2.0**-23,  # exporters write float32 constants into double models
    ir.DataType.FLOAT: 2.0**-23,
    ir.DataType.FLOAT16: 2.0**-10,
    ir.DataType.BFLOAT16: 2.0**-7,
}


def is_close(found: float, wanted: float, dtype: ir.DataType | None) -> bool:
    """Tell whether two numbers are equal up to two rounding steps of the element type."""
    step = _STEP.get(dtype, 0.0) if dtype is not None else 0.0
    return abs(found - wanted) <= 2 * step * abs(wanted)
