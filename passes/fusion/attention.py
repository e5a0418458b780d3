"""Scaled dot-product attention that exporters write as products and a softmax.

Latency with onnxruntime 1.31 on a CPU, one thread, 12 heads of 64 elements, 16 to 128 tokens: 0.95
to 1.0 of what it is written out in float32; 1.1 in double, which is left alone. Half precision is,
too: written out, onnxruntime keeps the scores in float32, while its Attention rounds them to half
precision, where they may overflow and a mask of -65504 hides what it is added to.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from converter.core.graph import constant, is_op
from passes.rewriting.facts import Dims
from passes.rewriting.question import broadcast
from passes.rewriting.substitute import Found, New, Substitution, UnfitError

ROUNDING = "float rounding of the scaled products: relative 1e-5 for float32"
_SINGLE = frozenset({ir.DataType.FLOAT})
_LOWEST = float(np.finfo(np.float32).min)
EXTRA = ("attentions_fused",)
_MAY_BE_EMPTY = (
    "a dynamic size may be 0 in a run, which onnxruntime's Attention refuses; "
    "fuse:extra=attentions_fused does it nevertheless"
)
_SWAPPED = (0, 1, 3, 2)
_FROM_TOKENS = (0, 2, 3, 1)
_HEADS_FIRST = (0, 2, 1, 3)
_QUERY = "Mul(q, A) | q"
_KEY = "Mul((turn := Transpose(k)), B) | (turn := Transpose(Mul(k, B) | k))"
_SCORES = f"(scores := MatMul({_QUERY}, {_KEY}))"
_SCALED = f"Mul({_SCORES}, C) | Div({_SCORES}, D) | {_SCORES}"


def _scale(found: Found) -> float:
    """Return what the products are multiplied by."""
    scale = 1.0
    for name in ("A", "B", "C", "D"):
        if name not in found:
            continue
        factor = found.number(name)
        if factor is None or found.array(name).ndim > 4:
            raise UnfitError("its scale is not one number")
        scale *= 1.0 / factor if name == "D" and factor else factor
    if not (scale > 0 and math.isfinite(scale)):
        raise UnfitError("its scale is not a positive number")
    return scale


def _same(*sizes: Any) -> bool:
    return all(size == sizes[0] for size in sizes)


def _key(found: Found) -> tuple[ir.Value | New, tuple[Any, ...]]:
    """Return the keys by head, token and element, and their dimensions."""
    perm, dims = found.attribute("turn", "perm"), found.dims("k")
    if dims is None or len(dims) != 4:
        raise UnfitError("the rank of its keys is not known to be 4")
    if tuple(perm or ()) == _SWAPPED:
        return found["k"], dims
    if tuple(perm or ()) != _FROM_TOKENS:
        raise UnfitError("its keys are not turned for a product with the queries")
    turned = New("Transpose", (found["k"],), {"perm": [0, 2, 1, 3]})
    return turned, (dims[0], dims[2], dims[1], dims[3])


def _attention(found: Found) -> New:
    if found.attribute("softmax", "axis") not in (-1, 3):
        raise UnfitError("its softmax is not over the last axis")
    scale = _scale(found)
    key, k = _key(found)
    q, v = found.dims("q"), found.dims("v")
    if q is None or v is None or len(q) != 4 or len(v) != 4:
        raise UnfitError("the ranks of queries and values are not known to be 4")
    if not (_same(q[0], k[0], v[0]) and _same(q[1], k[1], v[1]) and _same(k[2], v[2])):
        raise UnfitError("batch, heads and tokens are not known to be the same for all inputs")
    sizes = (*q, *k, *v)
    if found.work.extra.isdisjoint(EXTRA) and not all(isinstance(n, int) and n for n in sizes):
        raise UnfitError(_MAY_BE_EMPTY)
    inputs: list[ir.Value | New] = [found["q"], key, found["v"]]
    if "m" in found:
        inputs.append(_mask(found, (q[0], q[1], q[2], k[2])))
    return New("Attention", tuple(inputs), {"scale": scale})


def _mask(found: Found, scores: tuple[Any, ...]) -> ir.Value:
    """Return the mask that is added; onnxruntime wants it as long and as wide as the products."""
    dims = found.dims("m")
    if dims is None or not 2 <= len(dims) <= 4:
        raise UnfitError("the rank of its mask is not known")
    if dims[-2:] != scores[2:] or broadcast(scores, dims) != scores:
        raise UnfitError("its mask is not known to have one number per query and key")
    if not _lets_through(found["m"]):
        raise UnfitError("its mask may hide all keys from a query, where Attention gives zeros")
    return found["m"]


def _lets_through(mask: ir.Value) -> bool:
    """Tell whether each query certainly sees a key: a number above the lowest one.

    Attention gives zeros for the others. A softmax gives equal shares, or none where it is -inf.
    """
    if constant(mask) is not None:
        return _above(mask, whole_rows=False)
    choice = mask.producer()
    if choice is None or not is_op(choice, "Where"):
        return False
    return all(_above(value, whole_rows=True) for value in choice.inputs[1:])


def _above(value: ir.Value | None, *, whole_rows: bool) -> bool:
    """Tell whether each row of a constant has such a number, or has nothing else."""
    tensor = constant(value)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size == 0:
        return False
    seen = tensor.numpy() > _LOWEST
    return bool(seen.all() if whole_rows else seen.any(axis=-1).all())


ATTENTION = Substitution(
    name="attentions_fused",
    makes="Attention",
    patterns=(f"MatMul((softmax := Softmax(Add({_SCALED}, m) | {_SCALED})), v)",),
    rewrite=_attention,
    since=23,
    tolerance=ROUNDING,
    dtypes=_SINGLE,
)


# Heads: queries, keys and values with all heads in one axis


def _joined(found: Found, view: str, turn: str, source: str) -> tuple[ir.Value, int]:
    """Return a value with all heads in its last axis, before it is split, and how many they are."""
    dims = found.work.facts.of(found.node(view).outputs[0]).dims
    before = found.dims(source)
    if dims is None or before is None or (len(before), len(dims)) != (3, 4):
        raise UnfitError("the shapes of its heads are not known")
    if tuple(found.attribute(turn, "perm") or ()) != _HEADS_FIRST:
        raise UnfitError("its heads are not split from the last axis")
    heads, width, whole = dims[2], dims[3], before[2]
    if not (isinstance(heads, int) and isinstance(width, int) and heads * width == whole):
        raise UnfitError("the sizes of its heads are not known")
    if dims[:2] != before[:2]:
        raise UnfitError("batch and tokens are not known to keep their axes")
    return found[source], heads


def _width_together(found: Found) -> tuple[Any, ...]:
    """Return the dimensions of the result with all heads in its last axis."""
    dims = _merged(found.work.facts.of(found.node("back").outputs[0]).dims)
    if tuple(found.attribute("back", "perm") or ()) != _HEADS_FIRST or dims is None:
        raise UnfitError("its result is not put together from its heads")
    return dims


def _merged(dims: Dims | None) -> tuple[Any, ...] | None:
    """Return four dimensions with the last two, which have to be numbers, as one."""
    if dims is None or len(dims) != 4:
        return None
    heads, width = dims[2:]
    together = heads * width if isinstance(heads, int) and isinstance(width, int) else None
    return None if together is None else (*dims[:2], together)


def _join(found: Found) -> New:
    attention = found.node("attention")
    if any(value is not None for value in attention.inputs[4:]):
        raise UnfitError("it has keys and values of the past")
    query, heads = _joined(found, "view0", "turn0", "q")
    key, few = _joined(found, "view1", "turn1", "k")
    value, same = _joined(found, "view2", "turn2", "v")
    width = _width_together(found)
    dims = found.work.facts.of(found.root.outputs[0]).dims
    if few != same or dims != width:
        raise UnfitError("its result is not put together from its heads")
    kept = {name: a.value for name, a in attention.attributes.items()}
    counts = {"q_num_heads": heads, "kv_num_heads": few}
    return New("Attention", (query, key, value, *attention.inputs[3:]), {**kept, **counts})


_SPLIT = "(turn{0} := Transpose((view{0} := Reshape({1}, _))))"
_HEADS = ", ".join(_SPLIT.format(index, name) for index, name in enumerate("qkv"))
HEADS = Substitution(  # 0.6 to 0.9; 1.5 in float16
    name="heads_joined",
    makes="Attention",
    patterns=(f"Reshape((back := Transpose((attention := Attention({_HEADS}, ...)))), _)",),
    rewrite=_join,
    since=23,
    tolerance=ROUNDING,
    dtypes=_SINGLE,
)
RULES = (ATTENTION.rule(), HEADS.rule())
