"""What a pass may use beside the model: data, random numbers, limits and services.

The services are protocols here and are filled in by :mod:`converter.api`, so this module imports
none of them
and a test builds a context in three lines: ``Context(services=StubServices())``.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from converter.core.analysis import Analysis, AnalysisCache
from converter.core.observe import Progress, Silent
from converter.errors import MissingDataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import onnx_ir as ir

T = TypeVar("T")
Arrays = Mapping[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class Limits:
    """Bounds on work done for a model that is not trusted.

    Attributes:
        seconds: Longest time that one call in the child process may take.
        patience: Longest time between two signs of life of such a call (a session was made, or a
            run ended); on a crowded machine the processor time of the child counts instead.
        memory_bytes: Address space of the child process beyond what it starts with.
        fold_bytes: Largest single constant that folding may create.
        deadline: ``time.monotonic()`` by which the user wants a result, and then ``seconds`` is the
            time from start to deadline; None: no such limit.
    """

    seconds: float = 600.0
    patience: float = math.inf
    memory_bytes: int = 16 << 30
    fold_bytes: int = 1 << 20
    deadline: float | None = None

    def late(self, share: float) -> bool:
        """Tell whether this share of the user's time is over; never where no limit was given."""
        if self.deadline is None:
            return False
        return time.monotonic() > self.deadline - (1.0 - share) * self.seconds

    def extended(self, seconds: float) -> Limits:
        """Return bounds for long work of a known size; a limit of the user stays what it is.

        A limit that nobody set would let the speed of the machine decide what is found.
        """
        if self.patience == self.seconds:
            return self
        seconds = max(self.seconds, seconds)
        return replace(self, seconds=seconds, patience=seconds)


@dataclass(frozen=True)
class RunSettings:
    """How models are run; passed to everything that opens a session.

    Attributes:
        limits: Bounds for the child process.
        threads: Threads that onnxruntime may use inside an operator.
        workspace: Folder for temporary model files, removed after the conversion; None: the
            system's.
        custom_op_library: Shared library with custom operators that the user trusts.
    """

    limits: Limits = field(default_factory=Limits)
    threads: int = 1
    workspace: Path | None = None
    custom_op_library: Path | None = None


@dataclass(frozen=True)
class Batch:
    """One feed of the model.

    Attributes:
        inputs: Arrays by graph input name, with the inputs' element types and ranks.
        targets: Labels of the samples, or None.
        samples: Number of samples in the batch.
    """

    inputs: Arrays
    targets: np.ndarray[Any, Any] | None = None
    samples: int = 1


class Dataset(Protocol):
    """Batches that can be iterated any number of times; every iteration starts again."""

    @property
    def samples(self) -> int:
        """Number of samples in one iteration."""

    @property
    def synthetic(self) -> bool:
        """True when the samples were made up from the model's own shapes."""

    @property
    def description(self) -> str:
        """Where the samples come from, for the report."""

    def __len__(self) -> int:
        """Number of batches."""

    def __iter__(self) -> Iterator[Batch]:
        """Start again at the first batch."""


class Bound(Protocol):
    """One term of the budget that the result must keep, e.g. ``agreement>=0.95``."""

    @property
    def metric(self) -> str:
        """Name of the metric."""

    @property
    def relation(self) -> str:
        """``<=`` or ``>=``."""

    @property
    def value(self) -> float:
        """In the base unit of the metric, or a ratio."""

    @property
    def ratio(self) -> bool:
        """The value is multiplied by the original's figure."""

    @property
    def text(self) -> str:
        """The term as it was written."""


class Services(Protocol):
    """Everything that runs a model. Each call happens in a child process under :class:`Limits`."""

    def run(
        self, model: ir.Model, feeds: Iterable[Arrays], outputs: Sequence[str] | None = None
    ) -> list[dict[str, np.ndarray[Any, Any]]]:
        """Run ``model`` once per feed and return the named values (None: the graph outputs)."""

    def collect(
        self, model: ir.Model, requests: Sequence[Any], dataset: Dataset
    ) -> Mapping[Any, Any]:
        """Run ``model`` over ``dataset`` and return one finished statistic per request."""


@dataclass
class Context:
    """What a pass gets beside the model.

    Attributes:
        dataset: Calibration samples, or None.
        services: Runs models; see :class:`Services`.
        settings: How models are run, and the limits in force.
        seed: Root of every random stream.
        keep_opset: The user forbids changes of opset and IR version, also to passes that declare
            them.
        explain: Nodes (name, glob, op:TYPE) about which passes give account one by one.
        progress: Receives the advance of long work.
        budget: What the result must keep, for passes that can stop in time.
        reference: The model as it was before the first pass that may change its outputs, for
            passes that repair what such passes did; None while there was none. Left as it is.
        teacher: What the last pass left that removed channels or layers: its layers can be compared
            with the present ones, those of the reference no longer; None while there was none.
    """

    dataset: Dataset | None = None
    services: Services | None = None
    settings: RunSettings = field(default_factory=RunSettings)
    seed: int = 0
    keep_opset: bool = False
    explain: tuple[str, ...] = ()
    progress: Progress = field(default_factory=Silent)
    budget: tuple[Bound, ...] = ()
    reference: ir.Model | None = None
    teacher: ir.Model | None = None
    _analyses: AnalysisCache = field(default_factory=AnalysisCache, repr=False)

    @property
    def comparable(self) -> ir.Model | None:
        """What repairs compare a changed model with, layer by layer; None: nothing was changed."""
        return self.teacher or self.reference

    def analyse(self, analysis: Analysis[T], model: ir.Model) -> T:
        """Return the analysis of ``model``, cached until a pass modifies the model."""
        return self._analyses.get(analysis, model)

    def invalidate(self, preserved: frozenset[type[Analysis[Any]]] = frozenset()) -> None:
        """Forget cached analyses; called by the pipeline after a pass that modified the model."""
        self._analyses.invalidate(preserved)

    def run(
        self, model: ir.Model, feeds: Iterable[Arrays], outputs: Sequence[str] | None = None
    ) -> list[dict[str, np.ndarray[Any, Any]]]:
        """Run a model in the child process; see :meth:`Services.run`."""
        return self._services().run(model, feeds, outputs)

    def collect(self, model: ir.Model, requests: Sequence[Any]) -> Mapping[Any, Any]:
        """Collect statistics over the calibration data; see :meth:`Services.collect`.

        Raises:
            MissingDataError: There is no calibration data.
        """
        if self.dataset is None:
            raise MissingDataError(
                "calibration data is needed and none was given",
                hint="give samples with --data FILE.npz (or data=... in Python)",
            )
        return self._services().collect(model, requests, self.dataset)

    def rng(self, key: str) -> np.random.Generator:
        """Return the random stream of ``key``, e.g. a pass's text; it depends on the seed alone."""
        import numpy as np

        digest = hashlib.sha256(f"{self.seed}:{key}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "little"))

    def _services(self) -> Services:
        if self.services is None:
            raise RuntimeError("this context has no services; build it with converter.api")
        return self.services
