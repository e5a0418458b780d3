"""Applies passes to any model and lists everything that is wrong with the result."""

# ruff: noqa: BLE001 - whatever a library raises is a finding, or a reason why there is none

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from exact import InProcess
from torture.rounding import Explanation

from converter.core import registry
from converter.core.context import Context
from converter.core.contract import Pass
from converter.core.spec import parse
from converter.errors import ConverterError, PreconditionError
from converter.io.formats import load, save
from converter.pipeline.interface import interface_of, port_changes, version_changes
from converter.pipeline.structure import check_structure
from passes.rewriting.purity import RANDOM

Feed = Mapping[str, Any]
MOVING = frozenset({"eliminate", "deduplicate"})
"""Passes that only move, merge and remove: their outputs are equal to the last bit."""


def exact_passes() -> tuple[str, ...]:
    """Return the passes that promise equal outputs, keep the signature and need no data."""
    kinds = [kind for kind in map(registry.get, registry.names()) if not kind.needs]
    return tuple(
        sorted(k.name for k in kinds if k.exact and not k.changes_interface and k.name != "freeze")
    )


def run_file(path: Path, feeds: Sequence[Feed], *, optimized: bool = False) -> list[Any]:
    """Run a model file; one list of outputs per feed, or the error that the feed caused.

    Raises:
        Exception: onnxruntime cannot load the model.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    results: list[Any] = []
    for feed in feeds:
        try:
            results.append(session.run(None, dict(feed)))
        except Exception as error:
            results.append(error)
    return results


@dataclass
class Subject:
    """A model in a file, with what onnxruntime makes of it.

    Attributes:
        path: The model as it was given.
        feeds: Inputs to compare on.
        expected: Outputs per feed; None where onnxruntime cannot load the model.
        reason: Why it cannot.
        noisy: Indices of the outputs that depend on random operators.
    """

    path: Path
    feeds: Sequence[Feed]
    expected: list[Any] | None = None
    reason: str = ""
    noisy: set[int] = field(default_factory=set)
    model: ir.Model = field(init=False)
    nbytes: int = field(init=False)
    nodes: int = field(init=False)
    valid: bool = field(init=False)

    def __post_init__(self) -> None:
        self.model = load(self.path)
        try:
            self.expected = run_file(self.path, self.feeds)
            self.noisy = _noisy_outputs(self.path)
        except Exception as error:
            self.reason = str(error).splitlines()[0]
        copy = self.path.with_name("copied.onnx")
        self.nbytes = _write(self.model, copy)
        self.nodes = count_nodes(copy)
        self.valid = is_valid(copy)


def _noisy_outputs(path: Path) -> set[int]:
    """Return the outputs that depend on random operators, by name and so a few too many."""
    proto = onnx.load(path)
    random = {function.name for function in proto.functions if _is_random(function.node, set())}
    tainted: set[str] = set()
    for node in proto.graph.node:
        if not tainted.isdisjoint(_read(node)) or _is_random([node], random):
            tainted.update(node.output)
    return {index for index, port in enumerate(proto.graph.output) if port.name in tainted}


def _is_random(nodes: Iterable[onnx.NodeProto], functions: set[str]) -> bool:
    return any(
        node.op_type in RANDOM
        or node.op_type in functions
        or (node.op_type == "Dropout" and len(node.input) > 2)
        or any(_is_random(graph.node, functions) for graph in _graphs(node))
        for node in nodes
    )


def _read(node: onnx.NodeProto) -> set[str]:
    inner = (_read(child) for graph in _graphs(node) for child in graph.node)
    return set(node.input).union(*inner)


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [
        graph
        for attribute in node.attribute
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else []))
    ]


@contextlib.contextmanager
def subject(source: onnx.ModelProto | Path, feeds: Sequence[Feed]) -> Iterator[Subject]:
    """Put a model into a folder of its own for as long as it is looked at."""
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        path = Path(folder, "model.onnx")
        if isinstance(source, Path):
            source = onnx.load(source)
        path.write_bytes(source.SerializeToString())
        yield Subject(path, feeds)


def _write(model: ir.Model, path: Path) -> int:
    saved = save(model, path, external_data="no")
    return sum(file.stat().st_size for file in (saved.path, *saved.data_paths))


def count_nodes(path: Path) -> int:
    """Count the nodes of all scopes of a file."""
    proto = onnx.load(path, load_external_data=False)
    return _count(proto.graph.node) + sum(_count(f.node) for f in proto.functions)


def _count(nodes: Any) -> int:
    return len(nodes) + sum(_count(graph.node) for node in nodes for graph in _graphs(node))


def is_valid(path: Path) -> bool:
    """Tell whether onnx.checker accepts a file."""
    try:
        onnx.checker.check_model(str(path))
    except Exception:
        return False
    return True


def apply_passes(model: ir.Model, passes: Sequence[Pass], *, services: Any = None) -> ir.Model:
    """Run the passes on a clone as the pipeline does, without its comparison of outputs."""
    model = model.clone()
    context = Context(services=services or InProcess())
    for pass_ in passes:
        before = interface_of(model)
        with contextlib.suppress(_Unmet):
            _requires(pass_, model, context)
            pass_.apply(model, context)
        check_structure(model, pass_.name)
        after = interface_of(model)
        changes = port_changes(before, after)
        if not pass_.changes_interface:
            changes += version_changes(before, after)
        if changes:
            raise AssertionError(f"{pass_.name} changed the signature: {changes}")
    return model


class _Unmet(Exception):
    """A pass does not apply to the model, and says so."""


def _requires(pass_: Pass, model: ir.Model, context: Context) -> None:
    try:
        pass_.requires(model, context)
    except ConverterError as error:
        raise _Unmet from error


def judge(
    given: Subject,
    text: str,
    *,
    tolerance: float | None = None,
    services: Any = None,
    loaded_optimized: bool = False,
) -> list[str]:
    """Apply the passes and return all complaints; none means that the result is as it must be.

    Args:
        given: The model.
        text: The passes in text form.
        tolerance: Share of an output's largest value; default: 0 where things only move.
        services: What runs constant sub-graphs.
        loaded_optimized: Also load the result with all optimizations of onnxruntime.
    """
    passes = parse(text)
    if tolerance is None:
        tolerance = 0.0 if {p.name for p in passes} <= MOVING else 1e-5
    bigger = any(p.changes_interface for p in passes)  # inlined, or of another opset
    try:
        model = apply_passes(given.model, passes, services=services)
    except PreconditionError:
        return []  # a pass that may refuse, says why, and leaves no result
    except Exception as error:
        return [f"{text}: {type(error).__name__}: {error}"]
    target = given.path.with_name("result.onnx")
    nbytes = _write(model, target)
    found = []
    renames = any(p.name == "equalize" for p in passes)  # rescaled values get longer names
    if not (bigger or renames) and nbytes > given.nbytes:
        found.append(f"grew from {given.nbytes} to {nbytes} bytes")
    if not bigger and (nodes := count_nodes(target)) > given.nodes:
        found.append(f"grew from {given.nodes} to {nodes} nodes")
    if given.valid and not is_valid(target):
        found.append(f"onnx.checker: {_complaint_of_checker(target)}")
    if given.expected is not None:
        found += compare_file(given, target, tolerance, loaded_optimized=loaded_optimized)
    return [f"{text}: {complaint}" for complaint in found]


def _complaint_of_checker(path: Path) -> str:
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        return str(error).splitlines()[0]
    return "valid"


def compare_file(
    given: Subject, target: Path, tolerance: float, *, loaded_optimized: bool = False
) -> list[str]:
    """Run a file on the feeds of the original; returns what differs."""
    assert given.expected is not None
    try:
        actual = run_file(target, given.feeds)
        if loaded_optimized:
            run_file(target, (), optimized=True)
    except Exception as error:
        return [f"onnxruntime cannot load it: {error}"]
    names = [value.name or "" for value in given.model.graph.outputs]
    found: list[str] = []
    for index, (before, after) in enumerate(zip(given.expected, actual, strict=True)):
        if isinstance(before, Exception):
            continue
        if isinstance(after, Exception):
            found.append(f"feed {index}: it fails: {after}")
            continue
        for place, (expected, value) in enumerate(zip(before, after, strict=True)):
            if place in given.noisy:
                difference = compare(_form(expected), _form(value), tolerance)
            else:
                difference = compare(expected, value, tolerance)
            if difference and tolerance:
                rounding = Explanation(given.path, given.feeds[index], place)
                difference = "" if rounding.covers(expected, value) else difference
            if difference:
                found.append(f"feed {index}: output {names[place]!r}: {difference}")
    return found


def _form(value: Any) -> Any:
    """Return what is left to compare of a random output."""
    return (value.dtype, value.shape) if isinstance(value, np.ndarray) else type(value)


def compare(expected: Any, actual: Any, tolerance: float) -> str:
    """Describe how two values of onnxruntime differ; empty if they do not."""
    expected, actual = _plain(expected), _plain(actual)
    if isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return f"{len(actual)} elements instead of {len(expected)}"
        pairs = zip(expected, actual, strict=True)
        return next(filter(None, (compare(a, b, tolerance) for a, b in pairs)), "")
    if isinstance(expected, dict) and isinstance(actual, dict) and list(expected) == list(actual):
        return compare(*(np.array(list(d.values())) for d in (expected, actual)), tolerance)
    if not isinstance(expected, np.ndarray) or not isinstance(actual, np.ndarray):
        return "" if repr(expected) == repr(actual) else f"{actual!r} instead of {expected!r}"
    if (expected.dtype, expected.shape) != (actual.dtype, actual.shape):
        return f"{actual.dtype}{actual.shape} instead of {expected.dtype}{expected.shape}"
    return _compare_arrays(expected, actual, tolerance)


def _plain(value: Any) -> Any:
    """Return what can be compared of a sparse tensor: its shape and its stored values."""
    if hasattr(value, "dense_shape"):
        return [np.array(value.dense_shape()), np.array(value.values())]
    return value


def _compare_arrays(expected: np.ndarray, actual: np.ndarray, tolerance: float) -> str:
    if expected.dtype.kind not in "fV":
        same = expected == actual
        if bool(np.all(same)):
            return ""
        where = np.argwhere(~same)[0]
        index = tuple(int(i) for i in where)
        return f"at {index} {actual[index]!r} instead of {expected[index]!r}"
    if tolerance == 0 or expected.dtype.kind == "V":
        return _compare_bits(expected, actual)
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return f"finite in other places: {b[np.isfinite(a) != np.isfinite(b)][:3]}"
    mask = np.isfinite(a)
    if not np.array_equal(a[~mask], b[~mask], equal_nan=True):
        return "other infinities"
    if not mask.any():
        return ""
    unit = max(1.0, float(np.finfo(expected.dtype).eps / np.finfo(np.float32).eps))
    bound = tolerance * unit * max(1e-6, float(np.abs(a[mask]).max()))
    worst = float(np.abs(a[mask] - b[mask]).max())
    return "" if worst <= bound else f"differs by {worst:.3g}, allowed {bound:.3g}"


def _compare_bits(expected: np.ndarray, actual: np.ndarray) -> str:
    """All bits equal, except that any NaN stands for any other."""
    kind = np.dtype(f"u{expected.dtype.itemsize}")
    same = np.ascontiguousarray(expected).view(kind) == np.ascontiguousarray(actual).view(kind)
    if expected.dtype.kind == "f":
        same |= np.isnan(expected) & np.isnan(actual)
    if bool(np.all(same)):
        return ""
    index = tuple(int(i) for i in np.argwhere(~same)[0])
    return f"at {index} {actual[index]!r} instead of {expected[index]!r}, bit for bit"
