"""Mirrored and shifted copies of pictures, so that layers are fitted on more than there is.

The original says what it makes of them as it does for any picture, so nothing has to be known about
what they show. Only the recovery sees them; what goes is decided on the samples themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from converter.core.context import Batch

Array = np.ndarray[Any, Any]
_WORK = 2e11
"""Multiply-accumulates of one run over all samples, up to which copies are worth their time."""
_SMALLEST = 8
_SHIFT = 16  # pictures move by up to one of so many parts
_FOLDS = 8
"""The recovery holds out every so many samples; a copy goes the way of its original."""


def with_copies(batches: Sequence[Batch], macs: float) -> list[Batch]:
    """Add a mirrored and shifted copy of every sample, where samples are pictures.

    Args:
        batches: Samples.
        macs: Multiply-accumulates of one sample.

    Returns:
        The batches and behind them their copies; the batches alone where the model has other
        inputs than one with pictures of 1 or 3 channels, or where it is so large that twice the
        samples would take minutes.
    """
    given = list(batches)
    whole = len(given) // _FOLDS * _FOLDS
    if macs * sum(b.samples for b in given) > _WORK or not all(map(_is_picture, given)):
        return given
    copies = [_copied(batch, i) for i, batch in enumerate(given[:whole])]
    return [*given[:whole], *copies, *given[whole:]]


def _is_picture(batch: Batch) -> bool:
    arrays = [np.asarray(array) for array in batch.inputs.values()]
    if len(arrays) != 1 or arrays[0].ndim != 4 or arrays[0].dtype.kind not in "fu":
        return False
    return _axes(arrays[0]) is not None


def _axes(picture: Array) -> tuple[int, int] | None:
    """Return the axes of height and width, or None."""
    for channels, axes in ((1, (2, 3)), (3, (1, 2))):
        sizes = [picture.shape[axis] for axis in axes]
        if picture.shape[channels] in (1, 3) and min(sizes) >= _SMALLEST:
            return axes
    return None


def _copied(batch: Batch, number: int) -> Batch:
    inputs = {name: _moved(np.asarray(array), number) for name, array in batch.inputs.items()}
    return Batch(inputs, None, batch.samples)


def _moved(pictures: Array, number: int) -> Array:
    axes = _axes(pictures)
    assert axes is not None
    rng = np.random.default_rng((number, pictures.size))
    padding, window = [(0, 0)] * 4, [slice(None)] * 4
    for axis in axes:
        size = pictures.shape[axis]
        most = size // _SHIFT
        start = int(rng.integers(0, 2 * most + 1))
        padding[axis] = (most, most)
        window[axis] = slice(start, start + size)
    turned = np.pad(np.flip(pictures, axes[1]), padding, mode="reflect")
    return np.ascontiguousarray(turned[tuple(window)])
