"""Facts computed from a model on demand and cached until a pass modifies it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection

    import onnx_ir as ir

T = TypeVar("T")


class Analysis(ABC, Generic[T]):
    """A pure function of a model. Instances with equal :meth:`key` share one cached result."""

    @abstractmethod
    def run(self, model: ir.Model) -> T:
        """Compute the result. Must not change the model."""

    def key(self) -> object:
        """Distinguishes analyses of one class with different parameters. Hashable."""
        return None


class AnalysisCache:
    """Results of analyses of the model as it stands; one model at a time."""

    def __init__(self) -> None:
        self._model: object = None
        self._results: dict[tuple[type, object], Any] = {}

    def get(self, analysis: Analysis[T], model: ir.Model) -> T:
        """Return the cached result or compute it."""
        if self._model is not model:
            self._results.clear()
            self._model = model
        slot = (type(analysis), analysis.key())
        if slot not in self._results:
            self._results[slot] = analysis.run(model)
        result: T = self._results[slot]
        return result

    def invalidate(self, preserved: Collection[type] = ()) -> None:
        """Forget all results except those of the preserved analysis classes."""
        self._results = {slot: v for slot, v in self._results.items() if slot[0] in preserved}
