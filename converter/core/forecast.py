"""What a pass would bring, found without running it: an optional side of a pass.

``convert inspect`` asks every pass that offers it. A pass needs no base class for it, only the
method; it is found through the registry like the pass itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import onnx_ir as ir

UNASKED_BYTES = 256 << 20
"""Bytes of tensors up to which inspection asks passes by itself what they would bring."""


@dataclass(frozen=True)
class Saving:
    """What storing one tensor in another way would bring.

    Attributes:
        subject: Name of the tensor, or of several that would share a decoder.
        form: How it would be stored, as in the report of the pass.
        before: Bytes in the file now.
        after: Bytes in the file then, tables and nodes included.
    """

    subject: str
    form: str
    before: int
    after: int


@dataclass(frozen=True)
class Forecast:
    """What a pass would bring.

    Attributes:
        savings: One entry per tensor or group that would change.
        notes: Sentences for the user, e.g. what other parameters would bring.
    """

    savings: tuple[Saving, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def saved(self) -> int:
        """Bytes that the file would lose."""
        return sum(one.before - one.after for one in self.savings)


@runtime_checkable
class Forecaster(Protocol):
    """A pass that can tell what it would bring."""

    def forecast(self, model: ir.Model) -> Forecast:
        """Return what the pass would store differently, with these parameters.

        The model is not changed, nothing is run in onnxruntime, and no more than one tensor at a
        time is in memory.
        """
