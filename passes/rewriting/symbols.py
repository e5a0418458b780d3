"""Sizes that only a run knows: sums and products of unknown sizes, compared by what they stand for.

A :class:`Dim` is either an unknown of its own or a polynomial of such unknowns with integer
coefficients. Equal expressions are one object, so sizes are compared by identity. What is no
polynomial (the size after a convolution with a stride, say) is an unknown of its own, again one
object per expression.
"""

from __future__ import annotations

from itertools import count
from weakref import WeakValueDictionary

_MOST_TERMS = 8
_HIGHEST_DEGREE = 6
_LARGEST = 1 << 62
_serials = count()


class Dim:
    """A size or another integer that is not known; equal ones are one object.

    Attributes:
        natural: It is certainly not negative.
        serial: Tells unknowns apart for good.
        terms: Coefficients by products of unknowns; None for an unknown of its own.
    """

    __slots__ = ("__weakref__", "natural", "serial", "terms")

    def __init__(self, *, natural: bool = True, terms: Terms | None = None) -> None:
        self.natural = natural
        self.serial = next(_serials)
        self.terms = terms


Size = int | Dim
Monomial = tuple[Dim, ...]
Terms = dict[Monomial, int]
_known: WeakValueDictionary[tuple[object, ...], Dim] = WeakValueDictionary()


def unknown(kind: str, *parts: Size | float | str, natural: bool = True) -> Dim:
    """Return the unknown that stands for an expression, always the same one."""
    key = (kind, *(("dim", p.serial) if isinstance(p, Dim) else p for p in parts))
    found = _known.get(key)
    if found is None:
        found = _known[key] = Dim(natural=natural)
    return found


def is_natural(size: Size) -> bool:
    """Tell whether a number is certainly not negative."""
    return size.natural if isinstance(size, Dim) else size >= 0


def add(a: Size, b: Size) -> Size:
    """Return the sum."""
    if isinstance(a, int) and isinstance(b, int):
        return _bounded(a + b)
    return _combine(a, b, 1)


def subtract(a: Size, b: Size) -> Size:
    """Return the difference."""
    if isinstance(a, int) and isinstance(b, int):
        return _bounded(a - b)
    return _combine(a, b, -1)


def multiply(a: Size, b: Size) -> Size:
    """Return the product."""
    if isinstance(a, int) and isinstance(b, int):
        return _bounded(a * b)
    if a in (0, 1):
        return b if a == 1 else 0
    if b in (0, 1):
        return a if b == 1 else 0
    result: Terms = {}
    for left, x in _terms(a).items():
        for right, y in _terms(b).items():
            key = tuple(sorted((*left, *right), key=_serial))
            result[key] = result.get(key, 0) + x * y
    return _make(result)


def product(sizes: tuple[Size, ...] | list[Size]) -> Size:
    """Return the product of sizes."""
    result: Size = 1
    for size in sizes:
        result = multiply(result, size)
    return result


def divide(a: Size, b: Size) -> Size | None:
    """Return ``a / b`` if that is certainly whole whenever ``b`` is not 0, else None."""
    if b == 0 or a is b:
        return None if b == 0 else 1
    if isinstance(a, int) and isinstance(b, int):
        return a // b if a % b == 0 else None
    divisor = _terms(b)
    if len(divisor) != 1:
        return None
    ((factors, number),) = divisor.items()
    result: Terms = {}
    for monomial, coefficient in _terms(a).items():
        left = list(monomial)
        for factor in factors:
            if factor not in left:
                return None
            left.remove(factor)
        if coefficient % number:
            return None
        result[tuple(left)] = coefficient // number
    return _make(result)


def floor_divide(a: Size, b: Size) -> Size:
    """Return the quotient of natural numbers, rounded down."""
    if isinstance(a, int) and isinstance(b, int) and b:
        return a // b
    exact = divide(a, b)
    if exact is not None:
        return exact
    if isinstance(b, int) and b > 0 and isinstance(a, Dim):
        terms = dict(_terms(a))
        rest = terms.pop((), 0)
        if all(coefficient % b == 0 for coefficient in terms.values()):
            return add(_make({m: c // b for m, c in terms.items()}), rest // b)
    return unknown("/", a, b, natural=is_natural(a) and is_natural(b))


def vanishes_with(a: Size, b: Size) -> bool:
    """Tell whether ``b`` is 0 whenever ``a`` is."""
    if isinstance(a, int) or b == 0:
        return a != 0 or b == 0
    monomials = list(_terms(a))
    if len(monomials) != 1:
        return a is b
    return all(set(monomials[0]) <= set(monomial) for monomial in _terms(b))


def _combine(a: Size, b: Size, sign: int) -> Size:
    result = dict(_terms(a))
    for monomial, coefficient in _terms(b).items():
        result[monomial] = result.get(monomial, 0) + sign * coefficient
    return _make(result)


def _serial(dim: Dim) -> int:
    return dim.serial


def _terms(size: Size) -> Terms:
    if isinstance(size, int):
        return {(): size}
    return {(size,): 1} if size.terms is None else size.terms


def _bounded(number: int) -> Size:
    """Return a number unless it is near the limits of 64 bits."""
    return number if abs(number) < _LARGEST else Dim(natural=False)


def _make(terms: Terms) -> Size:
    """Return the number or the one object that stands for a polynomial."""
    terms = {monomial: c for monomial, c in terms.items() if c}
    if not terms:
        return 0
    if len(terms) == 1:
        ((monomial, coefficient),) = terms.items()
        if not monomial:
            return _bounded(coefficient)
        if len(monomial) == 1 and coefficient == 1:
            return monomial[0]
    key = tuple(sorted((tuple(dim.serial for dim in m), c) for m, c in terms.items()))
    found = _known.get(key)
    if found is None:
        natural = all(c > 0 and all(d.natural for d in m) for m, c in terms.items())
        large = len(terms) > _MOST_TERMS or any(len(m) > _HIGHEST_DEGREE for m in terms)
        found = _known[key] = Dim(natural=natural, terms=None if large else terms)
    return found
