"""Running passes in order, each as a transaction: it is checked, or it never happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from converter.core import registry
from converter.core.contract import Need, Outcome, Pass
from converter.core.graph import footprint
from converter.core.packed import is_packed
from converter.core.run import Run, Step
from converter.errors import (
    ConverterError,
    LimitExceededError,
    MissingDataError,
    PassError,
    PostconditionError,
)
from converter.pipeline.interface import interface_of, port_changes, version_changes
from converter.pipeline.structure import DEFECT, check_structure

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context, Dataset
    from converter.core.observe import Observer
    from converter.verification.exact import Difference

Check = Literal["end", "each"]
OnFailure = Literal["fail", "skip"]


@dataclass(frozen=True)
class Policy:
    """How strictly a run is checked.

    Attributes:
        check: ``"each"`` compares outputs after every pass, ``"end"`` only after passes that
            promise exactness.
        on_failure: ``"skip"`` rolls a failing pass back, records it and goes on; ``"fail"`` raises.
        samples: Samples for the numeric check, or None for no numeric check at all.
        keep_opset: Refuse changes of opset and IR version even where a pass declares them.
        deadline: ``time.monotonic()`` after which no pass is started, or None.
    """

    check: Check = "end"
    on_failure: OnFailure = "fail"
    samples: Dataset | None = None
    keep_opset: bool = False
    deadline: float | None = None


@dataclass(frozen=True)
class Pipeline:
    """An ordered list of passes.

    Example:
        ``Pipeline([Simplify(), Prune(sparsity=0.5)]).run(model, context).model``
    """

    passes: tuple[Pass, ...]

    def __init__(self, passes: Iterable[Pass] = ()) -> None:
        object.__setattr__(self, "passes", tuple(passes))

    def __str__(self) -> str:
        from converter.core.spec import format_passes

        return format_passes(self.passes)

    def check_needs(self, context: Context) -> None:
        """Check before any pass runs that everything is there that a pass cannot do without.

        Raises:
            MissingDataError: A pass needs data or labels and there are none.
        """
        for pass_ in self.passes:
            if Need.DATA in pass_.needs and context.dataset is None:
                raise MissingDataError(
                    f"pass {pass_.name} needs calibration samples and none were given",
                    where=str(pass_),
                    allowed="an npz file with arrays named after the model's inputs, or a folder",
                    hint="add --data FILE.npz (Python: data=...); 32 to 200 unlabelled samples do",
                )

    def run(
        self,
        model: ir.Model,
        context: Context,
        *,
        observers: Sequence[Observer] = (),
        policy: Policy | None = None,
    ) -> Run:
        """Run all passes on a clone of ``model``, which itself is never changed.

        Args:
            model: Any valid model.
            context: Data, services and limits for the passes.
            observers: Called around every pass.
            policy: What is checked and what happens on failure; default :class:`Policy`.

        Raises:
            MissingDataError: See :meth:`check_needs`.
            PassError: A pass failed and ``policy.on_failure`` is ``"fail"``.
        """
        self.check_needs(context)
        policy = policy or Policy()
        current = model
        steps: list[Step] = []
        models: list[ir.Model] = []
        given = context.reference, context.teacher
        for pass_ in _with_unpacking(self.passes, lambda: (models or [model])[-1]):
            _check_deadline(policy, pass_)
            for observer in observers:
                observer.before(pass_, current)
            before = current
            current, step = _transaction(pass_, before, context, policy, observers)
            if not pass_.exact and current is not before:
                context.reference = context.reference or before
                context.teacher = current if pass_.restructures else context.teacher
            steps.append(step)
            models.append(current)
            for observer in observers:
                observer.after(pass_, current, step)
        context.reference, context.teacher = given
        return Run(current, tuple(steps), tuple(models))


def _with_unpacking(passes: Iterable[Pass], present: Callable[[], ir.Model]) -> Iterator[Pass]:
    """Yield passes; before one that reads weights comes another that unpacks them, if need be."""
    for pass_ in passes:
        if pass_.reads_weights and is_packed(present()):
            yield registry.get("unpack")()
        yield pass_


def _check_deadline(policy: Policy, pass_: Pass) -> None:
    if policy.deadline is not None and time.monotonic() > policy.deadline:
        raise LimitExceededError(
            "the time limit was reached",
            where=f"before pass {pass_.name}",
            hint="raise --time-limit or use fewer passes",
        )


def _transaction(
    pass_: Pass,
    before: ir.Model,
    context: Context,
    policy: Policy,
    observers: Sequence[Observer],
) -> tuple[ir.Model, Step]:
    """Run one pass on a clone; return the clone when all checks hold, else the model before it."""
    started = time.perf_counter()
    size = footprint(before)
    after = before.clone()
    try:
        outcome = _apply(pass_, after, context)
        changes: tuple[str, ...] = ()
        difference = None
        if outcome.modified:
            check_structure(after, pass_.name)
            changes = _check_interface(pass_, before, after, policy)
            difference = _compare(pass_, before, after, context, policy)
    except ConverterError as error:
        for observer in observers:
            observer.failed(pass_, before, error)
        if policy.on_failure == "fail" or isinstance(error, LimitExceededError):
            raise
        context.invalidate()
        seconds = time.perf_counter() - started
        return before, Step(str(pass_), seconds, None, size, size, error=str(error))
    if not outcome.modified:
        # The clone is dropped so that "nothing was changed" holds to the last byte.
        return before, Step(str(pass_), time.perf_counter() - started, outcome, size, size)
    context.invalidate(pass_.preserves)
    step = Step(
        spec=str(pass_),
        seconds=time.perf_counter() - started,
        outcome=outcome,
        before=size,
        after=footprint(after),
        checked="structure" if difference is None else "structure and outputs",
        max_difference=None if difference is None else difference.max_abs,
        interface_changes=changes,
    )
    return after, step


def _apply(pass_: Pass, model: ir.Model, context: Context) -> Outcome:
    try:
        pass_.requires(model, context)
        return pass_.apply(model, context)
    except ConverterError:
        raise
    except MemoryError as error:
        raise LimitExceededError(
            "the pass ran out of memory", where=f"pass {pass_.name}"
        ) from error
    except Exception as error:
        raise PassError(
            f"the pass failed with {type(error).__name__}: {error}",
            pass_name=pass_.name,
            hint=DEFECT,
        ) from error


def _check_interface(
    pass_: Pass, before: ir.Model, after: ir.Model, policy: Policy
) -> tuple[str, ...]:
    """Hold the signature lock; return the changes that the pass was allowed to make."""
    old, new = interface_of(before), interface_of(after)
    ports, versions = port_changes(old, new), version_changes(old, new)
    forbidden = versions if policy.keep_opset else ()
    if not pass_.may_change_interface():
        forbidden = (*ports, *versions)
    if forbidden:
        raise PostconditionError(
            f"the pass changed the model's signature: {'; '.join(forbidden)}",
            pass_name=pass_.name,
            hint="leave the pass out, or allow the change" if policy.keep_opset else DEFECT,
        )
    return (*ports, *versions)


def _compare(
    pass_: Pass, before: ir.Model, after: ir.Model, context: Context, policy: Policy
) -> Difference | None:
    if policy.samples is None or not (pass_.exact or policy.check == "each"):
        return None
    from converter.verification.exact import compare_models

    difference = compare_models(before, after, policy.samples, settings=context.settings)
    if pass_.exact and not difference.equal:
        raise PostconditionError(
            f"the pass promises equal outputs and changed them: {difference.detail}",
            pass_name=pass_.name,
            hint=DEFECT,
        )
    if difference.broken:
        raise PostconditionError(
            f"the pass broke the outputs: {difference.detail}",
            pass_name=pass_.name,
            hint="leave the pass out, exclude the nodes at fault, or use --on-failure skip",
        )
    return difference
