"""The backend cases of the onnx package, as models and arrays, and variants that invite folding."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from torture.judge import judge, run_file, subject

from converter.errors import InvalidModelError

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
VARIANTS = ("as it is", "all inputs constant", "all but the first constant")
_CONSTANT_FROM_IR = 8
_NEWEST_IR = 13
_NEWEST_OPSET = 26
_TWO_HALVES = 2e-3  # two units in the last place of float16: other operators round elsewhere
_LARGEST = 1 << 22  # bytes of inputs: more only takes time


@dataclass(frozen=True)
class Case:
    """One model with inputs and the outputs that onnx expects.

    Attributes:
        name: Name of the case and of its variant.
        model: The model.
        feed: Inputs by name.
        expected: Outputs in order.
        rtol: Relative tolerance of the case.
        atol: Absolute tolerance of the case.
    """

    name: str
    model: onnx.ModelProto
    feed: dict[str, Any]
    expected: list[Any]
    rtol: float
    atol: float


@lru_cache(maxsize=1)
def originals() -> tuple[Case, ...]:
    """Return all cases of the installed onnx package whose inputs are at hand."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        loaded = [case for kind in KINDS for case in load_model_tests(kind=kind)]
        return tuple(case for made in loaded for case in _read(made))


def _read(made: Any) -> Iterator[Case]:
    if made.model is not None:
        model, sets = made.model, made.data_sets
    else:
        folder = Path(made.model_dir)
        model = onnx.load(folder / "model.onnx")
        sets = [_read_set(model, data) for data in sorted(folder.glob("test_data_set_*"))]
    for inputs, outputs in sets or ():
        _lower_versions(model)
        names = [value.name for value in model.graph.input]
        feed = dict(zip(names, (_plain(value) for value in inputs), strict=False))
        expected = [_plain(value) for value in outputs]
        yield Case(made.name, model, feed, expected, made.rtol, made.atol)
        return


def _lower_versions(model: onnx.ModelProto) -> None:
    """Ask for versions that onnxruntime loads; most new ones only add element types."""
    model.ir_version = min(model.ir_version, _NEWEST_IR)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = min(entry.version, _NEWEST_OPSET)


def _read_set(model: onnx.ModelProto, folder: Path) -> tuple[list[Any], list[Any]]:
    def values(stem: str, ports: Any) -> list[Any]:
        files = sorted(folder.glob(f"{stem}_*.pb"), key=lambda f: int(f.stem.split("_")[1]))
        return [_value(f, port.type) for f, port in zip(files, ports, strict=False)]

    return values("input", model.graph.input), values("output", model.graph.output)


def _value(file: Path, kind: onnx.TypeProto) -> Any:
    if kind.HasField("sequence_type"):
        sequence = onnx.SequenceProto.FromString(file.read_bytes())
        return numpy_helper.to_list(sequence)
    return numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes()))


def _plain(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, np.generic | int | float | bool):
        return np.asarray(value)
    return value


def variants(case: Case) -> Iterator[Case]:
    """Yield the case and copies of it in which inputs are constants."""
    yield case
    if not case.feed or not all(isinstance(value, np.ndarray) for value in case.feed.values()):
        return
    if sum(value.nbytes for value in case.feed.values()) > _LARGEST:
        return
    names = list(case.feed)
    yield _frozen(case, names, VARIANTS[1])
    if len(names) > 1:
        yield _frozen(case, names[1:], VARIANTS[2])


def _frozen(case: Case, names: list[str], variant: str) -> Case:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.ir_version = max(model.ir_version, _CONSTANT_FROM_IR)
    kept = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(
        numpy_helper.from_array(
            np.ascontiguousarray(case.feed[name]).reshape(case.feed[name].shape), name
        )
        for name in names
    )
    feed = {name: value for name, value in case.feed.items() if name not in names}
    return Case(f"{case.name}, {variant}", model, feed, case.expected, case.rtol, case.atol)


@dataclass
class Tally:
    """What became of cases.

    Attributes:
        passed: Cases that onnxruntime passes before and after.
        ran: Cases that it runs, with other results than expected, and equally so afterwards.
        skipped: Cases that it cannot load or run, and why; only their structure was checked.
        complaints: What is wrong, by name of the case.
    """

    passed: int = 0
    ran: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    complaints: dict[str, list[str]] = field(default_factory=dict)


def examine(case: Case, tally: Tally, passes: str = "simplify") -> None:
    """Apply the passes to a case and note what became of it."""
    feeds = [case.feed] if all(v is not None for v in case.feed.values()) else []
    try:
        _examine(case, feeds, tally, passes)
    except InvalidModelError as error:
        tally.skipped[case.name] = error.what


def _examine(case: Case, feeds: list[Any], tally: Tally, passes: str) -> None:
    with subject(case.model, feeds) as given:
        complaints = judge(given, passes)
        before = given.expected
        if before is None or not before or isinstance(before[0], Exception):
            error = before[0] if before else given.reason or "an optional input without value"
            tally.skipped[case.name] = str(error).splitlines()[0]
        elif _passes(case, before[0]):
            tally.passed += 1
            if not complaints and not _passes(case, _run_result(given)):
                complaints = [f"{passes}: it no longer passes"]
        else:
            tally.ran += 1
    if complaints:
        tally.complaints[case.name] = complaints


def _run_result(given: Any) -> list[Any]:
    return list(run_file(given.path.with_name("result.onnx"), given.feeds)[0])


def _passes(case: Case, outputs: list[Any]) -> bool:
    try:
        for expected, actual in zip(case.expected, outputs, strict=True):
            _assert_similar(expected, actual, case.rtol, case.atol)
    except (AssertionError, TypeError, ValueError):
        return False
    return True


def _assert_similar(expected: Any, actual: Any, rtol: float, atol: float) -> None:
    if isinstance(expected, list | tuple):
        for one, other in zip(expected, actual, strict=True):
            _assert_similar(one, other, rtol, atol)
        return
    if expected is None or actual is None:
        assert expected is actual
        return
    expected, actual = np.asarray(expected), np.asarray(actual)
    assert expected.shape == actual.shape
    assert expected.dtype == actual.dtype or expected.dtype.kind in "OUV"
    if expected.dtype.kind in "OU":
        np.testing.assert_array_equal(actual.astype(str), expected.astype(str))
    else:
        kind = np.float64 if expected.dtype.kind == "V" else expected.dtype
        if expected.dtype == np.float16:
            rtol = max(rtol, _TWO_HALVES)
        np.testing.assert_allclose(actual.astype(kind), expected.astype(kind), rtol, atol)
