"""Outputs that look like class scores: agreement of two models, and accuracy against labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Scores:
    """Agreement and accuracy of one output with class scores.

    Attributes:
        output: Name of the output.
        classes: Number of classes.
        samples: Rows compared.
        agreement: Share of rows in which both models choose the same class, 0 to 1.
        flips: Share of rows in which they do not, 0 to 1.
        accuracy_original, accuracy_converted: Share of rows with the right class, 0 to 1; None
            without labels.
        lost, gained: Rows that only the original, only the converted model gets right; None
            without labels.
    """

    output: str
    classes: int
    samples: int
    agreement: float
    flips: float
    accuracy_original: float | None = None
    accuracy_converted: float | None = None
    lost: int | None = None
    gained: int | None = None


def as_scores(output: Any, samples: int | None = None) -> Array | None:
    """Return an output as class scores (rows, classes), or None when it does not look like them.

    Class scores are floating-point or 8-bit numbers (N, C), also with axes of size 1 around them,
    with C of at least 2. What has further axes, such as a segmentation, is not claimed.

    Args:
        output: An output of a model.
        samples: Number of samples in the batch, if it must be N.
    """
    if not isinstance(output, np.ndarray) or output.ndim < 2 or not _scores_type(output.dtype):
        return None
    rows = output.shape[0]
    wide = [size for size in output.shape[1:] if size != 1]
    if len(wide) != 1 or wide[0] < 2 or (samples is not None and rows != samples):
        return None
    return output.reshape(rows, wide[0])


def _scores_type(dtype: np.dtype[Any]) -> bool:
    small = dtype.type.__module__ == "ml_dtypes" and "int" not in dtype.name
    return dtype.kind == "f" or small or dtype in {np.dtype(np.int8), np.dtype(np.uint8)}


def choices(scores: Array) -> Array:
    """Return the best class of each row; of equal scores the first."""
    return np.asarray(scores.astype(np.float32, copy=False).argmax(-1))


@dataclass
class ScoreMeter:
    """Adds up agreement and accuracy of one output."""

    output: str
    classes: int = 0
    rows: int = 0
    same: int = 0
    labelled: int = 0
    right_original: int = 0
    right_converted: int = 0
    right_both: int = 0
    possible: bool = True

    def update(self, expected: Any, actual: Any, labels: Array | None, samples: int) -> None:
        """Compare one batch; an output that does not look like class scores ends the measuring."""
        # a feed of unknown meaning counts as one sample and may still hold several rows
        wanted = samples if samples > 1 else None
        old, new = as_scores(expected, wanted), as_scores(actual, wanted)
        if old is None or new is None or old.shape != new.shape:
            self.possible = False
            return
        if self.classes not in {0, old.shape[1]}:
            self.possible = False  # the last axis varies: a length, not classes
            return
        self.classes = old.shape[1]
        first, second = choices(old), choices(new)
        self.rows += len(first)
        self.same += int(np.count_nonzero(first == second))
        if labels is None or labels.size != len(first):
            return
        truth = labels.reshape(-1)
        self.labelled += len(truth)
        self.right_original += int(np.count_nonzero(first == truth))
        self.right_converted += int(np.count_nonzero(second == truth))
        self.right_both += int(np.count_nonzero((first == truth) & (second == truth)))

    def result(self) -> Scores | None:
        """Return the figures, or None when the output does not hold class scores."""
        if not self.possible or not self.rows:
            return None
        agreement = self.same / self.rows
        plain = Scores(self.output, self.classes, self.rows, agreement, 1 - agreement)
        if self.labelled != self.rows:
            return plain
        return Scores(
            self.output,
            self.classes,
            self.rows,
            agreement,
            (self.rows - self.same) / self.rows,
            self.right_original / self.rows,
            self.right_converted / self.rows,
            self.right_original - self.right_both,
            self.right_converted - self.right_both,
        )
