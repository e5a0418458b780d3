"""How far a student is from the float model, so that few samples tell candidates apart.

The mean divergence of 32 samples is that of the two or three samples whose class is least certain.
The square of the mean of the roots has the same unit and lets every sample count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from converter.measure.damage import divergence

Array = np.ndarray[Any, Any]
MEASURES = ("KL divergence (squared mean root)", "relative error")


@dataclass
class Distances:
    """Distances of outputs, sample by sample.

    Attributes:
        scores: By output, the root of every sample's Kullback-Leibler divergence.
        errors: By output that holds no class scores, the power of every batch's error and of what
            was expected.
    """

    scores: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def update(self, name: str, expected: Array, actual: Array) -> None:
        """Compare one output of one batch; what is no number does not count."""
        if expected.dtype.kind not in "fiub" or actual.shape != expected.shape:
            return
        found = divergence(expected, actual)
        if found is not None:
            roots = np.sqrt(np.maximum(found.reshape(-1), 0.0))
            self.scores.setdefault(name, []).extend(roots.tolist())
            return
        old, new = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
        pair = (float(np.square(new - old).sum()), float(np.square(old).sum()))
        self.errors.setdefault(name, []).append(pair)

    def result(self) -> tuple[float, str]:
        """Return the distance of the worst output and what it is; infinite for broken ones."""
        found = [(self._of_scores(name), MEASURES[0]) for name in self.scores]
        found += [(self._of_errors(name), MEASURES[1]) for name in self.errors]
        worst = max(found, default=(0.0, MEASURES[1]), key=lambda pair: pair[0])
        return worst if not math.isnan(worst[0]) else (math.inf, worst[1])

    def _of_scores(self, name: str) -> float:
        return _finite(float(np.mean(self.scores[name])) ** 2)

    def _of_errors(self, name: str) -> float:
        noise, signal = np.asarray(self.errors[name]).sum(axis=0)
        if noise == 0.0:
            return 0.0
        return _finite(float(noise / signal) if signal > 0 else math.inf)


def _finite(number: float) -> float:
    return math.inf if math.isnan(number) else number
