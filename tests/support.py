"""Helpers of the tests: models from text, plain runs with onnxruntime, comparison."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

HEADER = '<ir_version: 8, opset_import: ["" : {opset}]>\n'


def model_from_text(text: str, *, opset: int = 17, **constants: np.ndarray) -> ir.Model:
    """Read a graph in ONNX text form; named arrays become initializers.

    The text is the graph alone, e.g. ``g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }``.
    """
    source = text if text.lstrip().startswith("<") else HEADER.format(opset=opset) + text
    proto = onnx.parser.parse_model(source)
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return ir.from_proto(proto)


def run(
    model: ir.Model | onnx.ModelProto | Path | str, feed: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Run with onnxruntime, optimizations off; returns outputs by name."""
    return run_all(model, [feed])[0]


def run_all(
    model: ir.Model | onnx.ModelProto | Path | str, feeds: Iterable[Mapping[str, Any]]
) -> list[dict[str, np.ndarray]]:
    """Run once per feed, in one session."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if isinstance(model, ir.Model):
        model = ir.to_proto(model)
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return [dict(zip(names, session.run(names, dict(feed)), strict=True)) for feed in feeds]


def assert_same_outputs(
    before: ir.Model,
    after: ir.Model,
    feed: Mapping[str, Any],
    *,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Both models give the same names, types, shapes and values (up to float32 rounding)."""
    old, new = run(before, feed), run(after, feed)
    assert list(old) == list(new)
    for name, expected in old.items():
        actual = new[name]
        assert actual.dtype == expected.dtype, name
        assert actual.shape == expected.shape, name
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=name)


def obey_interrupts() -> None:
    """Run in a child before its program: a suite started in the background ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def op_types(model: ir.Model) -> list[str]:
    """Operator types of the main graph in order."""
    return [node.op_type for node in model.graph]
