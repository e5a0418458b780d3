"""Range methods in ``quantize``: what is gathered for each, and what they do for outliers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import support

from converter.core.select import Selection
from passes.affine.observed import Choice, Observed
from passes.quantize import Quantize

sys.path.insert(0, str(Path(__file__).parent))
from samples import context_for

RNG = np.random.default_rng(3)
WEIGHT = (RNG.standard_normal((8, 8)) / 3).astype(np.float32)


def model() -> ir.Model:
    text = "g (float[N,8] x) => (float[N,8] y) { y = Gemm(x, w) }"
    return support.model_from_text(text, w=WEIGHT)


def feeds(odd: float = 0.0) -> list[dict[str, np.ndarray]]:
    made = [{"x": RNG.standard_normal((64, 8)).astype(np.float32)} for _ in range(16)]
    made[3]["x"][5, 2] = odd or made[3]["x"][5, 2]
    return made


def test_nothing_is_gathered_that_no_method_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    for method in ("minmax", "average", "mse"):
        context = context_for(model(), feeds())
        services: Any = context.services
        collect = services.collect

        def watched(*arguments: Any, collect: Any = collect) -> Any:
            asked.append(sorted({request.kind for request in arguments[1]}))
            return collect(*arguments)

        monkeypatch.setattr(services, "collect", watched)
        Quantize(method=method, speed="max").apply(model(), context)  # type: ignore[arg-type]
    assert asked == [["minmax"], ["average", "minmax"], ["histogram", "minmax"]]


@pytest.mark.parametrize("method", ["average", "percentile", "entropy"])
def test_one_odd_element_does_not_decide_the_grid(method: str) -> None:
    data = feeds(odd=400.0)
    float_model, ordinary = model(), data[0]["x"]
    expected = ordinary @ WEIGHT
    errors = {}
    for name in ("minmax", method):
        quantized = float_model.clone()
        settings: Any = {"method": name, "percentile": 99.9}
        Quantize(speed="max", **settings).apply(quantized, context_for(quantized, data))
        found = support.run(quantized, {"x": ordinary})["y"]
        errors[name] = float(np.square(found - expected).mean())
    assert errors[method] < errors["minmax"] / 4


def test_one_run_serves_every_method() -> None:
    methods = ("minmax", "average", "percentile", "mse", "entropy")
    context, choice = context_for(model(), feeds(odd=9.0)), Choice(methods, 99.9, everything=True)
    observed = Observed(model(), Selection((), ()), context, choice)
    plan = observed.plan()
    widths = {m: observed.grids(plan, m)["x"].scale for m in methods}
    assert max(widths, key=lambda m: widths[m]) == "minmax"
    assert len(set(widths.values())) == len(methods)
    wider = observed.grids(plan, "percentile", 99.999)["x"].scale
    assert widths["percentile"] < wider <= widths["minmax"]
