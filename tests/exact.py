"""What the tests of exact passes share: a context, random feeds, and everything that must hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import support

from converter.core.context import Context
from converter.core.contract import Outcome, Pass
from converter.errors import ModelError
from converter.pipeline.interface import interface_of, port_changes, version_changes

Feed = dict[str, Any]


class InProcess:
    """Services without a child process; failures come as the errors of the real ones."""

    def __init__(self) -> None:
        self.runs = 0

    def run(self, model: ir.Model, feeds: Any, outputs: Any = None) -> list[dict[str, np.ndarray]]:
        self.runs += 1
        try:
            return [support.run(model, feed) for feed in feeds]
        except Exception as error:
            raise ModelError(f"cannot run: {error}") from error

    def collect(self, model: ir.Model, requests: Any, dataset: Any) -> Any:
        raise NotImplementedError


def context() -> Context:
    return Context(services=InProcess())


def size(model: ir.Model) -> int:
    """Bytes of the model as our own writer writes it."""
    from converter.core.graph import tensors
    from converter.io.skeleton import to_skeleton

    skeleton = to_skeleton(model)[0]
    inline = _inline(skeleton.graph.node, skeleton.graph.initializer)
    inline += sum(_inline(function.node, ()) for function in skeleton.functions)
    return skeleton.ByteSize() - inline + sum(tensor.nbytes for tensor in tensors(model))


def _inline(nodes: Any, initializers: Any) -> int:
    total = sum(len(tensor.raw_data) for tensor in initializers)
    for node in nodes:
        for attribute in node.attribute:
            total += len(attribute.t.raw_data)
            if attribute.HasField("g"):
                total += _inline(attribute.g.node, attribute.g.initializer)
    return total


def content(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def apply(pass_: Pass, model: ir.Model) -> Outcome:
    """Run the pass in place and check all that any model must keep."""
    before, twin = interface_of(model), model.clone()
    nbytes, bytes_before = size(model), content(model)
    outcome = pass_.apply(model, context())
    after = interface_of(model)
    assert port_changes(before, after) + version_changes(before, after) == ()
    assert outcome.modified == (content(model) != bytes_before), outcome.counts
    assert size(model) <= nbytes
    assert sum(outcome.counts.values()) > 0 or not outcome.modified
    again = model.clone()
    second = pass_.apply(again, context())
    assert not second.modified, second.counts
    assert content(again) == content(model)
    assert content(twin) == bytes_before
    if _valid(twin):
        onnx.checker.check_model(ir.to_proto(model))
    return outcome


def _valid(model: ir.Model) -> bool:
    try:
        onnx.checker.check_model(ir.to_proto(model))
    except onnx.checker.ValidationError:
        return False
    return True


def feed_for(model: ir.Model, seed: int = 0, free: int = 2) -> Feed:
    """Random inputs; free dimensions get size ``free``."""
    rng = np.random.default_rng(seed)
    feed: Feed = {}
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if not isinstance(value.type, ir.TensorType) or value.dtype is None:
            raise NotImplementedError(f"no random {value.type}")
        shape = [d if isinstance(d, int) and d >= 0 else free for d in value.shape or ()]
        feed[value.name or ""] = _random(rng, shape, value.dtype)
    return feed


def _random(rng: np.random.Generator, shape: list[int], dtype: ir.DataType) -> Any:
    if dtype == ir.DataType.STRING:
        return np.asarray(rng.choice(["a", "b", "cc"], shape), dtype=object)
    kind = dtype.numpy()
    if kind == np.bool_:
        return np.asarray(rng.random(shape) > 0.5)
    if kind.kind in "iu":
        return np.asarray(rng.integers(0, 3, shape)).astype(kind)
    return np.asarray(rng.standard_normal(shape)).astype(kind)


def assert_equal_outputs(
    before: ir.Model, after: ir.Model, feed: Feed, *, tolerance: float = 0.0
) -> None:
    """Same names, types, shapes and values; ``tolerance`` is a share of the largest."""
    old, new = support.run(before, feed), support.run(after, feed)
    assert list(old) == list(new)
    for name, expected in old.items():
        actual = new[name]
        if not isinstance(expected, np.ndarray):
            _assert_nested(actual, expected, tolerance, name)
            continue
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), name
        if tolerance and expected.dtype.kind == "f":
            finite = np.abs(expected[np.isfinite(expected)].astype(np.float64))
            bound = tolerance * max(1.0, float(finite.max()) if finite.size else 0.0)
            np.testing.assert_allclose(actual, expected, rtol=0, atol=bound, err_msg=name)
        else:
            np.testing.assert_array_equal(actual, expected, err_msg=name)


def _assert_nested(actual: Any, expected: Any, tolerance: float, name: str) -> None:
    """The same for sequences and maps, whose numbers are plain floats."""
    if isinstance(expected, dict):
        actual, expected = list(actual.items()), list(expected.items())
    if isinstance(expected, list | tuple):
        assert len(actual) == len(expected), name
        for one, other in zip(actual, expected, strict=True):
            _assert_nested(one, other, tolerance, name)
    elif tolerance and isinstance(expected, float):
        assert abs(actual - expected) <= tolerance * max(1.0, abs(expected)), name
    else:
        assert repr(actual) == repr(expected), name


def check(pass_: Pass, model: ir.Model, *, tolerance: float = 0.0, free: int = 3) -> Outcome:
    """Run the pass on a clone, compare outputs, then leave ``model`` rewritten."""
    before = model.clone()
    outcome = apply(pass_, model)
    for seed in (0, 1):
        feed = feed_for(before, seed, free)
        assert_equal_outputs(before, model, feed, tolerance=tolerance)
    return outcome
