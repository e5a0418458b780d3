"""A graph under construction: typed values with symbolic shapes, nodes, constants and scopes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = tuple[int | str, ...]
F32, F16, F64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE
I64, I32, U8, BOOL = TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8, TensorProto.BOOL
FLOATS, INTEGERS = (F32, F16, F64), (I64, I32)
_LARGEST = 4096  # elements of a value with all symbols 3


@dataclass(frozen=True)
class Tensor:
    """A value: its name, element type and dimensions (a symbol is equal to itself alone)."""

    name: str
    dtype: int
    dims: Dims

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def elements(self) -> int:
        return int(np.prod([d if isinstance(d, int) else 3 for d in self.dims], dtype=np.int64))


@dataclass
class Shared:
    """What all scopes of one model have in common."""

    random: Random
    opset: int
    names: Any = field(default_factory=itertools.count)
    functions: list[onnx.FunctionProto] = field(default_factory=list)


class Builder:
    """One graph; ``parent`` is the graph around it, whose values it may capture."""

    def __init__(self, shared: Shared, parent: Builder | None = None) -> None:
        self.shared, self.parent = shared, parent
        self.random, self.opset = shared.random, shared.opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.values: list[Tensor] = []
        self.depth: int = 0 if parent is None else parent.depth + 1

    # choices

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def choose(self, options: Sequence[Any]) -> Any:
        return options[self.random.randrange(len(options))]

    def pick(self, accept: Callable[[Tensor], bool] = lambda _: True) -> Tensor | None:
        """Choose a value that fits, young ones more often."""
        found = [value for value in self.visible() if accept(value)]
        if not found:
            return None
        young = found[-4:]
        return self.choose(young if self.chance(0.7) else found)

    def floats(self, least: int = 0, most: int = 5) -> Tensor | None:
        return self.pick(lambda v: v.dtype == F32 and least <= v.rank <= most)

    def visible(self) -> list[Tensor]:
        outer = self.parent.visible() if self.parent is not None else []
        return [*outer, *self.values]

    # making things

    def name(self, stem: str = "t") -> str:
        return f"{stem}{next(self.shared.names)}"

    def symbol(self) -> str:
        return self.name("?")

    def many(
        self,
        op: str,
        inputs: Sequence[Tensor | str],
        outputs: Sequence[tuple[int, Dims]],
        **kw: Any,
    ) -> list[Tensor]:
        made = [Tensor(self.name(), dtype, tuple(dims)) for dtype, dims in outputs]
        names = [value if isinstance(value, str) else value.name for value in inputs]
        while names and not names[-1]:
            names.pop()
        title = self.name("n") if self.chance(0.5) else ""
        outs = [value.name for value in made]
        self.nodes.append(helper.make_node(op, names, outs, title, **kw))
        self.values.extend(value for value in made if value.elements <= _LARGEST)
        return made

    def node(
        self, op: str, inputs: Sequence[Tensor | str], like: Tensor | tuple[int, Dims], **kw: Any
    ) -> Tensor:
        form = (like.dtype, like.dims) if isinstance(like, Tensor) else like
        return self.many(op, inputs, [form], **kw)[0]

    def constant(self, data: Any, dtype: Any = np.float32) -> str:
        """Store an array as an initializer here or outside, or as a Constant node."""
        array = np.asarray(data, dtype)
        name = self.name("c")
        tensor = numpy_helper.from_array(array, name)
        kind = self.random.random()
        if kind < 0.3:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            return name
        home = self
        while home.parent is not None and kind < 0.7:
            home = home.parent
        if home.in_function:
            home.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            home.initializers.append(tensor)
        return name

    in_function = False

    def ints(self, *numbers: int) -> str:
        return self.constant(numbers, np.int64)

    def weights(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        rng = np.random.default_rng(self.random.randrange(1 << 30))
        return np.asarray(rng.standard_normal(shape) * scale, np.float32)

    # operators whose form depends on the opset

    def with_axes(self, op: str, x: Tensor, axes: Sequence[int], dims: Dims, **kw: Any) -> Tensor:
        """Squeeze, Unsqueeze and reductions: axes are an attribute or an input."""
        since = 13 if op in ("Squeeze", "Unsqueeze", "ReduceSum") else 18
        if self.opset < since:
            return self.node(op, [x], (x.dtype, dims), axes=list(axes), **kw)
        return self.node(op, [x, self.ints(*axes)], (x.dtype, dims), **kw)


def broadcast(a: Dims, b: Dims) -> Dims | None:
    """Return the dimensions of the result, or None if the two certainly or possibly clash."""
    out: list[int | str] = []
    for x, y in itertools.zip_longest(reversed(a), reversed(b), fillvalue=1):
        if x != y and 1 not in (x, y):
            return None
        out.append(y if x == 1 else x)
    return tuple(reversed(out))


def is_static(dims: Dims) -> bool:
    return all(isinstance(d, int) for d in dims)
