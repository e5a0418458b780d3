"""Cast and CastLike to the same type, Cast after a Cast that loses nothing, CastLike as a Cast."""

from __future__ import annotations

import onnx_ir as ir

from passes.elimination.look import bypass, is_sole, made_by, skip_over
from passes.rewriting.rule import Result, Rule
from passes.rewriting.substitute import Found, New, Substitution
from passes.rewriting.work import Work

_T = ir.DataType

_WIDER = {
    _T.UINT8: "INT16 UINT16 INT32 UINT32 INT64 UINT64 FLOAT16 BFLOAT16 FLOAT DOUBLE",
    _T.INT8: "INT16 INT32 INT64 FLOAT16 BFLOAT16 FLOAT DOUBLE",
    _T.UINT16: "INT32 UINT32 INT64 UINT64 FLOAT DOUBLE",
    _T.INT16: "INT32 INT64 FLOAT DOUBLE",
    _T.UINT32: "INT64 UINT64 DOUBLE",
    _T.INT32: "INT64 DOUBLE",
    _T.BOOL: "UINT8 INT8 UINT16 INT16 UINT32 INT32 UINT64 INT64 FLOAT16 BFLOAT16 FLOAT DOUBLE",
    _T.FLOAT16: "FLOAT DOUBLE",
    _T.BFLOAT16: "FLOAT DOUBLE",
    _T.FLOAT: "DOUBLE",
}
_LOSSLESS = {
    one: frozenset(getattr(_T, name) for name in names.split()) for one, names in _WIDER.items()
}
"""Types that hold every value of a type."""

_FLOATS = frozenset({_T.FLOAT16, _T.BFLOAT16, _T.FLOAT, _T.DOUBLE})


def _to(node: ir.Node) -> ir.DataType | None:
    to = node.attributes.get("to")
    if to is None or to.is_ref() or to.type != ir.AttributeType.INT:
        return None
    return ir.DataType(to.as_int())


def _cast(node: ir.Node, work: Work) -> Result:
    after, source = _to(node), node.inputs[0]
    if after is None:
        return None
    if work.facts.of(source).dtype == after:
        return bypass(node, work, source)
    first = made_by(source, node, work, "Cast")
    return None if first is None else _after_another(node, first, after, work)


def _after_another(node: ir.Node, first: ir.Node, after: ir.DataType, work: Work) -> Result:
    between, origin = _to(first), work.facts.of(first.inputs[0]).dtype
    if origin is None or between is None or first.inputs[0] is None:
        return None
    if between not in _LOSSLESS.get(origin, ()):
        return "the Cast before it may lose digits" if origin == after else None
    if after == origin:
        return bypass(node, work, first.inputs[0])
    if not _same_without(origin, between, after):
        return None
    names = [value.name or "" for value in (first.inputs[0], first.outputs[0])]
    if not is_sole(node.inputs[0]) and len(names[0]) > len(names[1]):
        return None  # nothing goes, and the file would grow by a longer name
    return skip_over(node, work)


def _same_without(origin: ir.DataType, between: ir.DataType, after: ir.DataType) -> bool:
    """Tell whether a step over a wider type changes nothing, numbers out of range included."""
    if after in _FLOATS or after in _LOSSLESS.get(origin, ()) or after == _T.BOOL:
        return True
    # Integers out of range wrap around; floats out of range turn into anything.
    return between.is_integer() and after.is_integer() and after.bitwidth >= 8


def _cast_like(node: ir.Node, work: Work) -> Result:
    source, like = (work.facts.of(value).dtype for value in node.inputs)
    if source is None or source != like:
        return None
    return bypass(node, work, node.inputs[0])


def _typed(found: Found) -> New | None:
    """Name the type, so that the value whose type it is is not needed any more."""
    like = found.dtype("like")
    if like is None or any(a.is_ref() for a in found.root.attributes.values()):
        return None
    kept = {name: a.value for name, a in found.root.attributes.items()}
    return New("Cast", (found["x"],), {"to": int(like), **kept})


TYPED = Substitution(name="casts_typed", patterns=("CastLike(x, like)",), rewrite=_typed, since=15)
RULES = (
    Rule("casts_removed", ("Cast",), _cast),
    Rule("casts_removed", ("CastLike",), _cast_like),
    TYPED.rule(),
)
"""Casts without effect, and those whose type can be named."""
