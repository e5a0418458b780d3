"""The contract of passes, run for every registered pass on models that passes get wrong."""

from __future__ import annotations

import copy
import hashlib
import pickle
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import support
from contract.models import MODELS, feeds

from converter.core import registry
from converter.core.context import Batch, Context
from converter.core.contract import Outcome, Pass
from converter.core.graph import graphs, tensors
from converter.core.spec import format_passes, parse
from converter.pipeline.interface import interface_of, port_changes, version_changes
from converter.pipeline.structure import check_structure

PASSES = sorted(registry.names())


class Samples:
    """Calibration data for a small model."""

    synthetic = False
    description = "test samples"

    def __init__(self, model: ir.Model) -> None:
        self._feeds = feeds(model)
        self.samples = len(self._feeds)

    def __len__(self) -> int:
        return len(self._feeds)

    def __iter__(self) -> Any:
        return iter([Batch(feed) for feed in self._feeds])


class InProcess:
    """Services without a child process; the models of these tests are our own."""

    def run(self, model: ir.Model, given: Any, outputs: Any = None) -> list[dict[str, np.ndarray]]:
        return [support.run(model, feed) for feed in given]

    def collect(self, model: ir.Model, requests: Any, dataset: Any) -> Any:
        from converter.calibration.collect import collect
        from converter.core.context import RunSettings

        return collect(model, requests, dataset, settings=RunSettings())


def context_for(model: ir.Model) -> Context:
    return Context(dataset=Samples(model), services=InProcess())


def content(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def buffers(model: ir.Model) -> list[str]:
    return [hashlib.sha256(tensor.tobytes()).hexdigest() for tensor in tensors(model)]


def apply(name: str, model: ir.Model) -> Outcome:
    pass_ = registry.get(name)()
    context = context_for(model)
    pass_.requires(model, context)
    return pass_.apply(model, context)


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> ir.Model:
    return MODELS[request.param]()


@pytest.mark.parametrize("name", PASSES)
class TestDeclaration:
    def test_name_is_the_registered_one(self, name: str) -> None:
        assert registry.get(name).name == name

    def test_has_a_one_line_summary(self, name: str) -> None:
        summary = registry.get(name).summary
        assert summary
        assert "\n" not in summary

    def test_text_round_trip(self, name: str) -> None:
        pass_ = registry.get(name)()
        assert parse(str(pass_)) == (pass_,)
        assert format_passes(parse(str(pass_))) == str(pass_)

    def test_picklable_hashable_comparable(self, name: str) -> None:
        pass_ = registry.get(name)()
        again: Pass = pickle.loads(pickle.dumps(pass_))
        assert again == pass_
        assert hash(again) == hash(pass_)
        assert copy.deepcopy(pass_) == pass_

    def test_frozen(self, name: str) -> None:
        with pytest.raises(AttributeError):
            registry.get(name)().anything = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PASSES)
class TestBehaviour:
    def test_modified_is_truthful(self, name: str, model: ir.Model) -> None:
        before = content(model)
        outcome = apply(name, model)
        assert outcome.modified == (content(model) != before)

    def test_second_run_changes_nothing(self, name: str, model: ir.Model) -> None:
        if not registry.get(name).idempotent:
            pytest.skip("declared not idempotent")
        apply(name, model)
        before = content(model)
        outcome = apply(name, model)
        assert not outcome.modified
        assert content(model) == before

    def test_interface_is_kept_or_declared(self, name: str, model: ir.Model) -> None:
        before = interface_of(model)
        apply(name, model)
        after = interface_of(model)
        if not registry.get(name).changes_interface:
            assert port_changes(before, after) + version_changes(before, after) == ()
        required = [[p.name for p in i.inputs if not p.overridable] for i in (before, after)]
        assert required[0] == required[1]
        assert [p.name for p in after.outputs] == [p.name for p in before.outputs]

    def test_structure_is_valid(self, name: str, model: ir.Model) -> None:
        apply(name, model)
        check_structure(model, name)

    def test_every_value_has_one_owner(self, name: str, model: ir.Model) -> None:
        apply(name, model)
        for graph in graphs(model):
            for node in graph:
                assert node.graph is graph
                for value in node.inputs:
                    assert value is None or any(use.node is node for use in value.uses())

    def test_shared_buffers_are_untouched(self, name: str, model: ir.Model) -> None:
        before = buffers(model)
        clone = model.clone()
        apply(name, clone)
        assert buffers(model) == before

    def test_same_model_and_seed_same_bytes(self, name: str, model: ir.Model) -> None:
        twin = model.clone()
        apply(name, model)
        apply(name, twin)
        assert content(model) == content(twin)

    def test_outputs_of_exact_passes_are_equal(self, name: str, model: ir.Model) -> None:
        if not registry.get(name).exact or model.graph.name == "noise":
            pytest.skip("lossy by declaration, or random by nature")
        after = model.clone()
        apply(name, after)
        for feed in feeds(model, 2):
            support.assert_same_outputs(model, after, feed)

    def test_result_runs(self, name: str, model: ir.Model) -> None:
        apply(name, model)
        outputs = support.run(model, feeds(model, 1)[0])
        assert list(outputs) == [value.name for value in model.graph.outputs]
        for array in outputs.values():
            assert np.isfinite(array).all()

    def test_empty_selection_changes_nothing(self, name: str, model: ir.Model) -> None:
        kind = registry.get(name)
        if "include" not in kind.__dataclass_fields__:
            pytest.skip("chooses no nodes")
        before = content(model)
        outcome = kind(include=("no such node",)).apply(model, context_for(model))
        assert not outcome.modified
        assert content(model) == before
