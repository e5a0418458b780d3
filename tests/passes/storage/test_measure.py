"""When a packed model counts as slower than the plain one."""

import numpy as np
import pytest
from support import model_from_text

from converter.core.context import Context
from converter.measure import latency
from converter.pipeline.services import LocalServices
from passes.storage.measure import RunTime, run_time


@pytest.mark.parametrize(
    ("ratio", "difference", "noise", "beyond"),
    [
        (1.20, 1e-3, 1.0, True),
        (1.20, 1e-3, 1.25, False),  # the plain model differs as much from itself
        (1.20, 1e-5, 1.0, False),  # too short to tell
        (1.02, 1e-3, 1.0, False),
    ],
)
def test_a_difference_counts_when_it_is_more_than_noise(ratio, difference, noise, beyond):
    assert RunTime(ratio, difference, 9, noise).beyond(1.03) == beyond


@pytest.mark.parametrize(("slow", "calls"), [(0, 1), (2, 3), (99, 6)])
def test_models_are_opened_anew_until_nothing_shows(slow, calls, monkeypatch):
    model = model_from_text("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    context = Context()
    context.services = LocalServices(context.settings)
    seen = []

    def bench(paths, *_, **__):
        seen.append(list(paths))
        times = np.asarray([1e-3, 1.3e-3 if len(seen) <= slow else 1e-3, 1e-3])
        measured = latency.summarize(["plain", "packed", "plain"], np.tile(times[:, None], 3))
        return latency.LatencyComparison(measured)

    monkeypatch.setattr(latency, "bench", bench)
    found = run_time(model, model, 1.03, context)
    assert len(seen) == calls
    assert all(paths[0] == paths[2] != paths[1] for paths in seen)
    assert found is not None
    assert found.beyond(1.03) == (slow >= calls)
