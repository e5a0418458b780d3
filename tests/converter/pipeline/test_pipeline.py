"""The pipeline: passes as transactions, the signature lock, needs, deadlines, observers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from support import model_from_text

from converter.core.context import Batch, Context
from converter.core.contract import Need, Outcome, Pass
from converter.errors import (
    LimitExceededError,
    MissingDataError,
    PassError,
    PostconditionError,
    PreconditionError,
)
from converter.pipeline.pipeline import Pipeline, Policy


def small() -> ir.Model:
    return model_from_text(
        "g (float[N,4] x) => (float[N,4] y) { h = Relu (x) y = Mul (h, k) }",
        k=np.float32([1, 2, 3, 4]),
    )


@dataclass(frozen=True)
class Stub(Pass):
    """Base of the passes of this test."""

    name: ClassVar[str] = "stub"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        return Outcome(modified=False)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Rename(Stub):
    """Changes something harmless."""

    name: ClassVar[str] = "rename"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        model.graph.node(0).name = "renamed"
        return Outcome(modified=True, counts={"renamed": 1})


@dataclass(frozen=True)
class Crash(Stub):
    """Edits the model and then fails."""

    name: ClassVar[str] = "crash"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        model.graph.node(0).name = "half done"
        raise ZeroDivisionError("boom")


@dataclass(frozen=True)
class RenameInput(Stub):
    """Breaks the signature."""

    name: ClassVar[str] = "rename_input"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        model.graph.inputs[0].name = "other"
        return Outcome(modified=True)


@dataclass(frozen=True)
class RaiseOpset(Stub):
    """Changes the opset, as declared."""

    name: ClassVar[str] = "raise_opset"
    changes_interface: ClassVar[bool] = True

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        model.graph.opset_imports[""] = 18
        return Outcome(modified=True)


@dataclass(frozen=True)
class Dangle(Stub):
    """Leaves a value that nobody makes."""

    name: ClassVar[str] = "dangle"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        model.graph.node(1).replace_input_with(0, ir.Value(name="nobody"))
        return Outcome(modified=True)


@dataclass(frozen=True)
class Unsort(Stub):
    """Leaves the nodes in the wrong order, which the pipeline mends."""

    name: ClassVar[str] = "unsort"

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        first = model.graph.node(0)
        model.graph.remove(first)
        model.graph.append(first)
        return Outcome(modified=True)


@dataclass(frozen=True)
class Particular(Stub):
    """Refuses every model."""

    name: ClassVar[str] = "particular"

    def requires(self, model: ir.Model, context: Context) -> None:
        raise PreconditionError("not this one", pass_name=self.name)


@dataclass(frozen=True)
class Hungry(Stub):
    """Needs data."""

    name: ClassVar[str] = "hungry"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA})


class Recorder:
    def __init__(self) -> None:
        self.events: list[str] = []

    def before(self, pass_: Pass, model: ir.Model) -> None:
        self.events.append(f"before {pass_.name}")

    def after(self, pass_: Pass, model: ir.Model, step: object) -> None:
        self.events.append(f"after {pass_.name}")

    def failed(self, pass_: Pass, model: ir.Model, error: Exception) -> None:
        self.events.append(f"failed {pass_.name}: {type(error).__name__}")


def test_the_callers_model_is_never_changed() -> None:
    model = small()
    result = Pipeline([Rename()]).run(model, Context())
    assert model.graph.node(0).name != "renamed"
    assert result.model.graph.node(0).name == "renamed"


def test_a_pass_that_changes_nothing_keeps_the_very_model() -> None:
    model = small()
    assert Pipeline([Stub()]).run(model, Context()).model is model


def test_a_failing_pass_is_named() -> None:
    with pytest.raises(PassError, match="ZeroDivisionError: boom") as caught:
        Pipeline([Rename(), Crash()]).run(small(), Context())
    assert caught.value.pass_name == "crash"
    assert caught.value.exit_code == 4
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_failing_pass_is_rolled_back_and_skipped_on_request() -> None:
    run = Pipeline([Rename(), Crash(), Stub()]).run(
        small(), Context(), policy=Policy(on_failure="skip")
    )
    assert run.model.graph.node(0).name == "renamed"
    assert [bool(step.error) for step in run.steps] == [False, True, False]
    assert run.steps[1].outcome is None
    assert run.steps[1].before == run.steps[1].after


@pytest.mark.parametrize("pass_", [RenameInput(), Dangle()])
def test_a_broken_model_or_signature_is_refused(pass_: Pass) -> None:
    with pytest.raises(PostconditionError) as caught:
        Pipeline([pass_]).run(small(), Context())
    assert caught.value.pass_name == pass_.name


def test_unsorted_nodes_are_sorted() -> None:
    run = Pipeline([Unsort()]).run(small(), Context())
    assert [node.op_type for node in run.model.graph] == ["Relu", "Mul"]


def test_a_declared_change_is_recorded_and_can_be_forbidden() -> None:
    run = Pipeline([RaiseOpset()]).run(small(), Context())
    assert run.steps[0].interface_changes == ("opset ai.onnx 17 became 18",)
    with pytest.raises(PostconditionError, match="17 became 18"):
        Pipeline([RaiseOpset()]).run(small(), Context(), policy=Policy(keep_opset=True))


def test_needs_are_checked_before_any_pass_runs() -> None:
    recorder = Recorder()
    with pytest.raises(MissingDataError, match="hungry"):
        Pipeline([Rename(), Hungry()]).run(small(), Context(), observers=[recorder])
    assert recorder.events == []


def test_preconditions_stop_the_pass() -> None:
    with pytest.raises(PreconditionError, match="not this one"):
        Pipeline([Particular()]).run(small(), Context())


def test_no_pass_starts_after_the_deadline() -> None:
    policy = Policy(deadline=time.monotonic() - 1, on_failure="skip")
    with pytest.raises(LimitExceededError, match="time limit"):
        Pipeline([Stub()]).run(small(), Context(), policy=policy)


def test_observers_see_every_event() -> None:
    recorder = Recorder()
    Pipeline([Rename(), Crash()]).run(
        small(), Context(), observers=[recorder], policy=Policy(on_failure="skip")
    )
    assert recorder.events == [
        "before rename",
        "after rename",
        "before crash",
        "failed crash: PassError",
        "after crash",
    ]


def test_steps_count_nodes_and_parameters() -> None:
    step = Pipeline([Rename()]).run(small(), Context()).steps[0]
    assert (step.before.nodes, step.before.parameters, step.before.tensor_bytes) == (2, 4, 16)
    assert step.outcome is not None
    assert step.outcome.counts == {"renamed": 1}
    assert step.seconds > 0


@dataclass(frozen=True)
class Poison(Stub):
    """A lossy pass that ruins a weight; ``value`` says how badly."""

    name: ClassVar[str] = "poison"
    value: ClassVar[float] = 2.0

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        tensor = ir.tensor(np.full(4, self.value, np.float32), name="k")
        model.graph.initializers["k"].const_value = tensor
        return Outcome(modified=True)


@dataclass(frozen=True)
class Ruin(Poison):
    """The same with a value that is no number."""

    name: ClassVar[str] = "ruin"
    value: ClassVar[float] = float("nan")


@dataclass(frozen=True)
class Promise(Poison):
    """The same with a promise that it does not keep."""

    name: ClassVar[str] = "promise"
    exact: ClassVar[bool] = True


SAMPLES = [Batch({"x": np.float32([[1, 2, 3, 4]])})]


def test_an_exact_pass_is_held_to_its_promise() -> None:
    with pytest.raises(PostconditionError, match="promises equal outputs"):
        Pipeline([Promise()]).run(small(), Context(), policy=Policy(samples=SAMPLES))


def test_a_lossy_pass_may_change_values_and_is_measured_on_request() -> None:
    policy = Policy(samples=SAMPLES, check="each")
    step = Pipeline([Poison()]).run(small(), Context(), policy=policy).steps[0]
    assert step.checked == "structure and outputs"
    assert step.max_difference == 8  # 4 * 4 became 4 * 2


def test_a_lossy_pass_may_not_make_nan() -> None:
    policy = Policy(samples=SAMPLES, check="each")
    with pytest.raises(PostconditionError, match="broke the outputs"):
        Pipeline([Ruin()]).run(small(), Context(), policy=policy)
