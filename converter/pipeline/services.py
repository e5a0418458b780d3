"""The services of a context: everything that runs a model, each call in a child process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from converter.core.observe import Progress, Silent

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from converter.calibration.store import Store
    from converter.core.context import Arrays, Dataset, RunSettings


@dataclass
class LocalServices:
    """Runs models on this machine; implements :class:`converter.core.context.Services`."""

    settings: RunSettings
    progress: Progress = field(default_factory=Silent)
    store: Store | None = None

    def run(
        self, model: ir.Model, feeds: Iterable[Arrays], outputs: Sequence[str] | None = None
    ) -> list[dict[str, np.ndarray[Any, Any]]]:
        """Run ``model`` once per feed."""
        from converter.execution.runner import run_model

        return run_model(model, feeds, outputs, settings=self.settings)

    def collect(
        self, model: ir.Model, requests: Sequence[Any], dataset: Dataset
    ) -> Mapping[Any, Any]:
        """Collect statistics of values of ``model`` over ``dataset``, unless they are known."""
        from converter.calibration.collect import collect
        from converter.calibration.store import Store

        self.store = self.store or Store()
        known = self.store.known(model, dataset, requests)
        missing = [request for request in requests if request not in known]
        if missing:
            found = collect(model, missing, dataset, settings=self.settings, progress=self.progress)
            self.store.add(found)
            known.update(found)
        return known
