"""What a pass is: its declaration, what it needs, and what it reports."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.analysis import Analysis
    from converter.core.context import Context


class Need(enum.Enum):
    """What a pass cannot run without; checked for the whole pipeline before its first pass runs."""

    DATA = "data"
    LABELS = "labels"
    GRADIENTS = "gradients"


@dataclass(frozen=True)
class Skip:
    """One thing that was eligible and was left alone.

    Attributes:
        subject: Name of the node, tensor or model part.
        reason: Why, as a short phrase; equal reasons are counted together in the report.
        minor: Nobody could do anything about it: only ``--explain`` tells it, no list does.
    """

    subject: str
    reason: str
    minor: bool = False


@dataclass(frozen=True)
class Event:
    """What one rule did or did not do to a node that the user asked about (``--explain``).

    Attributes:
        subject: The node.
        rule: The rule.
        what: What happened, or why nothing did.
    """

    subject: str
    rule: str
    what: str


@dataclass(frozen=True)
class Outcome:
    """What one run of a pass did.

    Attributes:
        modified: True exactly if the model differs from before the run.
        counts: Figures named by what they count, e.g. ``{"identities_removed": 3}``.
        skipped: Every eligible thing that was left alone, with the reason.
        notes: Sentences for the report, e.g. how many calibration samples were used.
        seconds: Time by rule, of passes that are made of rules.
        events: Answers about the nodes of :attr:`Context.explain`.
    """

    modified: bool
    counts: Mapping[str, float] = field(default_factory=dict)
    skipped: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class Pass(ABC):
    """One rewrite of a model. Frozen, hashable, picklable; keeps no state between runs.

    A subclass is a frozen dataclass whose fields are its parameters, each written as
    ``name: Annotated[type, Param("help", ...)] = default`` (see :mod:`converter.core.params`).

    Class attributes:
        name: Name in the pipeline text; equals the module's name.
        summary: One line for ``convert passes``.
        needs: Things without which the pass cannot run at all.
        preserves: Analyses that stay valid although the model was modified.
        follows: Passes that should run before this one when both are used (advice, linted).
        exact: The pass promises equal outputs (up to float rounding); the pipeline checks it.
        idempotent: A second run changes nothing.
        restructures: Layers are gone or have other sizes afterwards, so that they cannot be
            compared one by one with those of the model before.
        changes_interface: Inputs, outputs, opset or IR version may change.
        reads_weights: The pass looks at weights: packed ones are unpacked before it.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    needs: ClassVar[frozenset[Need]] = frozenset()
    preserves: ClassVar[frozenset[type[Analysis[Any]]]] = frozenset()
    follows: ClassVar[frozenset[str]] = frozenset()
    exact: ClassVar[bool] = False
    idempotent: ClassVar[bool] = True
    restructures: ClassVar[bool] = False
    changes_interface: ClassVar[bool] = False
    reads_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the parameters; a subclass that has its own calls this one first.

        Raises:
            ParameterError: Names all wrong values.
        """
        from converter.core.params import check

        check(self)

    def requires(self, model: ir.Model, context: Context) -> None:  # noqa: B027 - optional hook
        """Check the model and the context before :meth:`apply`.

        Raises:
            PreconditionError: The pass cannot run on this model.
        """

    def may_change_interface(self) -> bool:
        """Tell whether the interface may change with these very parameters."""
        return self.changes_interface

    def narrowed(self, model: ir.Model) -> ir.Model:
        """Return a model with the inputs that are left to callers once this pass has run.

        A pass that makes the model accept less than before overrides this, so that samples which
        both models accept can be chosen before any pass runs. Nodes do not matter.
        """
        return model

    @abstractmethod
    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Edit ``model`` in place and say what was done."""

    def __str__(self) -> str:
        """Canonical text of the pass, e.g. ``prune:sparsity=0.7,scope=local``."""
        from converter.core.spec import format_pass

        return format_pass(self)
