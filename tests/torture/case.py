"""What a torture case is: ONNX text, arrays, and inputs with special values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from exact import feed_for
from onnx import numpy_helper

SPECIAL = (0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e30, 1e-40, 2.5)


@dataclass(frozen=True)
class Case:
    """A small model that breaks simplifiers.

    Attributes:
        text: The graph in ONNX text form, or the whole model if it starts with ``<``.
        opset: Version of the default operator set, for a graph alone.
        arrays: Initializers by name.
        feeds: Inputs that replace random ones, merged into each feed.
        runs: onnxruntime can load it; otherwise only its structure is compared.
        special: Also try inputs with infinities, NaN and signed zeros.
    """

    text: str
    opset: int = 18
    arrays: Mapping[str, Any] = field(default_factory=dict)
    feeds: Mapping[str, Any] = field(default_factory=dict)
    runs: bool = True
    special: bool = True

    def build(self) -> onnx.ModelProto:
        header = f'<ir_version: 8, opset_import: ["" : {self.opset}]>\n'
        text = self.text if self.text.lstrip().startswith("<") else header + self.text
        proto: onnx.ModelProto = onnx.parser.parse_model(text)
        for name, array in self.arrays.items():
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return proto

    def inputs(self, proto: onnx.ModelProto) -> list[dict[str, Any]]:
        ports = onnx.ModelProto()
        ports.CopyFrom(proto)
        del ports.graph.node[:], ports.graph.output[:], ports.functions[:]
        model = ir.from_proto(ports)
        feeds = [feed_for(model, seed, free) for seed, free in ((0, 3), (1, 1), (2, 2))]
        feeds = [{**feed, **self.feeds} for feed in feeds]
        if self.special:
            feeds.append({name: _special(value) for name, value in feeds[0].items()})
        return feeds


def _special(value: Any) -> Any:
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return value
    with np.errstate(over="ignore"):
        return np.resize(np.array(SPECIAL), value.shape).astype(value.dtype)


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    """Return weights."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) / 2, np.float32)


def ints(*numbers: int) -> np.ndarray:
    """Return a vector of int64."""
    return np.array(numbers, np.int64)


def norm(width: int, seed: int = 9) -> dict[str, np.ndarray]:
    """Return scale ``s``, shift ``b``, mean ``m`` and variance ``v`` of a BatchNormalization."""
    s, b, m = (rand(width, seed=seed + i) for i in range(3))
    return {"s": s + 1, "b": b, "m": m, "v": np.abs(rand(width, seed=seed + 3)) + np.float32(0.5)}
