"""How far the outputs of two models are apart, and what rounding explains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-4
"""Largest difference that rounding explains, as a share of the largest number of an output."""
_COARSE = {"FLOAT16": 1e-2, "BFLOAT16": 5e-2}
"""The same for models with weights of these types."""
_STEPS = ("DynamicQuantizeLinear", "QuantizeLinear")
_STEP = 1e-2
"""The same where activations are quantized: rounding may tip a number to the next step."""
_TIES = 0.01
"""Share of whole numbers that may differ: rounding decides which of two equals is the greater."""


def tolerance_of(model: ir.Model) -> float:
    """Return the difference that rounding explains in a model."""
    found = [_COARSE.get(tensor.dtype.name, 0.0) for tensor in g.tensors(model)]
    if any(g.is_op(node, *_STEPS) for node in g.walk(model)):
        found.append(_STEP)
    return max([TOLERANCE, *found])


def difference_of(expected: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """Return the largest difference of all outputs, as a share of the output's largest number.

    Infinite where shapes or types differ, or where one of the two is no number.
    """
    return max((_difference(expected[name], found[name]) for name in expected), default=0.0)


def _difference(expected: Any, found: Any) -> float:
    if isinstance(expected, dict):
        expected, found = list(expected.items()), list(found.items())
    if isinstance(expected, list | tuple):
        same = len(expected) == len(found)
        return max(map(_difference, expected, found), default=0.0) if same else np.inf
    if isinstance(expected, float):
        expected, found = np.asarray(expected), np.asarray(found)
    if not isinstance(expected, np.ndarray):
        return 0.0 if expected == found else np.inf
    return _of_arrays(expected, found)


def _of_arrays(expected: Array, found: Array) -> float:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return np.inf
    if not expected.size:
        return 0.0
    if expected.dtype.kind not in "fV":
        return 0.0 if float(np.mean(expected != found)) <= _TIES else np.inf
    return _share(expected.astype(np.float64), found.astype(np.float64))


def _share(expected: Array, found: Array) -> float:
    """Return the largest difference as a share of the largest finite number."""
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(found)):
        return np.inf
    if not finite.any():
        return 0.0
    largest = max(float(np.abs(expected[finite]).max()), float(np.finfo(np.float32).tiny))
    return float(np.abs(expected - found)[finite].max()) / largest
