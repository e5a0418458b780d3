"""What operators do to the elements of shape vectors: integers, sizes, and flags of comparisons."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from passes.rewriting.facts import Dims, Fact, Size, static
from passes.rewriting.question import Question
from passes.rewriting.symbols import (
    Dim,
    add,
    floor_divide,
    is_natural,
    multiply,
    product,
    subtract,
    unknown,
)

_LONGEST = 64
_INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32})
_FOLLOWED = _INTEGERS | {ir.DataType.BOOL}


def elementwise(q: Question) -> Dims | None:
    """Return the elements of a result that is computed element by element."""
    function = _FUNCTIONS.get(q.node.op_type)
    if function is None or not q.inputs or q.version < 7:
        return None
    rows = [_row(fact) for fact in q.inputs]
    given = [row for row in rows if row is not None]
    if len(given) != len(rows):
        return None
    length = max(len(row) for row in given)
    if any(len(row) not in (1, length) for row in given) or length > _LONGEST or not length:
        return () if all(len(row) <= 1 for row in given) and not all(given) else None
    wide = [row * length if len(row) == 1 else row for row in given]
    content = tuple(function(*column) for column in zip(*wide, strict=True))
    narrow = any(fact.dtype == ir.DataType.INT32 for fact in q.inputs)
    if narrow and any(not isinstance(s, int) or abs(s) >= 1 << 31 for s in content):
        return None  # it may have wrapped around
    return content


def _row(fact: Fact) -> Dims | None:
    return fact.content if fact.dtype in _FOLLOWED else None


def _divide(a: Size, b: Size) -> Size:
    """Divide integers; the quotient is cut towards 0, which is down for natural numbers."""
    if is_natural(a) and is_natural(b) and b != 0:
        return floor_divide(a, b)
    if isinstance(a, int) and isinstance(b, int) and b not in (0, -1):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return Dim(natural=False)


def _modulo(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int) and a >= 0 and b > 0:
        return a % b
    if isinstance(b, int) and b > 0 and is_natural(a):
        return unknown("%", a, b)
    return Dim(natural=False)


def _equal(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return int(a == b)
    if a is b:
        return 1
    if (isinstance(a, int) and a < 0 and is_natural(b)) or (
        isinstance(b, int) and b < 0 and is_natural(a)
    ):
        return 0
    return Dim()


def _less(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return int(a < b)
    if a is b:
        return 0
    if isinstance(a, int) and a < 0 and is_natural(b):
        return 1
    return 0 if isinstance(b, int) and b <= 0 and is_natural(a) else Dim()


def _not(a: Size) -> Size:
    return 1 - a if isinstance(a, int) else Dim()


def _and(a: Size, b: Size) -> Size:
    if 0 in (a, b):
        return 0
    return _only(a, b)


def _or(a: Size, b: Size) -> Size:
    if 1 in (a, b):
        return 1
    return _only(a, b)


def _only(a: Size, b: Size) -> Size:
    return a if isinstance(a, int) and isinstance(b, int) else Dim()


def _choose(flag: Size, yes: Size, no: Size) -> Size:
    if isinstance(flag, int):
        return yes if flag else no
    return yes if yes == no else Dim(natural=is_natural(yes) and is_natural(no))


def _extreme(pick: Callable[[int, int], int], *sizes: Size) -> Size:
    known = static(sizes)
    if known is not None:
        result = known[0]
        for number in known[1:]:
            result = pick(result, number)
        return result
    if all(size is sizes[0] for size in sizes):
        return sizes[0]
    # A size is at least 0: the larger of it and of something below is the size itself.
    dims = [s for s in sizes if isinstance(s, Dim)]
    below = all(s <= 0 for s in sizes if isinstance(s, int))
    if pick is max and below and len(dims) == 1 and is_natural(dims[0]):
        return dims[0]
    natural = all(is_natural(s) for s in sizes) or (pick is max and any(map(is_natural, sizes)))
    return Dim(natural=natural)


_FUNCTIONS: dict[str, Callable[..., Size]] = {
    "Abs": lambda a: abs(a) if isinstance(a, int) else a if a.natural else Dim(),
    "Add": add,
    "And": _and,
    "Div": _divide,
    "Equal": _equal,
    "Greater": lambda a, b: _less(b, a),
    "GreaterOrEqual": lambda a, b: _not(_less(a, b)),
    "Less": _less,
    "LessOrEqual": lambda a, b: _not(_less(b, a)),
    "Max": lambda *sizes: _extreme(max, *sizes),
    "Min": lambda *sizes: _extreme(min, *sizes),
    "Mod": _modulo,
    "Mul": multiply,
    "Neg": lambda a: subtract(0, a),
    "Not": _not,
    "Or": _or,
    "Sub": subtract,
    "Where": _choose,
}


def cast(content: Dims | None, before: ir.DataType | None, after: ir.DataType) -> Dims | None:
    """Return the elements after Cast between types that are followed."""
    if content is None or before not in _FOLLOWED or after not in _FOLLOWED or before == after:
        return content if before == after and before in _FOLLOWED else None
    if after == ir.DataType.INT64:
        return content
    if after == ir.DataType.BOOL:
        return tuple(int(s != 0) if isinstance(s, int) else Dim() for s in content)
    # A size may exceed 32 bits.
    fits = all(isinstance(s, int) and abs(s) < 1 << 31 for s in content)
    return content if fits or before == ir.DataType.BOOL else None


def reduce(q: Question, content: Dims) -> Dims | None:
    """Return the sum, product or extreme of all elements of a vector."""
    name = q.node.op_type
    if name == "ReduceProd":
        return (product(content),)
    if name == "ReduceSum":
        total: Size = 0
        for size in content:
            total = add(total, size)
        return (total,)
    if name in {"ReduceMax", "ReduceMin"} and content:
        return (_extreme(max if name == "ReduceMax" else min, *content),)
    return None


def numbers(q: Question) -> Dims | None:
    """Return the elements of a Range with a known, short extent."""
    known = [static(q.input(index).content) for index in range(3)]
    if q.input(0).dtype not in _INTEGERS or any(n is None or len(n) != 1 for n in known):
        return None
    start, limit, step = (n[0] for n in known if n is not None)
    if not step or len(range(start, limit, step)) > _LONGEST:
        return None
    return tuple(range(start, limit, step))


FOLLOWED = frozenset({*_FUNCTIONS, "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Range"})
"""Operators whose elements are followed here."""
