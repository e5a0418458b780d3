"""Calibration samples and a context for tests of quantization."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import support

from converter.calibration.collect import collect
from converter.core.context import Batch, Context, RunSettings
from converter.execution.runner import with_outputs


class Samples:
    """Random normal feeds, or the given ones."""

    synthetic = False
    description = "test samples"

    def __init__(self, feeds: Sequence[dict[str, np.ndarray]]) -> None:
        self.feeds = feeds
        self.samples = len(feeds)

    def __len__(self) -> int:
        return len(self.feeds)

    def __iter__(self) -> Iterator[Batch]:
        return iter([Batch(feed) for feed in self.feeds])


class InProcess:
    """Services that run the trusted models of tests."""

    def run(
        self, model: ir.Model, feeds: Iterable[Any], outputs: Sequence[str] | None = None
    ) -> list[dict[str, np.ndarray]]:
        return support.run_all(with_outputs(model, outputs), feeds)

    def collect(self, model: ir.Model, requests: Sequence[Any], dataset: Any) -> Any:
        return collect(model, requests, dataset, settings=RunSettings())


def feeds_for(model: ir.Model, count: int = 8) -> list[dict[str, np.ndarray]]:
    """Normal float32 arrays; dynamic dimensions become 2."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        feed = {}
        for value in model.graph.inputs:
            if value.name in model.graph.initializers:
                continue
            assert value.shape is not None
            shape = [d if isinstance(d, int) else 2 for d in value.shape]
            feed[value.name or ""] = rng.standard_normal(shape).astype(np.float32)
        made.append(feed)
    return made


def context_for(model: ir.Model, feeds: Sequence[Any] | None = None, **options: Any) -> Context:
    """A context with samples for the model."""
    dataset = Samples(feeds_for(model) if feeds is None else feeds)
    return Context(dataset=dataset, services=InProcess(), **options)
