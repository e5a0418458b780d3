"""What processors without VNNI make of integer products, emulated.

On x86 without VNNI (AVX2, early AVX-512) onnxruntime multiplies uint8 activations with int8 weights
by ``vpmaddubsw``: two neighbouring products are added in 16 bits and saturate. With 8-bit weights
that can happen (2 * 255 * 127 > 32767) and then results differ from those of newer processors; with
7-bit weights it cannot. Depthwise convolutions run on other instructions and are not affected.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_LARGEST = 32767
SAFE_MAGNITUDE = 64
"""Weights up to here cannot saturate: 2 * 255 * 64 = 32640."""


def overflowing(rows: Array, weights: Array) -> float:
    """Return the share of results in which at least one sum of two products saturates.

    Args:
        rows: uint8 (positions, K), in the order in which the processor adds: for a convolution the
            channels of one position of the kernel lie together.
        weights: int8 (channels, K), in the same order.

    Returns:
        0..1; 0 without positions or channels.
    """
    if not rows.size or not weights.size:
        return 0.0
    x, w = _paired(rows), _paired(weights)
    hit = np.zeros((len(rows), len(weights)), bool)
    for pair in np.flatnonzero(_suspects(x, w).any(axis=0)):
        channels = np.flatnonzero(_suspects(x[:, pair : pair + 1], w[:, pair : pair + 1])[:, 0])
        sums = x[:, pair] @ w[channels, pair].T
        hit[:, channels] |= np.abs(sums) > _LARGEST
    return float(hit.mean())


def _paired(values: Array) -> Array:
    """Return int32 (n, ceil(K / 2), 2): neighbours together, with a zero after an odd last one."""
    wide = values.astype(np.int32)
    if wide.shape[1] % 2:
        wide = np.pad(wide, ((0, 0), (0, 1)))
    return wide.reshape(len(wide), -1, 2)


def _suspects(x: Array, w: Array) -> Array:
    """Return bool (channels, pairs): the largest inputs of each place together might saturate."""
    largest = x.max(axis=0)
    high = (largest * np.maximum(w, 0)).sum(axis=2)
    low = (largest * np.minimum(w, 0)).sum(axis=2)
    found: Array = (high > _LARGEST) | (low < -_LARGEST)
    return found
