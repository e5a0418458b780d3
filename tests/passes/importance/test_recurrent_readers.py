"""Recurrent layers read what comes in and their own states: both count when units are chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exact import InProcess
from support import model_from_text, run

from converter.core.context import Batch, Context, RunSettings
from converter.coupling.couple import couple
from converter.coupling.shapes import observe_shapes
from passes.importance.observe import observe, parts
from passes.importance.readers import layer_of

RNG = np.random.default_rng(2)
STEPS, BATCH, INPUTS, MIDDLE, HIDDEN = 6, 16, 4, 5, 6


def draw(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.5, shape).astype(np.float32)


MODEL = model_from_text(
    f"""net (float[{STEPS},{BATCH},{INPUTS}] x) => (float[{STEPS},{BATCH},3] y) {{
        a = MatMul (x, A)
        r = Relu (a)
        h = GRU <hidden_size = {HIDDEN}> (r, W, R, B)
        s = Squeeze (h, one)
        y = MatMul (s, P)
    }}""",
    A=draw(INPUTS, MIDDLE),
    W=draw(1, 3 * HIDDEN, MIDDLE),
    R=draw(1, 3 * HIDDEN, HIDDEN),
    B=draw(1, 6 * HIDDEN),
    P=draw(HIDDEN, 3),
    one=np.array([1]),
)


def test_inputs_and_states_have_gram_matrices(tmp_path: Path) -> None:
    shapes = observe_shapes(MODEL, Context(services=InProcess()))
    coupling = couple(MODEL, shapes)
    feed = {"x": RNG.normal(size=(STEPS, BATCH, INPUTS)).astype(np.float32)}
    seen = observe(
        MODEL,
        coupling.components,
        [Batch(feed)],
        settings=RunSettings(),
        folder=tmp_path,
    )
    probe = MODEL.clone()
    probe.graph.outputs.extend(v for n in probe.graph for v in n.outputs if v.name in ("r", "h"))
    values = run(probe, feed)
    expected = {1: values["r"].reshape(-1, MIDDLE), 2: values["h"].reshape(-1, HIDDEN)}
    checked = 0
    for component in coupling.components:
        readers, rest = parts(component, coupling, seen.grams, compensate=True)
        assert not rest
        for part in readers:
            if part.layer.node.op_type != "GRU":
                continue
            rows = expected[part.layer.constant].astype(np.float64)
            np.testing.assert_allclose(part.reader.gram, rows.T @ rows / len(rows), rtol=1e-5)
            assert part.reader.weight.shape == (3 * HIDDEN, rows.shape[1])
            checked += 1
    assert checked == 2


@pytest.mark.parametrize(("constant", "name"), [(1, "W"), (2, "R")])
def test_weights_go_there_and_back(constant: int, name: str) -> None:
    shapes = observe_shapes(MODEL, Context(services=InProcess()))
    sinks = [sink for component in couple(MODEL, shapes).components for sink in component.sinks]
    layers = [layer_of(sink) for sink in sinks if sink.node.op_type == "GRU"]
    (layer,) = (each for each in layers if each is not None and each.constant == constant)
    value = MODEL.graph.initializers[name].const_value
    assert value is not None
    np.testing.assert_array_equal(layer.backward(layer.matrices()), value.numpy())
