"""Statistics of large tensors are the same whether they are reduced in the graph or handed out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import support

from converter.calibration import augment as augmenting
from converter.calibration import collect as collecting
from converter.calibration.augment import augment
from converter.calibration.collect import begin, chunks, collect, grouped, merge
from converter.calibration.kinds import STATISTICS
from converter.calibration.sketches import THINNED
from converter.calibration.statistic import Request
from converter.core.context import Batch, RunSettings

SHAPES = [(2, 4, 64, 65), (2, 300, 96)]
KINDS = sorted(set(STATISTICS) - {"histogram", "gram"})


class Data:
    """Batches of one input."""

    synthetic = False
    description = "test data"

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays = arrays
        self.samples = sum(len(a) for a in arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __iter__(self) -> Any:
        return iter([Batch({"x": a}, samples=len(a)) for a in self.arrays])


def model_and_data(
    shape: tuple[int, ...], *, opset: int = 17, known: bool = True
) -> tuple[ir.Model, Data]:
    dims = ",".join(map(str, shape))
    text = f"g (float[{dims}] x) => (float[{dims}] y) {{ h = Neg(x) y = Neg(h) }}"
    model = support.model_from_text(text, opset=opset)
    value = model.graph[0].outputs[0]
    value.type = ir.TensorType(ir.DataType.FLOAT)
    value.shape = ir.Shape(shape) if known else None
    rng = np.random.default_rng(0)
    return model, Data([rng.standard_normal(shape).astype(np.float32) + 0.5 for _ in range(3)])


def gather(model: ir.Model, data: Data, requests: list[Request]) -> list[Any]:
    return list(collect(model, requests, data, settings=RunSettings()).values())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("known", [True, False])
def test_reduced_equals_handed_out(
    shape: tuple[int, ...], opset: int, *, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = model_and_data(shape, opset=opset, known=known)
    axis = 1 if len(shape) == 4 else -1
    requests = [Request("h", kind, axis) for kind in KINDS]
    probes = augment(model, requests)[1]
    assert sum(p.reduced for p in probes) == len(KINDS)
    reduced = gather(model, data, requests)
    monkeypatch.setattr(augmenting, "MOST_REDUCED", 0)
    for request, left, right in zip(requests, reduced, gather(model, data, requests), strict=True):
        for key, value in left.state().items():
            # float32 sums over a plane, added in another order
            tolerance = 1e-5 if request.kind == "moments" else 0.0
            np.testing.assert_allclose(
                np.float64(value), np.float64(right.state()[key]), rtol=tolerance
            )


CUT_OFF = [("Relu(h)", 17), ("Clip(h, zero, six)", 17), ("Clip<min=0.0, max=6.0>(h)", 10)]


@pytest.mark.parametrize(("after", "opset"), CUT_OFF)
def test_feature_maps_that_are_cut_off_at_zero_are_pooled(after: str, opset: int) -> None:
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((8, 4, 3, 3)).astype(np.float32)}
    if "zero" in after:
        constants |= {"zero": np.float32(0), "six": np.float32(6)}
    text = f"""g (float[1,4,64,64] x) => (float[1,8,n,m] y) {{
        h = Conv(x, w) r = {after} y = Neg(r)
    }}"""
    model = support.model_from_text(text, opset=opset, **constants)
    copy, probes = augment(model, [Request("r"), Request("h")])
    assert all(p.reduced for p in probes)
    assert [n.op_type for n in copy.graph if "Pool" in n.op_type] == ["GlobalMaxPool"]
    data = Data([rng.standard_normal((1, 4, 64, 64)).astype(np.float32) for _ in range(2)])
    cut, linear = gather(model, data, [Request("r"), Request("h")])
    assert linear.low < 0.0 == cut.low
    assert cut.high == (linear.high if "Relu" in after else 6.0)


@pytest.mark.parametrize("known", [True, False])
def test_a_histogram_of_a_large_tensor_is_made_from_a_part(*, known: bool) -> None:
    model, data = model_and_data(SHAPES[1], known=known)
    (found,) = gather(model, data, [Request("h", "histogram")])
    size = 3 * data.arrays[0].size
    assert 3 * THINNED / 2 <= found.total < size
    middles = (found.edges[1:] + found.edges[:-1]) / 2
    # 50,000 of 170,000 numbers: the mean's error is about 0.005
    assert abs((found.counts * middles).sum() / found.total + 0.5) < 0.02


def test_two_statistics_share_what_they_have_in_common() -> None:
    model, _ = model_and_data(SHAPES[0])
    both = augment(model, [Request("h"), Request("h", "histogram"), Request("h", "minmax")])[0]
    assert [n.op_type for n in both.graph] == [
        "Neg",
        "Neg",
        "ReduceMin",
        "ReduceMax",
        "Reshape",
        "Slice",
    ]


def test_chunks_depend_on_the_data_alone_and_merge_to_equal_bits() -> None:
    model, _ = model_and_data(SHAPES[0])
    rng = np.random.default_rng(1)
    data = Data([rng.standard_normal((1, 3, 5)).astype(np.float32) for _ in range(19)])
    probes = augment(model, [Request("x", kind) for kind in sorted(STATISTICS)])[1]
    cut = [[(b.inputs["x"], s) for b, s in part] for part in chunks(data)]
    assert [len(part) for part in cut] == [3] * 6 + [1]
    assert [s.first for part in cut for _, s in part] == list(range(19))

    def work(part: list[Any]) -> list[Any]:
        found = begin(probes)
        for array, source in part:
            for statistic in found:
                statistic.update(array, source)
        return found

    alone, workers = work(cut[0]), [work(part) for part in reversed(cut)][::-1]
    for part in cut[1:]:
        merge(alone, work(part))
    for found in workers[1:]:
        merge(workers[0], found)
    for one, many in zip(alone, workers[0], strict=True):
        assert repr(one.state()) == repr(many.state())


def test_large_tensors_are_fetched_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = model_and_data(SHAPES[0])
    requests = [Request("h", "gram"), Request("y", "gram"), Request("y", "minmax")]
    together = gather(model, data, requests)
    monkeypatch.setattr(collecting, "MOST_FETCHED", 1)
    probes = augment(model, requests)[1]
    assert grouped(probes) == [[0], [1], [2]]
    for one, other in zip(together, gather(model, data, requests), strict=True):
        assert repr(one.state()) == repr(other.state())


def test_a_reduction_that_fails_gives_way_to_the_whole_tensor() -> None:
    model, _ = model_and_data(SHAPES[0])
    empty = Data([np.zeros((2, 4, 0, 65), np.float32), np.ones((2, 4, 3, 65), np.float32)])
    for value in (model.graph.inputs[0], *model.graph[0].outputs, *model.graph[1].outputs):
        value.shape = None
    found = gather(model, empty, [Request("h"), Request("h", "histogram")])
    assert (found[0].low, found[0].high) == (-1.0, -1.0)
    assert found[1].total == 2 * 4 * 3 * 65
