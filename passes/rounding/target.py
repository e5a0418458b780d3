"""What to round towards: the weights that suit the inputs which the layer will really get."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def least_squares(weight: Array, gram: Array, cross: Array, ridge: float) -> Array:
    """Return the weights that give the float layer's outputs from the quantized model's inputs.

    They minimise ``|W Xf - W' Xs|^2 + ridge * mean(diag(gram)) * |W' - W|^2``, with the inputs in
    the float model ``Xf`` and in the quantized one ``Xs``. A large ridge keeps them near ``W``:
    few samples over-fit quickly (1 suits 8 bits, 0.1 suits 4).

    Args:
        weight: float (channels, K) or (layers, channels, K).
        gram: ``Xs^T Xs``, (K, K) or (layers, K, K), samples in rows; centred where a bias can take
            the means up.
        cross: ``Xs^T Xf``, of the same shape and centred alike.
        ridge: Above zero.

    Returns:
        float64 of weight's shape. The weight itself where the inputs are all zero or the system
        cannot be solved.

    Raises:
        ValueError: ``ridge`` is not above zero, or a matrix holds NaN or infinity.
    """
    if not ridge > 0:
        raise ValueError(f"the ridge must be above zero, not {ridge}")
    if not (np.isfinite(gram).all() and np.isfinite(cross).all()):
        raise ValueError("a Gram matrix holds NaN or infinity")
    weights = np.array(weight, np.float64, ndmin=3)
    grams = np.array(gram, np.float64, ndmin=3)
    size = weights.shape[-1]
    mean = np.einsum("gkk->g", grams) / max(1, size)
    strength = np.where(mean > 0, ridge * mean, 1.0)
    np.einsum("gkk->gk", grams)[...] += strength[:, None]
    crosses = np.array(cross, np.float64, ndmin=3)
    turned = np.swapaxes(weights, 1, 2)
    # Solved for the change: where Xs equals Xf, the change is exactly zero.
    pull = (crosses - np.array(gram, np.float64, ndmin=3)) @ turned
    try:
        change = np.linalg.solve(grams, pull)
    except np.linalg.LinAlgError:
        return np.asarray(weights.reshape(weight.shape))
    found: Array = weights + np.swapaxes(change, 1, 2)
    return found.reshape(weight.shape)
