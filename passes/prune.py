"""Unstructured magnitude pruning: the smallest weights become zero, the shapes stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from converter.core import params
from converter.core.context import Context
from converter.core.contract import Outcome, Pass, Skip
from converter.core.params import Param
from converter.core.select import Selection
from converter.errors import ParameterError
from passes.allocation.order import Plan, plan, plan_below
from passes.sparsity.layers import assign, find

if TYPE_CHECKING:
    import onnx_ir as ir

_DEFAULT = 0.5


@dataclass(frozen=True)
class Prune(Pass):
    """Set the smallest weights to zero, by share of all weights or by an absolute threshold."""

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "set the smallest weights to zero"
    follows: ClassVar[frozenset[str]] = frozenset(
        {"simplify", "fuse", "fold_constants", "prune_channels", "drop_layers"}
    )

    sparsity: Annotated[
        float | None,
        Param(
            f"share of weights that is zero afterwards; {_DEFAULT} unless threshold is given",
            ge=0,
            lt=1,
            search=(0.3, 0.5, 0.7),
        ),
    ] = None
    threshold: Annotated[
        float | None, Param("absolute value below which a weight becomes zero", ge=0)
    ] = None
    scope: Annotated[
        Literal["global", "local"],
        Param("reach the share over all tensors together, or in each of them"),
    ] = "global"
    include: Annotated[
        tuple[str, ...], Param("nodes to prune: name, glob or op:TYPE; all when empty")
    ] = ()
    exclude: Annotated[tuple[str, ...], Param("nodes to leave: name, glob or op:TYPE")] = ()

    def __post_init__(self) -> None:
        params.check(self)
        if self.sparsity is not None and self.threshold is not None:
            raise ParameterError(
                "sparsity and threshold exclude each other",
                where="prune",
                allowed="prune:sparsity=0.5 or prune:threshold=0.01",
                hint="give one of them",
            )
        if self.threshold is None and self.sparsity is None:
            object.__setattr__(self, "sparsity", _DEFAULT)

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Zero the weights. Memory: a few chunks, however large the tensors are."""
        weights, skipped = find(model, Selection(self.include, self.exclude))
        context.progress.start("prune", None)
        unique = list({id(w.tensor): w.tensor for w in weights}.values())
        by_tensor = dict(zip(map(id, unique), self._plans(unique), strict=True))
        context.progress.stop()
        plans = [by_tensor[id(w.tensor)] for w in weights]
        for weight, chosen in zip(weights, plans, strict=True):
            if chosen.invalid:
                skipped.append(Skip(weight.name, "holds NaN"))
            elif chosen.cut is not None:
                assign(weight, chosen.cut)
        return _outcome(list(by_tensor.values()), skipped)

    def _plans(self, tensors: list[ir.TensorProtocol]) -> list[Plan]:
        if self.threshold is not None:
            return [plan_below(tensor, self.threshold) for tensor in tensors]
        assert self.sparsity is not None
        if self.scope == "local":
            return [plan([tensor], self.sparsity)[0] for tensor in tensors]
        return plan(tensors, self.sparsity)


def _outcome(plans: list[Plan], skipped: list[Skip]) -> Outcome:
    valid = [p for p in plans if not p.invalid]
    total = sum(p.size for p in valid)
    before = sum(p.zeros_before for p in valid)
    after = sum(p.zeros_after for p in valid)
    notes = []
    if after > before:
        notes.append(
            "the zeros alone make neither the file smaller nor onnxruntime faster: its CPU kernels "
            "are dense; they pay off with compression of the file or on sparse hardware"
        )
    dead = sum(1 for p in valid if p.size and p.zeros_after == p.size and p.cut is not None)
    if dead:
        notes.append(f"{dead} weight tensors are zero throughout now: the share is too high")
    counts = {
        "weights_zeroed": after - before,
        "weights_total": total,
        "zeros_before": before,
        "zeros_after": after,
        "sparsity": after / total if total else 0.0,
    }
    modified = any(p.cut is not None for p in plans)
    return Outcome(modified, counts, tuple(skipped), tuple(notes))
