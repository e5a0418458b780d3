"""Transposes: without effect, two in a row, and around elementwise operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converter.core.graph import is_op
from passes.elimination.look import bypass, integers, is_plain, is_sole, made_by, skip_over
from passes.rewriting.facts import Dims
from passes.rewriting.rule import Applied, Result, Rule
from passes.rewriting.work import Work

if TYPE_CHECKING:
    import onnx_ir as ir


def permutation(node: ir.Node, work: Work) -> tuple[int, ...] | None:
    """Return the permutation of a Transpose; the default reverses the axes."""
    attribute = node.attributes.get("perm")
    if attribute is not None:
        return None if attribute.is_ref() else tuple(attribute.as_ints())
    dims = work.facts.of(node.inputs[0]).dims
    return None if dims is None else tuple(range(len(dims)))[::-1]


def keeps_order(perm: tuple[int, ...], dims: Dims | None) -> bool:
    """Tell whether the axes that may be longer than 1 keep their order."""
    if perm == tuple(range(len(perm))):
        return True
    if dims is None or len(dims) != len(perm):
        return False
    long = [p for p in perm if dims[p] != 1]
    return long == sorted(long)


def _moves_nothing(perm: tuple[int, ...], dims: Dims | None) -> bool:
    """Tell whether elements keep their order and all sizes their place."""
    if perm == tuple(range(len(perm))):
        return True
    if dims is None or not keeps_order(perm, dims):
        return False
    return all(dims[p] == dims[i] for i, p in enumerate(perm))


def _transpose(node: ir.Node, work: Work) -> Result:
    perm = permutation(node, work)
    source = node.inputs[0]
    if perm is None or source is None:
        return None
    if _moves_nothing(perm, work.facts.of(source).dims):
        return bypass(node, work, source)
    return _merge(node, work, source, perm)


def _merge(node: ir.Node, work: Work, source: ir.Value, perm: tuple[int, ...]) -> Result:
    before = made_by(source, node, work, "Transpose")
    if before is None or before.inputs[0] is None:
        return None
    first = permutation(before, work)
    if first is None or len(first) != len(perm):
        return None
    merged = tuple(first[p] for p in perm)
    origin = before.inputs[0]
    if _moves_nothing(merged, work.facts.of(origin).dims):
        return bypass(node, work, origin)
    if not is_sole(source):
        return None
    integers(node, "perm", merged)
    return skip_over(node, work)


_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Elu Erf Exp "
    "Floor Gelu HardSigmoid HardSwish IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round "
    "Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
_BINARY = (
    "Add And BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max "
    "Mean Min Mod Mul Or Pow Sub Sum Where Xor"
)
ELEMENTWISE = (*_UNARY.split(), *_BINARY.split())
_FARTHEST = 8  # operators looked through for a Transpose behind


def _sink(node: ir.Node, work: Work) -> Result:
    """Transpose after an operator of transposed values instead of before: one instead of several.

    With another Transpose some operators behind, the two will meet and merge; so that counts, too.
    """
    if work.opset(node) < 7 or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return None
    moved = [i for i, v in enumerate(node.inputs) if made_by(v, node, work, "Transpose")]
    if not moved:
        return None
    perm = _common_permutation(node, work, moved)
    if perm is None:
        return None
    gone = len({id(node.inputs[index]) for index in moved})
    if gone < 2 and not _meets_another(node.outputs[0], work, perm):
        return None
    inputs = _permuted_inputs(node, work, moved, perm)
    return None if inputs is None else _swap(node, work, inputs, perm)


def _common_permutation(node: ir.Node, work: Work, moved: list[int]) -> tuple[int, ...] | None:
    """Return the permutation that all transposed operands share, if nobody else needs them."""
    found: set[tuple[int, ...]] = set()
    for index in moved:
        value = node.inputs[index]
        before = value.producer() if value is not None else None
        perm = permutation(before, work) if before is not None else None
        if before is None or perm is None or before.inputs[0] is None:
            return None
        if not _only_reader(value, node):
            return None
        found.add(perm)
    return found.pop() if len(found) == 1 else None


def _only_reader(value: ir.Value | None, node: ir.Node) -> bool:
    if value is None or value.is_graph_output():
        return False
    return all(use.node is node for use in value.uses())


def _meets_another(value: ir.Value, work: Work, perm: tuple[int, ...]) -> bool:
    """Tell whether a Transpose behind, or another operand with the same one, comes within reach."""
    for _ in range(_FARTHEST):
        user = _next(value, work)
        if user is None or is_op(user, "Transpose"):
            return user is not None
        others = [v for v in user.inputs if v is not value]
        same = [v for v in others if _is_transposed(v, user, work, perm)]
        if not all(v in same or _fits(v, work) for v in others):
            return False
        if same:
            return True
        value = user.outputs[0]
    return False


def _next(value: ir.Value, work: Work) -> ir.Node | None:
    """Return the only user of a value if it is a Transpose or looks at each element alone."""
    maker = value.producer()
    if maker is None or not is_sole(value):
        return None
    (user,) = value.consumers()
    if user.graph is not maker.graph or not is_plain(user, work) or len(user.outputs) != 1:
        return None
    return user if is_op(user, "Transpose", *ELEMENTWISE) else None


def _is_transposed(
    value: ir.Value | None, user: ir.Node, work: Work, perm: tuple[int, ...]
) -> bool:
    before = made_by(value, user, work, "Transpose")
    return before is not None and permutation(before, work) == perm and _only_reader(value, user)


def _fits(value: ir.Value | None, work: Work) -> bool:
    """Tell whether an operand fits any permutation: none at all, or a single number."""
    return value is None or work.facts.of(value).dims == ()


def _permuted_inputs(
    node: ir.Node, work: Work, moved: list[int], perm: tuple[int, ...]
) -> list[ir.Value | None] | None:
    """Return the operands without their Transpose; constants are turned the other way."""
    inputs: list[ir.Value | None] = []
    for index, value in enumerate(node.inputs):
        if index in moved:
            before = value.producer() if value is not None else None
            assert before is not None
            inputs.append(before.inputs[0])
        elif _fits(value, work):
            inputs.append(value)
        else:
            return None
    return inputs


def _swap(
    node: ir.Node, work: Work, inputs: list[ir.Value | None], perm: tuple[int, ...]
) -> Result:
    inner = work.new_node(node, node.op_type, inputs, node.attributes, name=node.name)
    inner.type = node.outputs[0].type
    outer = work.new_node(node, "Transpose", [inner], {"perm": list(perm)})
    if work.replace(node, outer) is None:
        for value in (outer, inner):
            maker = value.producer()
            assert maker is not None
            work.discard(maker)
        return None
    maker = outer.producer()
    assert maker is not None
    return Applied((maker, *outer.consumers()))


RULES = (
    Rule("transposes_removed", ("Transpose",), _transpose),
    Rule("transposes_sunk", ELEMENTWISE, _sink),
)
"""Transposes without effect, merged, and moved behind elementwise operators."""
