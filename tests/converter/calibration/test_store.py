"""Statistics that are kept: what counts as the same model and data, and files that are no cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import support

from converter import api
from converter.calibration import fingerprint
from converter.calibration.kinds import STATISTICS
from converter.calibration.patches import Geometry
from converter.calibration.statistic import Request, Statistic
from converter.calibration.store import Store
from converter.core.context import Batch, RunSettings
from converter.errors import UsageError
from converter.pipeline.services import LocalServices

WEIGHT = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
GEOMETRY = Geometry((1,), (1,), (1,), ((0, 0),))
REQUESTS = [Request("h", kind, geometry=GEOMETRY) for kind in sorted(STATISTICS)]


class Data:
    """Three batches; counts how often they are read."""

    synthetic = False
    description = "test data"
    samples = 3

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.arrays = [rng.standard_normal((1, 4, 4)).astype(np.float32) for _ in range(3)]

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        return iter([Batch({"x": array}) for array in self.arrays])


def model(weight: np.ndarray = WEIGHT) -> ir.Model:
    text = "g (float[1,4,4] x) => (float[1,4,4] y) { h = MatMul(x, w) y = Relu(h) }"
    return support.model_from_text(text, w=weight)


def states(found: dict[Request, Statistic]) -> str:
    return repr([(request, found[request].state()) for request in REQUESTS])


def gather(store: Store, of: ir.Model, data: Data) -> dict[Request, Statistic]:
    services = LocalServices(RunSettings(), store=store)
    return dict(services.collect(of, REQUESTS, data))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count runs of the model on the calibration data."""
    from converter.calibration import collect as module

    made: list[int] = []
    collect = module.collect

    def counted(*arguments: Any, **settings: Any) -> Any:
        made.append(len(arguments[1]))
        return collect(*arguments, **settings)

    monkeypatch.setattr(module, "collect", counted)
    return made


def test_what_is_known_is_not_gathered_again(runs: list[int]) -> None:
    store, data, original = Store(), Data(), model()
    first = LocalServices(RunSettings(), store=store).collect(original, REQUESTS[:2], data)
    found = gather(store, original.clone(), data)
    assert runs == [2, len(REQUESTS) - 2]
    assert all(found[request] is first[request] for request in REQUESTS[:2])


def test_another_weight_node_or_data_set_is_another_model(runs: list[int]) -> None:
    store, data = Store(), Data()
    gather(store, model(), data)
    gather(store, model(WEIGHT + 1), data)
    changed = model()
    changed.graph[1].op_type = "Neg"
    gather(store, changed, data)
    gather(store, changed, Data())
    assert runs == [len(REQUESTS)] * 4


def test_a_file_gives_every_statistic_back(tmp_path: Path, runs: list[int]) -> None:
    path = tmp_path / "cache.npz"
    store = Store(path)
    first = gather(store, model(), Data())
    again = Store(path)
    assert states(gather(again, model(), Data())) == states(first)
    assert runs == [len(REQUESTS)]
    assert store.notes == []
    assert "taken from" in again.notes[0]
    size = path.read_bytes()
    path.unlink()
    gather(Store(path), model(), Data())
    assert path.read_bytes() == size


@pytest.mark.parametrize("stale", ["model", "data", "runtime"])
def test_what_is_stale_is_said_and_gathered(stale: str, tmp_path: Path, runs: list[int]) -> None:
    path = tmp_path / "cache.npz"
    gather(Store(path, "one"), model(), Data())
    store = Store(path, "two" if stale == "runtime" else "one")
    found = gather(
        store,
        model(WEIGHT * 2 if stale == "model" else WEIGHT),
        Data(5 if stale == "data" else 0),
    )
    assert "another model" in store.notes[0]
    assert runs == [len(REQUESTS)] * 2
    assert len(found) == len(REQUESTS)
    both = Store(path, "one")
    gather(both, model(), Data())
    assert "taken from" in both.notes[0]


@pytest.mark.parametrize("content", [b"", b"something else", b"PK\x03\x04 not really", None])
def test_a_file_that_is_no_cache_is_refused_and_kept(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "precious.npz"
    if content is None:
        gather(Store(path), model(), Data())
        content = path.read_bytes()[:-200]
    path.write_bytes(content)
    with pytest.raises(UsageError, match="calibration cache cannot be read") as caught:
        Store(path)
    assert "delete the file" in str(caught.value)
    assert path.read_bytes() == content


def test_other_arrays_are_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    np.savez(path, x=np.zeros(3))
    with pytest.raises(UsageError, match="cannot be read"):
        Store(path)
    np.savez(path, index=np.array([{"a": 1}], object))
    with pytest.raises(UsageError, match="cannot be read"):
        Store(path)


def test_digests_follow_content_not_names_of_nodes() -> None:
    same = model(WEIGHT.copy())
    same.graph[0].name, same.graph.doc_string = "renamed", "text"
    assert fingerprint.of_model(same) == fingerprint.of_model(model())
    assert fingerprint.of_model(model(WEIGHT + 1)) != fingerprint.of_model(model())
    assert fingerprint.of_data(Data()) == fingerprint.of_data(Data())
    assert fingerprint.of_data(Data()) != fingerprint.of_data(Data(1))


def test_a_conversion_uses_the_file_and_says_so(tmp_path: Path, runs: list[int]) -> None:
    path, data = tmp_path / "cache.npz", {"x": np.concatenate(Data().arrays)}
    target = tmp_path / "out.onnx"
    results = []
    for _ in range(2):
        artifact = api.convert(
            model(),
            target,
            passes="quantize:method=minmax,speed=max",
            data=data,
            verify=False,
            provenance=False,
            calibration_cache=path,
        )
        results.append(target.read_bytes())
    assert runs == [1]
    assert any("taken from" in note for note in artifact.report.notes)
    assert results[0] == results[1]
