"""Sizes after sliding windows: convolutions, pooling and their transposes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from passes.rewriting.facts import Dim, Dims, Fact, Size, static
from passes.rewriting.question import Question, Rule
from passes.rewriting.symbols import add, multiply, unknown


@dataclass(frozen=True, slots=True)
class _Window:
    """How a window moves along one axis."""

    reach: int
    stride: int
    before: int
    after: int


def _windows(q: Question, kernel: tuple[int, ...]) -> list[_Window] | None:
    """Return one window per spatial axis."""
    count = len(kernel)
    pads = q.integers("pads") or (0,) * (2 * count)
    strides = q.integers("strides") or (1,) * count
    dilations = q.integers("dilations") or (1,) * count
    if len(pads) != 2 * count or len(strides) != count or len(dilations) != count:
        return None
    if _auto_pad(q) == "VALID":
        pads = (0,) * (2 * count)
    if min(strides, default=1) < 1:
        return None
    return [
        _Window(dilations[i] * (kernel[i] - 1) + 1, strides[i], pads[i], pads[i + count])
        for i in range(count)
    ]


def _auto_pad(q: Question) -> str:
    attribute = q.node.attributes.get("auto_pad")
    return "NOTSET" if attribute is None else attribute.as_string() or "NOTSET"


def _slid(size: Size, window: _Window, *, ceil: bool) -> Size:
    """Return the number of places of a window."""
    extra = window.before + window.after - window.reach
    if isinstance(size, int):
        room = size + extra
        places = -(-room // window.stride) if ceil else room // window.stride
        if ceil and places * window.stride >= size + window.before:
            places -= 1  # the last window would start in the padding
        return places + 1
    if window.stride == 1 and extra + 1 >= 0:
        return add(size, extra + 1)
    return unknown("window", size, extra, window.before if ceil else "floor", window.stride)


def _same(size: Size, stride: int) -> Size:
    """Return the size with automatic padding: only the stride matters."""
    if isinstance(size, int):
        return -(-size // stride)
    return size if stride == 1 else unknown("same", size, stride)


def _spatial(q: Question, sizes: Dims, kernel: tuple[int, ...] | None) -> Dims:
    windows = _windows(q, kernel) if kernel is not None and len(kernel) == len(sizes) else None
    if windows is None:
        return tuple(Dim() for _ in sizes)
    ceil = bool(q.integer("ceil_mode", 0))
    pairs = zip(sizes, windows, strict=True)
    if _auto_pad(q).startswith("SAME"):
        return tuple(_same(size, window.stride) for size, window in pairs)
    return tuple(_slid(size, window, ceil=ceil) for size, window in pairs)


def _conv(q: Question) -> tuple[Fact, ...]:
    x, w = q.input(0).dims, q.input(1).dims
    dtype = ir.DataType.INT32 if q.node.op_type == "ConvInteger" else q.input(0).dtype
    if x is None or w is None or len(x) != len(w) or len(x) < 3:
        return (Fact(dtype),)
    kernel = static(w[2:])
    return (Fact(dtype, (x[0], w[0], *_spatial(q, x[2:], kernel))),)


def _qlinear_conv(q: Question) -> tuple[Fact, ...]:
    x, w, dtype = q.input(0).dims, q.input(3).dims, q.input(7).dtype
    if x is None or w is None or len(x) != len(w) or len(x) < 3:
        return (Fact(dtype),)
    return (Fact(dtype, (x[0], w[0], *_spatial(q, x[2:], static(w[2:])))),)


def _conv_transpose(q: Question) -> tuple[Fact, ...]:
    x, w, dtype = q.input(0).dims, q.input(1).dims, q.input(0).dtype
    if x is None or w is None or len(x) != len(w) or len(x) < 3:
        return (Fact(dtype),)
    channels = w[1]
    out = multiply(channels, q.integer("group", 1) or 1)
    kernel = static(w[2:])
    windows = _windows(q, kernel) if kernel is not None else None
    more = q.integers("output_padding") or (0,) * (len(x) - 2)
    plain = _auto_pad(q) == "NOTSET" and q.integers("output_shape") is None
    if windows is None or not plain or len(more) != len(windows):
        return (Fact(dtype, (x[0], out, *(Dim() for _ in x[2:]))),)
    triples = zip(x[2:], windows, more, strict=True)
    return (Fact(dtype, (x[0], out, *(_spread(*triple) for triple in triples))),)


def _spread(size: Size, window: _Window, more: int) -> Size:
    rest = more + window.reach - window.before - window.after - window.stride
    if isinstance(size, int) or rest >= 0:
        return add(multiply(size, window.stride), rest)
    return unknown("spread", size, window.stride, rest)


def _pool(q: Question) -> tuple[Fact, ...]:
    x, kernel = q.input(0).dims, q.integers("kernel_shape")
    if x is None or kernel is None or len(x) != len(kernel) + 2:
        return (Fact(q.input(0).dtype),)
    dims = (*x[:2], *_spatial(q, x[2:], kernel))
    return (Fact(q.input(0).dtype, dims), Fact(ir.DataType.INT64, dims))


def _global_pool(q: Question) -> tuple[Fact, ...]:
    x = q.input(0).dims
    dims = None if x is None or len(x) < 2 else (*x[:2], *(1 for _ in x[2:]))
    return (Fact(q.input(0).dtype, dims),)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"), _global_pool),
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "QLinearConv": _qlinear_conv,
}
"""One function per operator."""
