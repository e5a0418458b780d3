"""Constants of consecutive additions and multiplications merged into one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.core.graph import constant
from passes.rewriting.substitute import Found, New, Substitution

Array = np.ndarray[Any, Any]
TOLERANCE = "one more or less rounding step: relative 1e-6 for float32; integers are equal"
_BROADCASTS = 7
_MOST_ELEMENTS = 1 << 20  # what is computed here is held in memory
_MOST_CANCELLED = 4.0
_EXPONENTS = {2: 10, 4: 64, 8: 512}  # by bytes: beyond 2 to these powers values may get lost


_Form = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class _Merge:
    """Two operators with constants ``A`` (inner) and ``B`` (outer) as one.

    Attributes:
        pattern: What is replaced.
        op_type: The operator that remains; a constant stands before ``x`` where ``first``.
        constant: The constant that remains; None: ``A``.
        products: The constants are factors, not terms.
        first: The constant is the first operand.
        integers: It holds for integers, which wrap around.
    """

    pattern: str
    op_type: str
    constant: _Form | None
    products: bool = False
    first: bool = False
    integers: bool = True


def _negative(a: Array, _: Array) -> Array:
    return -a


_SUMS = (
    _Merge("Add(Add(x, A), B)", "Add", lambda a, b: a + b),
    _Merge("Add(Sub(x, A), B)", "Add", lambda a, b: b - a),
    _Merge("Sub(Add(x, A), B)", "Add", lambda a, b: a - b),
    _Merge("Sub(Sub(x, A), B)", "Sub", lambda a, b: a + b),
    _Merge("Add(Sub(A, x), B)", "Sub", lambda a, b: a + b, first=True),
    _Merge("Sub(Sub(A, x), B)", "Sub", lambda a, b: a - b, first=True),
    _Merge("Sub(B, Add(x, A))", "Sub", lambda a, b: b - a, first=True),
    _Merge("Sub(B, Sub(x, A))", "Sub", lambda a, b: b + a, first=True),
    _Merge("Sub(B, Sub(A, x))", "Add", lambda a, b: b - a),
)
_PRODUCTS = (
    _Merge("Mul(Mul(x, A), B)", "Mul", lambda a, b: a * b, products=True),
    _Merge("Div(Mul(x, A), B)", "Mul", lambda a, b: a / b, products=True, integers=False),
    _Merge("Mul(Div(x, A), B)", "Mul", lambda a, b: b / a, products=True, integers=False),
    _Merge("Div(Div(x, A), B)", "Div", lambda a, b: a * b, products=True, integers=False),
    _Merge(
        "Mul(Div(A, x), B)", "Div", lambda a, b: a * b, products=True, first=True, integers=False
    ),
    _Merge(
        "Div(Div(A, x), B)", "Div", lambda a, b: a / b, products=True, first=True, integers=False
    ),
)
_SIGNS = (
    _Merge("Neg(Mul(x, A))", "Mul", _negative),
    _Merge("Neg(Div(x, A))", "Div", _negative, integers=False),
    _Merge("Neg(Div(A, x))", "Div", _negative, first=True, integers=False),
    _Merge("Neg(Add(x, A))", "Sub", _negative, first=True),
    _Merge("Neg(Sub(A, x))", "Add", _negative),
    _Merge("Mul(Neg(x), A)", "Mul", _negative),
    _Merge("Div(Neg(x), A)", "Div", _negative, integers=False),
    _Merge("Div(A, Neg(x))", "Div", _negative, first=True, integers=False),
    _Merge("Add(Neg(x), A)", "Sub", None, first=True),
    _Merge("Sub(A, Neg(x))", "Add", None),
)


def _rewrite(merge: _Merge) -> Callable[[Found], New | str]:
    def rewrite(found: Found) -> New | str:
        merged = found["A"] if merge.constant is None else _merged(found, merge)
        if isinstance(merged, str):
            return merged
        pair = (merged, found["x"]) if merge.first else (found["x"], merged)
        return New(merge.op_type, pair)

    return rewrite


def _merged(found: Found, merge: _Merge) -> Array | str:
    """Return the one constant, or why there has to be more than one."""
    reason = _obstacle(found, integers=merge.integers)
    if reason or merge.constant is None:
        return reason
    a = found.array("A")
    b = found.array("B") if "B" in found else None
    if a.dtype.kind in "iu":
        with np.errstate(over="ignore"):
            return np.asarray(merge.constant(a, a if b is None else b)).astype(a.dtype)
    return _rounded(merge, merge.constant, a, b)


def _obstacle(found: Found, *, integers: bool) -> str:
    tensors = [constant(found[name]) for name in "ABC" if name in found]
    kinds = {tensor.dtype.numpy() for tensor in tensors if tensor is not None}
    if len(kinds) != 1 or not all(k.kind in "iuf" and k.isbuiltin for k in kinds):
        return "the constants have types that are not computed with here"
    if not integers and any(kind.kind in "iu" for kind in kinds):
        return "division of integers does not merge"
    if any(tensor is not None and tensor.size > _MOST_ELEMENTS for tensor in tensors):
        return "the constants are large"
    return ""


def _rounded(merge: _Merge, form: _Form, a: Array, b: Array | None) -> Array | str:
    wide_a = a.astype(np.float64)
    wide_b = wide_a if b is None else b.astype(np.float64)
    with np.errstate(all="ignore"):
        exact = np.asarray(form(wide_a, wide_b))
        rounded = exact.astype(a.dtype)
    if not (np.isfinite(rounded).all() and np.isfinite(wide_a).all() and np.isfinite(wide_b).all()):
        return "the constants do not fit one"
    if (
        b is not None
        and merge.products
        and not all(tame(c, a.dtype) for c in (wide_a, wide_b, exact))
    ):
        return "a product in between may overflow or vanish, which one factor would hide"
    if b is not None and not merge.products and cancels(wide_a, wide_b, exact):
        return "the constants cancel each other, which rounds what they are added to"
    return rounded


def tame(factors: Array, dtype: np.dtype[Any]) -> bool:
    """Tell whether factors are far enough from the bounds of their type not to lose values."""
    bound = 2.0 ** _EXPONENTS[dtype.itemsize]
    size = np.abs(factors)
    return bool(((size <= bound) & (size >= 1 / bound)).all())


def cancels(a: Array, b: Array, total: Array) -> bool:
    """Tell whether terms are much larger than their sum: adding one after the other rounds."""
    return bool((np.maximum(np.abs(a), np.abs(b)) > _MOST_CANCELLED * np.abs(total)).any())


def _rule(name: str, merge: _Merge) -> Substitution:
    return Substitution(
        name, (merge.pattern,), _rewrite(merge), since=_BROADCASTS, tolerance=TOLERANCE
    )


MERGES = (
    *(_rule("arithmetic_merged", merge) for merge in (*_SUMS, *_PRODUCTS)),
    *(_rule("signs_merged", merge) for merge in _SIGNS),
)


def _factor(found: Found, node: str, name: str) -> Array:
    """Return a constant that multiplies or divides, as a factor in float64."""
    array = found.array(name).astype(np.float64)
    return array if found.node(node).op_type == "Mul" else 1 / array


def _term(found: Found, node: str, name: str) -> Array:
    """Return a constant that is added or subtracted, as a term in float64."""
    array = found.array(name).astype(np.float64)
    return array if found.node(node).op_type == "Add" else -array


def _scale_of_sum(found: Found) -> New | str:
    """``(x * a + b) * c`` is ``x * (a * c) + b * c``."""
    reason = _obstacle(found, integers=False)
    if reason:
        return reason
    with np.errstate(all="ignore"):
        a, c = _factor(found, "inner", "A"), _factor(found, "outer", "C")
        return _two(found, (a, c), a * c, _term(found, "middle", "B") * c)


def _sum_of_scale(found: Found) -> New | str:
    """``(x + a) * b + c`` is ``x * b + (a * b + c)``.

    Near ``x = -a`` the first sum is exact and the new ones are not, so ``a * b`` must be small
    beside ``c``.
    """
    reason = _obstacle(found, integers=False)
    if reason:
        return reason
    with np.errstate(all="ignore"):
        b = _factor(found, "middle", "B")
        product, c = _term(found, "inner", "A") * b, _term(found, "outer", "C")
        if not (np.abs(product) <= _MOST_CANCELLED * np.abs(c)).all():
            return "the first sum may cancel what it adds to, which the merged one would not"
        return _two(found, (b,), b, product + c)


def _two(found: Found, factors: tuple[Array, ...], factor: Array, term: Array) -> New | str:
    kind = found.array("A").dtype
    rounded = np.asarray(factor).astype(kind), np.asarray(term).astype(kind)
    if not all(np.isfinite(array).all() for array in (*factors, *rounded)):
        return "the constants do not fit one"
    if not all(tame(np.asarray(array), kind) for array in (*factors, factor)):
        return "a product in between may overflow or vanish, which one factor would hide"
    return New("Add", (New("Mul", (found["x"], rounded[0])), rounded[1]))


def _chain(first: tuple[str, str], second: tuple[str, str], third: tuple[str, str]) -> Any:
    return tuple(
        f"(outer := {o}((middle := {m}((inner := {i}(x, A)), B)), C))"
        for i in first
        for m in second
        for o in third
    )


_SCALING, _ADDING = ("Mul", "Div"), ("Add", "Sub")
CHAINS = tuple(
    Substitution("arithmetic_merged", patterns, form, since=_BROADCASTS, tolerance=TOLERANCE)
    for patterns, form in (
        (_chain(_SCALING, _ADDING, _SCALING), _scale_of_sum),
        (_chain(_ADDING, _SCALING, _ADDING), _sum_of_scale),
    )
)

RULES = tuple(merge.rule() for merge in (*MERGES, *CHAINS))
