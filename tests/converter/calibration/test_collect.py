"""Collecting statistics in one pass over the samples, in a child process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest
import support

from converter.calibration import augment as module
from converter.calibration.augment import augment
from converter.calibration.collect import collect
from converter.calibration.minmax import MinMax
from converter.calibration.statistic import Request
from converter.core.context import Batch, RunSettings
from converter.errors import DataError

TEXT = """g (float[N,4] x) => (float[N,4] z) {
    y = Relu(x)
    z = Neg(y)
}"""


class Samples:
    """Feeds of one input."""

    synthetic = False
    description = "test samples"

    def __init__(self, *arrays: np.ndarray) -> None:
        self.arrays = arrays
        self.samples = len(arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __iter__(self) -> Iterator[Batch]:
        return iter([Batch({"x": array}) for array in self.arrays])


DATA = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def gather(model: ir.Model, *names: str, data: Samples | None = None) -> dict[str, MinMax]:
    dataset = Samples(*np.split(DATA, 6)) if data is None else data
    found = collect(model, [Request(n) for n in names], dataset, settings=RunSettings())
    return {request.value_name: statistic for request, statistic in found.items()}


def test_inputs_inner_values_and_outputs() -> None:
    found = gather(support.model_from_text(TEXT), "x", "y", "z")
    assert found["x"] == MinMax(DATA.min(), DATA.max())
    assert found["y"] == MinMax(0.0, DATA.max())
    assert found["z"] == MinMax(-DATA.max(), 0.0)


@pytest.mark.parametrize("small", [0, 1 << 30])
def test_reduced_and_handed_out_give_the_same(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = TEXT.replace("[N", "[1")
    monkeypatch.setattr(module, "SMALL_NBYTES", small)
    model = support.model_from_text(text)
    for value in [v for node in model.graph for v in node.outputs]:
        value.shape, value.type = ir.Shape([1, 4]), ir.TensorType(ir.DataType.FLOAT)
    assert gather(model, "y")["y"] == MinMax(0.0, DATA.max())


def test_grouping_and_varying_batches_do_not_matter() -> None:
    model = support.model_from_text(TEXT)
    uneven = Samples(DATA[:1], DATA[1:5], DATA[5:])
    assert gather(model, "y", "z", data=uneven) == gather(model, "y", "z")


def test_empty_tensors_are_not_seen() -> None:
    found = gather(support.model_from_text(TEXT), "x", data=Samples(DATA[:0]))
    assert not found["x"].seen


def test_model_stays_as_it_is() -> None:
    model = support.model_from_text(TEXT)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    gather(model, "x", "y")
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_only_what_is_needed_is_computed() -> None:
    copy, _ = augment(support.model_from_text(TEXT), [Request("y")])
    assert "z" not in {v.name for v in copy.graph.outputs}


def test_no_requests_run_nothing() -> None:
    assert collect(support.model_from_text(TEXT), [], Samples(), settings=RunSettings()) == {}


def test_unknown_value_and_empty_data_are_errors() -> None:
    model = support.model_from_text(TEXT)
    with pytest.raises(DataError, match="not in the model"):
        gather(model, "nothing")
    with pytest.raises(DataError, match="no sample"):
        gather(model, "y", data=Samples())


def test_samples_that_do_not_fit_are_a_data_error() -> None:
    with pytest.raises(DataError):
        gather(support.model_from_text(TEXT), "y", data=Samples(np.zeros((1, 3), np.float32)))
