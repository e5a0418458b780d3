"""A network of four layers that differ in what their weights are worth, and inputs for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from tests.support import model_from_text, run

WIDTHS = (12, 48, 40, 32, 5)
TOTAL = sum(a * b for a, b in pairwise(WIDTHS))


def network(tails: Sequence[float], seed: int = 0) -> ir.Model:
    """Return the network.

    Args:
        tails: By layer, how far the sizes of its weights are spread: 0 for a normal distribution.
        seed: Of the weights.
    """
    rng = np.random.default_rng(seed)
    constants: dict[str, np.ndarray] = {}
    for i, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
        weight = rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)
        weight *= np.abs(rng.standard_normal(weight.shape)) ** tails[i]
        constants[f"w{i}"] = weight.astype(np.float32)
        constants[f"b{i}"] = (0.1 * rng.standard_normal(outputs)).astype(np.float32)
    return model_from_text(
        """
        g (float[N,12] x) => (float[N,5] y) {
            a0 = Gemm(x, w0, b0)
            r0 = Relu(a0)
            a1 = Gemm(r0, w1, b1)
            r1 = Relu(a1)
            a2 = Gemm(r1, w2, b2)
            r2 = Relu(a2)
            y = Gemm(r2, w3, b3)
        }
        """,
        **constants,
    )


def correlated(count: int, seed: int = 0) -> np.ndarray:
    """Return samples (count, 12) that four numbers each decide."""
    rng = np.random.default_rng(1000 + seed)
    base = rng.standard_normal((count, 4)) @ np.random.default_rng(7).standard_normal((4, 12))
    return base.astype(np.float32)


def divergence(old: ir.Model, new: ir.Model, inputs: np.ndarray) -> float:
    """Return the mean Kullback-Leibler divergence of the classes."""
    pair = [run(model, {"x": inputs})["y"] for model in (old, new)]
    first, second = (s - np.log(np.exp(s).sum(1, keepdims=True)) for s in pair)
    return float((np.exp(first) * (first - second)).sum(1).mean())
