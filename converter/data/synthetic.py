"""Inputs made up from the model's own shapes, the same for the same seed.

They show that a model still runs and how far its outputs move. They say nothing about accuracy, and
ranges calibrated on them do not fit real data; every report says so.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.context import Batch
from converter.core.graph import constant, is_op
from converter.data import ports as p
from converter.data.ports import Array, Dim, Port
from converter.errors import LimitExceededError

if TYPE_CHECKING:
    import onnx_ir as ir

SAMPLES = 4
MOST_BYTES = 1 << 30
_LENGTH, _WAVE, _SPATIAL = 8, 512, 224
_WORDS = ("a", "model", "made", "up", "these", "words")
_SAME_VALUES = ("Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Transpose")
_SHAPE_READERS = {
    "Reshape": 1, "Expand": 1, "Tile": 1, "Unsqueeze": 1, "Squeeze": 1, "Slice": 1, "Pad": 1,
    "OneHot": 1, "TopK": 1, "ConstantOfShape": 0, "Range": 0, "Resize": 3,
}  # fmt: skip
"""First input of these operators that is a size or an index: small numbers only."""


@dataclass(frozen=True)
class Recipe:
    """How one input is filled.

    Attributes:
        port: The input.
        shape: Its shape in every batch.
        below: Exclusive upper bound of whole numbers; 0: the default of the type.
        ones: Only ones, for sizes and masks.
    """

    port: Port
    shape: tuple[int, ...]
    below: int = 0
    ones: bool = False

    def fill(self, rng: np.random.Generator) -> Array:
        """Draw one array."""
        kind = p.kind_of(self.port.dtype)
        if self.ones:
            return np.ones(self.shape).astype(self.port.dtype)
        if kind == "bool":
            return rng.integers(0, 2, self.shape).astype(bool)
        if kind == "int":
            return rng.integers(*self._range(), self.shape).astype(self.port.dtype)
        if kind == "string":
            return np.array(_WORDS, object)[rng.integers(0, len(_WORDS), self.shape)].reshape(
                self.shape
            )
        drawn = np.asarray(rng.standard_normal(self.shape, np.float32))
        return drawn.astype(self.port.dtype)

    def _range(self) -> tuple[int, int]:
        if self.below:
            return 0, self.below
        names = {"int8": (-128, 128), "uint8": (0, 256), "int4": (-8, 8), "uint4": (0, 16),
                 "int2": (-2, 2), "uint2": (0, 4)}  # fmt: skip
        return names.get(self.port.dtype.name, (0, 4))


@dataclass(frozen=True)
class Synthetic:
    """Made-up batches; a :class:`Dataset`."""

    recipes: tuple[Recipe, ...]
    samples: int
    batch: int
    seed: int
    synthetic: bool = field(default=True)
    labelled: bool = field(default=False)
    kind: str = "made up from the model's shapes"

    @property
    def description(self) -> str:
        """For the report."""
        return f"{self.kind} (seed {self.seed})"

    def __len__(self) -> int:
        return math.ceil(self.samples / self.batch)

    def __iter__(self) -> Iterator[Batch]:
        for index in range(len(self)):
            rng = np.random.default_rng((self.seed & 0xFFFFFFFF, index))
            inputs = {r.port.name: r.fill(rng) for r in self.recipes}
            yield Batch(inputs, None, min(self.batch, self.samples - index * self.batch))


def make_synthetic(
    model: ir.Model,
    ports: Mapping[str, Port],
    *,
    batch: int = 1,
    samples: int | None = None,
    seed: int = 0,
) -> Synthetic:
    """Make up samples for a model.

    Dynamic dimensions become: the batch size on axis 0, 224 for the height and width of images,
    512 for the length of a (batch, length) signal, what constant weights ask for, else 8;
    dimensions of one name get one size, and a name such as ``past + 1`` is a sum.

    Raises:
        LimitExceededError: The inputs alone would exceed a gibibyte.
    """
    values = {v.name: v for v in model.graph.inputs}
    sizes: dict[str, int] = {}
    recipes = []
    for port in ports.values():
        if port.optional:
            continue
        shape = _shape(_completed(port, values[port.name]), batch, sizes)
        nbytes = int(np.prod([int(s) for s in shape], dtype=object)) * port.dtype.itemsize
        if nbytes > MOST_BYTES:
            raise LimitExceededError(
                f"input {port.name!r} of shape {shape} needs {nbytes} bytes",
                allowed=f"{MOST_BYTES} bytes for made-up inputs",
                hint="give samples with --data",
            )
        below, ones = _role(values[port.name], port)
        recipes.append(Recipe(port, shape, below, ones))
    return Synthetic(tuple(recipes), samples or SAMPLES * batch, batch, seed)


def _completed(port: Port, value: ir.Value) -> Port:
    """Fill in what the model leaves open and the constant weights of the first readers tell."""
    for node, index in value.uses():
        reader = _WEIGHT_READERS.get(node.op_type)
        weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if reader is None or weight is None or index or not is_op(node, node.op_type):
            continue
        least, read = reader
        if len(weight.shape) < least:
            continue
        rank, axis, size = read(weight.shape.numpy(), node)
        dims: list[Dim] = list(port.shape) if port.shape is not None else [None] * rank
        if -len(dims) <= axis < len(dims) and not isinstance(dims[axis], int):
            dims[axis] = size
        port = replace(port, shape=tuple(dims))
    return port


def _attribute(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else int(attribute.as_int())


_Reader = Callable[[Sequence[int], "ir.Node"], tuple[int, int, int]]
# Least rank of the second input, and from its shape: rank of the first, an axis of it, its size.
_WEIGHT_READERS: dict[str, tuple[int, _Reader]] = {
    "Conv": (2, lambda w, node: (len(w), 1, w[1] * _attribute(node, "group", 1))),
    "ConvTranspose": (2, lambda w, _: (len(w), 1, w[0])),
    "MatMul": (2, lambda w, _: (2, -1, w[-2])),
    "Gemm": (2, lambda w, node: (2, -1, w[1 if _attribute(node, "transB", 0) else 0])),
    "BatchNormalization": (1, lambda w, _: (4, 1, w[0])),
    "LSTM": (3, lambda w, _: (3, 2, w[2])),
    "GRU": (3, lambda w, _: (3, 2, w[2])),
    "RNN": (3, lambda w, _: (3, 2, w[2])),
}


def _shape(port: Port, batch: int, sizes: dict[str, int]) -> tuple[int, ...]:
    if port.shape is None:
        return (batch, _LENGTH)
    made = []
    for axis, dim in enumerate(port.shape):
        if isinstance(dim, int):
            made.append(dim)
            continue
        default = batch if axis == 0 else _default(port, axis)
        made.append(_size(dim, default, sizes))
    return tuple(made)


def _default(port: Port, axis: int) -> int:
    shape = port.shape or ()
    last = shape[-1] if shape else None
    image_axes = (1, 2) if isinstance(last, int) and last <= 4 else (2, 3)
    is_image = len(shape) == 4 and p.kind_of(port.dtype) in {"float", "int"}
    if is_image and axis in image_axes:
        return _SPATIAL
    is_wave = len(shape) == 2 and axis == 1 and p.kind_of(port.dtype) == "float"
    return _WAVE if is_wave else _LENGTH


def _size(dim: Dim, default: int, sizes: dict[str, int]) -> int:
    if not isinstance(dim, str):
        return default
    parts = [part.strip() for part in dim.split("+")]
    if len(parts) > 1 and all(part.isidentifier() or part.isdigit() for part in parts):
        return sum(
            int(part) if part.isdigit() else sizes.setdefault(part, _LENGTH) for part in parts
        )
    return sizes.setdefault(dim, default)


def _role(value: ir.Value, port: Port) -> tuple[int, bool]:
    """Look at the readers of a whole-number input: (exclusive bound or 0, only ones)."""
    if p.kind_of(port.dtype) not in {"int", "bool"}:
        return 0, False
    ones = "mask" in port.name.lower() or port.rank == 0
    if p.kind_of(port.dtype) == "bool":
        return 0, "mask" in port.name.lower()
    bounds = []
    waiting: deque[tuple[Any, int]] = deque([(value, 0)])
    seen: set[int] = set()
    while waiting:
        current, depth = waiting.popleft()
        if id(current) in seen or depth > 6:
            continue
        seen.add(id(current))
        for node, index in current.uses():
            if is_op(node, "Gather") and index == 1:
                bounds += _table_size(node)
            elif is_op(node, *_SAME_VALUES) and index == 0:
                waiting.append((node.outputs[0], depth + 1))
            first = _SHAPE_READERS.get(node.op_type)
            ones = ones or (first is not None and index >= first and is_op(node, node.op_type))
    return (min(bounds), False) if bounds else (0, ones)


def _table_size(node: ir.Node) -> list[int]:
    """Return the number of rows of the constant that a Gather reads, if it is known."""
    tensor = constant(node.inputs[0])
    if tensor is None:
        return []
    attribute = node.attributes.get("axis")
    axis = 0 if attribute is None or attribute.is_ref() else attribute.as_int()
    dims = tensor.shape.numpy()
    return [int(dims[axis])] if -len(dims) <= axis < len(dims) and dims[axis] else []
