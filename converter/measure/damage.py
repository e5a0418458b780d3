"""How much a change costs, as one figure without labels: what ``max_loss`` bounds.

Where an output holds class scores the loss is the mean Kullback-Leibler divergence (nats per row)
of the changed model's probabilities from the original's; of every other output it is one minus the
cosine between both, of whole numbers the share of elements that differ. The worst output counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from converter.measure.accuracy import ScoreMeter, as_scores
from converter.measure.difference import DifferenceMeter

Array = np.ndarray[Any, Any]
_NO_SCORES = ("embed", "feature", "latent", "hidden", "state", "cache", "box")
_SUM = 1e-3
_FLOOR = 1e-12


@dataclass(frozen=True)
class Damage:
    """The distance of a model's outputs from the original's.

    Attributes:
        loss: See the module; 0 for equal outputs, infinite for broken ones.
        measure: What the loss is: ``KL``, ``1 - cosine`` or ``share of differing elements``.
        sqnr_db: Signal to noise of the worst output; infinite when equal.
        agreement: Share of rows with the same best class; None without class scores.
        accuracy: Share of rows with the right class; None without labels.
        samples: Runs that were compared.
    """

    loss: float
    measure: str
    sqnr_db: float
    agreement: float | None = None
    accuracy: float | None = None
    samples: int = 0


@dataclass
class DamageMeter:
    """Adds up the damage batch by batch, in constant memory."""

    differences: dict[str, DifferenceMeter] = field(default_factory=dict)
    scores: dict[str, ScoreMeter] = field(default_factory=dict)
    divergence: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    runs: int = 0

    def update(
        self,
        expected: Mapping[str, Any],
        actual: Mapping[str, Any],
        labels: Array | None = None,
        samples: int = 1,
    ) -> None:
        """Compare the outputs of one batch."""
        self.runs += 1
        for name, old in expected.items():
            new = actual[name]
            self.differences.setdefault(name, DifferenceMeter(name)).update(old, new)
            if any(word in name.lower() for word in _NO_SCORES):
                continue
            self.scores.setdefault(name, ScoreMeter(name)).update(old, new, labels, samples)
            found = divergence(old, new)
            total = math.nan if found is None else float(found.sum())
            self.divergence[name] = self.divergence.get(name, 0.0) + total
            self.rows[name] = self.rows.get(name, 0) + (0 if found is None else len(found))

    def result(self) -> Damage:
        """Return the figures of the worst output so far."""
        found = [self._of(meter) for meter in self.differences.values()]
        scores = [s for m in self.scores.values() if (s := m.result()) is not None]
        known = [s.accuracy_converted for s in scores if s.accuracy_converted is not None]
        loss, measure = max(found, default=(0.0, "1 - cosine"), key=lambda item: item[0])
        return Damage(
            loss=loss,
            measure=measure,
            sqnr_db=min((m.result().sqnr_db for m in self.differences.values()), default=math.inf),
            agreement=min((s.agreement for s in scores), default=None),
            accuracy=known[0] if known else None,
            samples=self.runs,
        )

    def _of(self, meter: DifferenceMeter) -> tuple[float, str]:
        found = meter.result()
        total = self.divergence.get(meter.name, math.nan)
        if found.broken:
            return math.inf, "1 - cosine"
        if math.isfinite(total) and self.rows[meter.name]:
            return max(0.0, total / self.rows[meter.name]), "KL"
        if found.kind == "exact":
            return found.unequal / max(1, found.elements), "share of differing elements"
        return max(0.0, 1.0 - found.cosine), "1 - cosine"


def divergence(expected: Any, actual: Any) -> Array | None:
    """Return the divergence of each row, in nats, or None when the outputs are no class scores.

    Rows of non-negative numbers that add up to one are probabilities, all others logits. Rows of
    equal length one are embeddings, not scores.

    Args:
        expected: Output of the original.
        actual: Output of the changed model, of the same shape.
    """
    old, new = as_scores(expected), as_scores(actual)
    if old is None or new is None or old.shape != new.shape or old.dtype.kind != "f":
        return None
    old, new = old.astype(np.float64), new.astype(np.float64)
    if not (np.isfinite(old).all() and np.isfinite(new).all()):
        return None
    if np.all(old >= 0) and np.allclose(old.sum(-1), 1.0, atol=_SUM):
        p, q = np.maximum(old, _FLOOR), np.maximum(new, _FLOOR)
        p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
        return np.asarray(np.sum(p * (np.log(p) - np.log(q)), axis=-1))
    if np.allclose(np.linalg.norm(old, axis=-1), 1.0, atol=_SUM):
        return None
    logs, others = _log_softmax(old), _log_softmax(new)
    return np.asarray(np.sum(np.exp(logs) * (logs - others), axis=-1))


def _log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
