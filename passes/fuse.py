"""``fuse``: several operators into one, by the rules of :mod:`passes.fusion`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from converter.core.params import Param
from converter.errors import ParameterError
from passes.fusion import (
    activation,
    arithmetic,
    attention,
    batch_norm,
    convolution,
    gemm,
    grouped_axes,
    linear,
    normalization,
    padding,
    unit_axes,
    zeros,
)
from passes.rewriting.rewrite import Rewrite
from passes.rewriting.rule import minor
from passes.rewriting.work import Work

OPERATORS = (*activation.RULES, *normalization.RULES, *attention.RULES)
"""Patterns of arithmetic that are an operator; before anything takes part of the arithmetic."""
LAYERS = minor(
    (
        *batch_norm.RULES,
        *linear.RULES,
        *convolution.RULES,
        *padding.RULES,
        *arithmetic.RULES,
        *gemm.RULES,
        *unit_axes.RULES,
        *grouped_axes.RULES,
        *zeros.RULES,
    ),
    "batch_norms_fused",
)
"""Constants into the weights of linear layers and into each other."""
STAGES = (OPERATORS, *normalization.LATER, LAYERS)
"""What is tried on the whole model before the next is."""
RULES = tuple(rule for stage in STAGES for rule in stage)
"""All rules of ``fuse``, tried in this order."""
EXTRA = (*activation.EXTRA, *attention.EXTRA, *normalization.EXTRA)
"""Rules that are off by default; the reason in a report says why."""
_MOST_ROUNDS = 4


@dataclass(frozen=True)
class Fuse(Rewrite):
    """Make several operators one: activations, normalization, and arithmetic around linear layers.

    GELU, HardSwish, LayerNormalization, Softmax and their like, written as arithmetic, become one
    operator where the operator set of the model has it and onnxruntime is not slower with it.
    BatchNormalization in inference form, factors and terms per channel go into the weights of the
    Conv, ConvTranspose, Gemm or MatMul beside them; constants of consecutive arithmetic become one;
    Pad with zeros goes into convolutions; MatMul of two matrices with a bias becomes Gemm.

    New weights are computed in float64 and rounded once to the type of the old ones, so outputs
    differ by about one rounding step per layer: relative 1e-6 for float32, 1e-3 for float16.
    A weight that another node uses is left alone: a second copy would make the file bigger.
    """

    name: ClassVar[str] = "fuse"
    summary: ClassVar[str] = "make several operators one; fold what is constant into weights"

    extra: Annotated[
        tuple[str, ...],
        Param("rules that are off because onnxruntime is slower or stricter with what they make"),
    ] = ()

    def __post_init__(self) -> None:
        """Refuse unknown rules."""
        super().__post_init__()
        unknown = [name for name in self.extra if name not in EXTRA]
        if unknown:
            raise ParameterError(
                f"fuse has no optional rule {unknown[0]!r}",
                where="extra",
                allowed=", ".join(sorted(EXTRA)),
                hint="name one of them, or leave extra= out",
            )

    def rewrite(self, work: Work) -> None:
        """Fold what can be folded."""
        work.extra = frozenset(self.extra)
        fuse(work)


def fuse(work: Work, rounds: int = _MOST_ROUNDS) -> None:
    """Fold what can be folded; the body of the pass, used by ``simplify`` too."""
    for _ in range(rounds):
        before = work.edits
        for stage in STAGES:
            work.sweep(stage)
        if work.edits == before:
            break
