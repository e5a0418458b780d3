"""Weights become zero, one by one or in patterns, and what is left makes up for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from converter.core.contract import Outcome, Pass
from converter.core.params import Param
from converter.core.select import Selection
from converter.errors import MissingDataError, ParameterError
from passes.sparsity.patterns import Pattern, parse
from passes.sparsity.problem import Criterion, Recovery
from passes.sparsity.run import Order, Pruning
from passes.sparsity.schedule import Schedule
from passes.sparsity.strategies import BOUNDED, Name

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context

_DEFAULT = 0.5
_MOST = 0.95
"""What the strategies that find the share themselves may reach, unless sparsity says so."""
_ROUNDED = 5e-3
"""How far sparsity may be from the share of a pattern: 0.67 stands for 1:3."""
_MEASURING: frozenset[str] = frozenset({"wanda", "obs"})


@dataclass(frozen=True)
class Prune(Pass):
    """Set the weights that matter least to zero, and fit what is left to the original.

    Shapes stay: the zeros make files smaller once ``pack`` stores them, and onnxruntime no faster,
    because its CPU kernels are dense (``prune_channels`` makes models faster). How many weights of
    which tensor go is decided by ``allocation``, which of a tensor by ``criterion`` and
    ``pattern``, exactly to the count. With calibration data the weights that are left are fitted by
    least squares, layer by layer, to what the original makes there. Zeros stay zero in all passes
    behind it.

    Allocations: lamp (Lee et al. 2021, arXiv 2010.07611), erk (Evci et al. 2020, arXiv 1911.11134),
    global and local (one threshold, or the same share everywhere), linear and polynomial (shares
    rise with depth), sensitivity (by the damage at the outputs, measured without labels), genetic
    (evolutionary search over shares), adaptive (as much as the budget allows) and safe (only what
    does not change outputs beyond a bound). Criteria: magnitude, wanda (Sun et al. 2023,
    arXiv 2306.11695), obs (Hassibi and Stork 1993; Frantar and Alistarh 2023, arXiv 2301.00774) and
    random.
    """

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "set the weights that matter least to zero, and refit the rest"
    reads_weights: ClassVar[bool] = True
    follows: ClassVar[frozenset[str]] = frozenset(
        {"simplify", "fuse", "fold_constants", "prune_channels", "drop_layers"}
    )

    sparsity: Annotated[
        float | None,
        Param(
            f"share of weights that is zero afterwards; {_DEFAULT} unless threshold or pattern "
            "says it",
            ge=0,
            lt=1,
            search=(0.3, 0.5, 0.7),
        ),
    ] = None
    threshold: Annotated[
        float | None, Param("absolute value below which a weight becomes zero", ge=0)
    ] = None
    criterion: Annotated[
        Criterion, Param("what orders the weights of a tensor; wanda and obs need data")
    ] = "magnitude"
    pattern: Annotated[
        str,
        Param("unstructured; N:M keeps N of M neighbours (2:4); RxC takes blocks (1x4); row"),
    ] = "unstructured"
    allocation: Annotated[
        Name | None, Param("how many zeros each tensor gets; lamp unless scope says it")
    ] = None
    scope: Annotated[
        Literal["global", "local"] | None, Param("short for allocation=global or local")
    ] = None
    recover: Annotated[
        Literal["auto", "least_squares", "moments", "obs", "none"],
        Param(
            "what makes up for the zeros; obs also chooses anew which weights go; auto: none "
            "without data, else obs, or least_squares where threshold or another criterion decides"
        ),
    ] = "auto"
    steps: Annotated[int, Param("make zeros, and up for them, so many times", ge=1, le=100)] = 1
    schedule: Annotated[
        Schedule, Param("how the share rises over the steps; polynomial: fast at first")
    ] = "polynomial"
    population: Annotated[
        int, Param("settings that allocation=genetic keeps at a time", ge=2, le=1000)
    ] = 16
    generations: Annotated[int, Param("rounds of allocation=genetic", ge=1, le=10000)] = 20
    include: Annotated[
        tuple[str, ...], Param("nodes to prune: name, glob or op:TYPE; all when empty")
    ] = ()
    exclude: Annotated[tuple[str, ...], Param("nodes to leave: name, glob or op:TYPE")] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        pattern = parse(self.pattern)
        self._check_shares(pattern)
        self._check_allocation(pattern)

    def _check_shares(self, pattern: Pattern) -> None:
        """Refuse shares that contradict each other, and write down the one that follows."""
        if self.sparsity is not None and self.threshold is not None:
            raise ParameterError(
                "sparsity and threshold exclude each other",
                where="prune",
                allowed="prune:sparsity=0.5 or prune:threshold=0.01",
                hint="give one of them",
            )
        if self.threshold is not None:
            self._refuse_with_threshold(pattern)
            return
        share = pattern.share
        given = share if self.sparsity is None else self.sparsity
        if share is not None and given is not None and abs(given - share) > _ROUNDED:
            raise ParameterError(
                f"pattern={self.pattern} makes {share:.4g} of the weights zero, not {given:g}",
                where="prune",
                allowed=f"pattern={self.pattern} without sparsity, or sparsity={share:.4g}",
                hint="leave sparsity out, or take another pattern",
            )
        if self.sparsity is None or share is not None:
            usual = _MOST if self.allocation in BOUNDED else _DEFAULT
            object.__setattr__(self, "sparsity", usual if share is None else share)

    def _refuse_with_threshold(self, pattern: Pattern) -> None:
        """A threshold looks at single weights and asks nobody how many there may be."""
        given = {
            "allocation": self.allocation is not None,
            "scope": self.scope is not None,
            "pattern": pattern.kind != "unstructured",
            "criterion": self.criterion != "magnitude",
            "steps": self.steps > 1,
        }
        wrong = [name for name, set_ in given.items() if set_]
        if wrong:
            raise ParameterError(
                "threshold decides by absolute value alone, so there is nothing to decide for "
                + " and ".join(wrong),
                where="prune",
                allowed="prune:threshold=0.01 with recover, include and exclude",
                hint="give sparsity instead of threshold",
            )

    def _check_allocation(self, pattern: Pattern) -> None:
        """Refuse allocations that contradict scope, pattern or steps."""
        name = self.allocation
        if name is not None and self.scope is not None and name != self.scope:
            raise ParameterError(
                f"scope={self.scope} is short for allocation={self.scope}, and allocation is "
                f"{name}",
                where="prune",
                allowed="one of them",
                hint="leave scope out",
            )
        if pattern.share is not None and (name or self.scope) not in (None, "local"):
            word = "allocation" if name else "scope"
            raise ParameterError(
                f"pattern={self.pattern} makes the same share of every tensor zero, so there is "
                f"nothing for {word}={name or self.scope} to decide",
                where="prune",
                allowed=f"{word}=local, or none",
                hint=f"leave {word} out, or take a pattern like 1x4",
            )
        if name in BOUNDED and self.steps > 1:
            raise ParameterError(
                f"allocation={name} goes on until the results say stop, so steps mean nothing",
                where="prune",
                allowed="steps=1",
                hint="leave steps out",
            )

    def requires(self, model: ir.Model, context: Context) -> None:
        """Check that there are samples and a budget where the parameters ask for them.

        Raises:
            MissingDataError: What measures inputs or outputs has nothing to measure on.
        """
        wish = f"criterion={self.criterion}" if self.criterion in _MEASURING else ""
        if self.allocation in BOUNDED:
            wish = f"allocation={self.allocation}"
        if wish and context.dataset is None:
            raise MissingDataError(
                f"prune:{wish} needs samples of the model's inputs, and none were given",
                where=str(self),
                allowed="64 to 512 unlabelled samples",
                hint="give --data FILE, or --data smooth for made-up ones, which are less exact",
            )

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Zero the weights; see :class:`Outcome` for what stayed and why.

        Without recovery and with criterion magnitude, memory is a few chunks however large the
        tensors are.

        Raises:
            ConverterError: The model cannot be run on the samples.
        """
        return Pruning(self._order(context), context).run(model)

    def _order(self, context: Context) -> Order:
        pattern = parse(self.pattern)
        return Order(
            share=self.sparsity,
            threshold=self.threshold,
            criterion=self.criterion,
            pattern=pattern,
            allocation=self.allocation or self.scope or ("local" if pattern.share else "lamp"),
            recover=self._recovery(context),
            steps=self.steps,
            schedule=self.schedule,
            population=self.population,
            generations=self.generations,
            selection=Selection(self.include, self.exclude),
        )

    def _recovery(self, context: Context) -> Recovery:
        """How the zeros are made up for.

        Choosing anew which weights go is better than any mask at every share that was measured
        (docs/benchmarks.md); it is not done where the user said which ones go.
        """
        if self.recover != "auto":
            return self.recover
        if context.dataset is None or self.allocation == "safe":
            return "none"
        decided = self.threshold is not None or self.criterion in ("wanda", "random")
        return "least_squares" if decided else "obs"
