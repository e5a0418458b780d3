"""Channels, heads and hidden units are removed, and what reads them is fitted to what is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from converter.core import graph as g
from converter.core.contract import Outcome, Pass
from converter.core.params import Param
from converter.core.select import Selection
from converter.errors import ParameterError
from passes.allocation.plan import Choice, Target
from passes.opset.convert import take_over
from passes.removal.account import Account
from passes.removal.run import Order, Recovery, Removal

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context

_TARGETS: tuple[Literal["flops", "params", "latency", "sparsity"], ...] = (
    "flops",
    "params",
    "latency",
    "sparsity",
)


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove the channels, attention heads and hidden units that the outputs need least.

    What must go together is found by following indices through all operators, so residual
    streams, concatenations, groups, heads and recurrent layers lose the same indices everywhere.
    Every cut is proven before a weight changes: the cut graph equals the original with zeros in
    place of what was removed. Dead, constant and duplicate channels go first, exactly. Without
    calibration data, smooth noise takes its place.

    Which channels go is decided by optimal brain surgeon over all readers of a channel (Hassibi and
    Stork 1993; Frantar et al. 2022), how many where by the damage at the outputs per multiplication
    saved. Then each layer is fitted by least squares, from first to last, to give the original's
    values from what the layers before it now give (He et al. 2017, arXiv 1707.06168).
    """

    name: ClassVar[str] = "prune_channels"
    summary: ClassVar[str] = "remove channels, heads and hidden units, and refit what reads them"
    reads_weights: ClassVar[bool] = True
    follows: ClassVar[frozenset[str]] = frozenset({"simplify"})
    idempotent: ClassVar[bool] = False  # a share of what is left can be removed again
    restructures: ClassVar[bool] = True

    flops: Annotated[
        float | None,
        Param("share of the multiply-accumulates of Conv, Gemm and MatMul to keep", gt=0, le=1),
    ] = None
    params: Annotated[float | None, Param("share of the weights to keep", gt=0, le=1)] = None
    latency: Annotated[
        float | None,
        Param("share of the time to keep, by layers measured on this machine", gt=0, le=1),
    ] = None
    sparsity: Annotated[
        float | None, Param("share to remove of every set of channels", ge=0, lt=1)
    ] = None
    criterion: Annotated[
        Literal["obs", "l2", "l1", "wanda", "bn", "clp", "random"],
        Param("order of removal; obs takes what the readers can best make up for"),
    ] = "obs"
    allocation: Annotated[
        Literal["auto", "kl", "error", "uniform", "global", "dp"],
        Param("how much goes where; auto: kl with data, which measures the outputs, else error"),
    ] = "auto"
    recover: Annotated[
        Literal["auto", "least_squares", "moments", "bias", "none"],
        Param("what repairs the readers; auto: least_squares; none leaves weights as they are"),
    ] = "auto"
    round_to: Annotated[
        str,
        Param("counts are multiples of this number; auto: 16 or 8 where that is faster; 1: any"),
    ] = "auto"
    units: Annotated[
        Literal["all", "channels", "heads"],
        Param("what may go; channels: of attention the dimensions within heads"),
    ] = "all"
    min_keep: Annotated[
        float, Param("share that every set of channels keeps at least", ge=0, le=1)
    ] = 0.08
    include: Annotated[
        tuple[str, ...], Param("nodes that make what may go: name, glob or op:TYPE; all when empty")
    ] = ()
    exclude: Annotated[tuple[str, ...], Param("nodes that keep what they make")] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in _TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ParameterError(
                f"prune_channels takes one target, not {' and '.join(given)}",
                where=str(self),
                allowed=f"one of {', '.join(_TARGETS)}",
                hint="run the pass twice for two targets",
            )
        if self.round_to != "auto" and not (self.round_to.isdecimal() and int(self.round_to)):
            raise ParameterError(
                f"round_to is {self.round_to!r}",
                where=str(self),
                allowed="auto, or a whole number from 1 on",
                hint="round_to=16 suits convolutions on processors with AVX-512",
            )

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Remove what the target asks for; see :class:`Outcome` for what stayed and why.

        Raises:
            ConverterError: The model cannot be run on the samples.
        """
        selection = Selection(self.include, self.exclude)
        skipped = selection.misses(g.walk(model))
        account = Account(skipped)
        order = Order(
            target=self.target,
            choice=self._choice(context),
            recover=self._recovery,
            units=self.units,
            selection=selection,
        )
        student = Removal(order, context, account).run(model.clone())
        if student is not None:
            take_over(model, student)
        return account.outcome(modified=student is not None)

    @property
    def _recovery(self) -> Recovery:
        """How readers are repaired; outliers are not to be learnt again."""
        if self.recover != "auto":
            return self.recover
        return "none" if self.criterion == "clp" else "least_squares"

    def _choice(self, context: Context) -> Choice:
        allocation = self.allocation
        if allocation == "auto":
            allocation = "error" if context.dataset is None else "kl"
        return Choice(
            criterion=self.criterion,
            allocation=allocation,
            compensate=self._recovery == "least_squares",
            keep=self.min_keep,
            round_to="auto" if self.round_to == "auto" else int(self.round_to),
        )

    @property
    def target(self) -> Target | None:
        """What to reach; None: only what goes exactly."""
        for name in _TARGETS:
            value = getattr(self, name)
            if value is not None:
                return Target(name, float(value))
        return None
