"""``fuse``: several operators into one, by the rules of :mod:`passes.fusion`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from passes.fusion import activation, batch_norm
from passes.rewriting.rewrite import Rewrite
from passes.rewriting.work import Work

RULES = (*batch_norm.RULES, *activation.RULES)
"""All rules of ``fuse``, tried in this order."""


@dataclass(frozen=True)
class Fuse(Rewrite):
    """Fold BatchNormalization in inference form into Conv, ConvTranspose or Gemm before it.

    The new weights are computed in float64 and rounded once to the type of the old ones, so outputs
    differ by about one rounding step per layer: relative 1e-6 for float32, 1e-3 for float16.
    A weight that another node uses is left alone: a second copy would make the file bigger.
    """

    name: ClassVar[str] = "fuse"
    summary: ClassVar[str] = "fold BatchNormalization into the Conv, ConvTranspose or Gemm before"

    def rewrite(self, work: Work) -> None:
        """Fold what can be folded."""
        fuse(work)


def fuse(work: Work) -> None:
    """Fold what can be folded; the body of the pass, used by ``simplify`` too."""
    work.sweep(RULES)
