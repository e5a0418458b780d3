"""Tells rounding from errors: how far does an output move when everything moves by one bit?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

_TRIALS = 16
_FACTOR = 32.0  # movements add up along a chain of nodes
_FLOATS = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.DOUBLE: np.float64,
    onnx.TensorProto.FLOAT16: np.float16,
}


@dataclass(frozen=True)
class Explanation:
    """One output of one run of the original.

    Attributes:
        path: The original.
        feed: Its inputs.
        output: Index of the output.
    """

    path: Path
    feed: Any
    output: int

    def covers(self, expected: Any, actual: Any) -> bool:
        """Tell whether noise of a few units in the last place explains the difference.

        Inputs and constants of the original are moved by up to four units, several times. The
        difference is rounding if no element moved further than a fixed multiple of what that did.
        """
        if not isinstance(expected, np.ndarray) or not isinstance(actual, np.ndarray):
            return False
        if expected.shape != actual.shape or expected.dtype != actual.dtype:
            return False
        moved = np.zeros(expected.shape)
        for seed in range(_TRIALS):
            other = self._perturbed(seed)
            if other is None or other.shape != expected.shape:
                return False
            moved = np.fmax(moved, _distance(expected, other))
        difference = _distance(expected, actual)
        # An element of a mixed array may be lucky in each trial; its neighbours speak for it.
        typical = float(np.max(moved[np.isfinite(moved)], initial=0.0))
        return bool(np.all(difference <= _FACTOR * np.maximum(moved, typical / 4)))

    def _perturbed(self, seed: int) -> np.ndarray | None:
        import onnxruntime as ort

        rng = np.random.default_rng(seed)
        proto = onnx.load(self.path)
        _perturb_graph(proto.graph, rng)
        for function in proto.functions:
            _perturb_nodes(function.node, rng)
        feed = {name: _noisy(np.asarray(array), rng) for name, array in self.feed.items()}
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            session = ort.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            result = session.run(None, feed)[self.output]
        except Exception:  # noqa: BLE001 - noise may lead anywhere
            return None
        return np.asarray(result)


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        distance = np.abs(a.astype(np.float64) - b.astype(np.float64))
    same = (a == b) | ((a != a) & (b != b))
    return np.where(same, 0.0, np.where(np.isfinite(distance), distance, np.inf))


def _noisy(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move every float by up to four units in the last place, up or down; 0 stays."""
    if array.dtype not in (np.float16, np.float32, np.float64):
        return array
    units = rng.integers(-4, 5, array.shape)
    with np.errstate(all="ignore"):
        moved = array + units.astype(array.dtype) * np.spacing(array)
    return np.asarray(np.where(np.isfinite(array) & (array != 0), moved, array), array.dtype)


def _perturb_graph(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    for tensor in graph.initializer:
        _perturb_tensor(tensor, rng)
    _perturb_nodes(graph.node, rng)


def _perturb_nodes(nodes: Any, rng: np.random.Generator) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _perturb_graph(attribute.g, rng)
            if attribute.HasField("t"):
                _perturb_tensor(attribute.t, rng)


def _perturb_tensor(tensor: onnx.TensorProto, rng: np.random.Generator) -> None:
    if tensor.data_type in _FLOATS and not tensor.external_data:
        array = _noisy(numpy_helper.to_array(tensor), rng)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
