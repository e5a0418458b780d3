"""What a placement follows: the target that will run the model, and the form of the grids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converter.errors import ParameterError
from converter.ops.targets import FUSED_TYPES, ORT_CPU, TARGETS, Target
from passes.affine.grid import (
    INT8_SYMMETRIC,
    UINT8,
    Grid,
    IntegerRange,
    asymmetric,
    centred,
    symmetric,
)
from passes.affine.opset import PER_CHANNEL_OPSET, PER_TENSOR_OPSET

INT16_OPSET = 21
"""First opset whose QuantizeLinear knows 16-bit integers."""

_WIDE = ("uint16", "int16")

ACTIVATIONS: dict[str, IntegerRange] = {
    "uint8": UINT8,
    "int8": IntegerRange(-128, 127, np.dtype(np.int8)),
    "uint16": IntegerRange(0, 65535, np.dtype(np.uint16)),
    "int16": IntegerRange(-32768, 32767, np.dtype(np.int16)),
}


@dataclass(frozen=True)
class Rules:
    """Rules of one placement.

    Attributes:
        target: What will run the model.
        symmetric: Grids have zero in their middle unless all values are positive.
        opset: Plan as if the model had this opset; None: its own.
        activations: Type of the integers, a key of :data:`ACTIVATIONS`; "" means the target's own.
    """

    target: Target = ORT_CPU
    symmetric: bool = False
    opset: int | None = None
    activations: str = ""

    @property
    def kind(self) -> str:
        """Type of the integers."""
        return self.activations or self.target.activations[0]

    @property
    def integers(self) -> IntegerRange:
        """The integers of activations."""
        found = ACTIVATIONS[self.kind]
        both = found.low < 0 and (self.symmetric or self.target.centred)
        if not both:
            return found
        if self.kind == "int8":
            return INT8_SYMMETRIC
        return IntegerRange(-found.high, found.high, found.dtype)

    @property
    def opset_needed(self) -> int:
        """The opset that all numbers can be written in."""
        return INT16_OPSET if self.kind in _WIDE else PER_CHANNEL_OPSET

    @property
    def opset_lowest(self) -> int:
        """The opset below which nothing can be written."""
        return INT16_OPSET if self.kind in _WIDE else PER_TENSOR_OPSET

    @property
    def priced(self) -> bool:
        """The measured costs of operators hold."""
        return self.target.priced and self.kind == "uint8"

    def grid(self, low: float, high: float) -> Grid:
        """Return the grid of a range.

        Raises:
            ValueError: The range is not finite or is reversed.
        """
        if self.target.centred:
            return centred(low, high, self.integers)
        return (symmetric if self.symmetric else asymmetric)(low, high, self.integers)

    def notes(self) -> tuple[str, ...]:
        """Say what the choices mean for how the model runs."""
        found = []
        if not self.target.priced:
            found.append(
                f"placed for {self.target.label}; onnxruntime on the CPU runs the file too, but "
                "does not fuse all of it"
            )
        elif self.kind not in FUSED_TYPES:
            found.append(
                f"{self.kind} activations are not fused by onnxruntime on the CPU: layers compute "
                "in float between conversions there, more exact than uint8 but slower than float"
            )
        elif self.kind == "int8":
            found.append(
                "int8 activations are slower than uint8 on x86 processors, where convolutions with "
                "them can be slower than in float"
            )
        return tuple(found)


PLAIN = Rules()


def rules_of(target: str, activations: str, *, symmetric: bool) -> Rules:
    """Return the rules that a user asked for.

    Args:
        target: Key of :data:`converter.ops.targets.TARGETS`.
        activations: A type, or "auto" for the target's own.
        symmetric: As of :class:`Rules`.

    Raises:
        ParameterError: The target has no such activations.
    """
    row = TARGETS[target]
    if activations in {"auto", *row.activations}:
        kind = "" if activations == "auto" else activations
        return Rules(row, symmetric, activations=kind)
    raise ParameterError(
        f"{row.label} takes no {activations} activations",
        where=f"target={target},activations={activations}",
        allowed=", ".join(row.activations),
        hint="leave activations= out to get what the target likes best",
    )
