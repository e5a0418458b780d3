"""Whole residual blocks and layers are left out, and what follows is fitted to do without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from converter.core import graph as g
from converter.core.contract import Outcome, Pass, Skip
from converter.core.params import Param
from converter.core.select import Selection
from converter.coupling.shapes import observe_shapes
from converter.data.smooth import make_smooth
from converter.errors import PreconditionError
from converter.measure.macs import sum_macs
from passes.guard.deepest import Search, most
from passes.guard.judge import Guard, Ruling, finer, hold_out
from passes.layers.blocks import Block, Sizes, find_blocks
from passes.layers.choose import Chooser, Drop, replay
from passes.layers.measure import Outputs
from passes.opset.convert import take_over
from passes.reconstruction.walk import reconstruct

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, Context

_MOST_SAMPLES = 128
"""Samples that blocks are measured and layers are fitted on."""
_MADE_UP = 64
_CHANGES = "it changes what it is given by more than max_error"


@dataclass(frozen=True)
class DropLayers(Pass):
    """Leave out residual blocks, transformer layers and other layers that do little.

    A block is a value, a branch that starts at it (or beside it) and the node that joins both: what
    is left is the shortcut, a projection on it included. Layers whose output has the size of their
    input count, too. The error of a block is the power of output minus input, less its mean, over
    the power of the output; candidates with small errors are tried at the outputs (after ShortGPT,
    Men et al. 2024, arXiv 2403.03853), and measured again after each that goes. Means are given
    back, into a bias where there is one; then the layers behind are fitted to the original's
    values by least squares.
    """

    name: ClassVar[str] = "drop_layers"
    summary: ClassVar[str] = "leave out residual blocks and layers that change little"
    reads_weights: ClassVar[bool] = True
    follows: ClassVar[frozenset[str]] = frozenset({"simplify"})
    idempotent: ClassVar[bool] = False  # the next block can always go
    restructures: ClassVar[bool] = True

    count: Annotated[
        int | None,
        Param("blocks to leave out; 1 unless max_error is given", ge=1, search=(1, 2, 4)),
    ] = None
    max_error: Annotated[
        float | None,
        Param("leave out every block whose error is at most this, count of them at most", ge=0),
    ] = None
    recover: Annotated[
        Literal["least_squares", "none"],
        Param("fit the layers behind what is gone, or leave weights as they are"),
    ] = "least_squares"
    include: Annotated[
        tuple[str, ...],
        Param("blocks that may go, by any of their nodes: name, glob or op:TYPE; all when empty"),
    ] = ()
    exclude: Annotated[tuple[str, ...], Param("nodes that stay, and the blocks around them")] = ()

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Leave out what the parameters ask for.

        Raises:
            PreconditionError: There are fewer blocks than asked for.
            ConverterError: The model cannot be run on the samples.
        """
        selection = Selection(self.include, self.exclude)
        skipped = selection.misses(g.walk(model))
        sizes = observe_shapes(model, context)
        blocks, reasons = find_blocks(model, sizes, selection, sum_macs(model, sizes)[0])
        skipped += reasons
        if not self._enough(blocks):
            return Outcome(modified=False, skipped=tuple(skipped), notes=(_NOTHING,))
        work = _Work(self, model, sizes, selection, context)
        drops = work.choose()
        search = work.guarded(drops)
        if search is not None:
            drops = drops[: int(search.best.depth)] if search.best else []
        if self.max_error is not None:
            gone = {drop.key for drop in drops}
            left = [block for block in blocks if block.branch and block.key not in gone]
            skipped += [Skip(block.name, _CHANGES) for block in left]
        counts = work.carry_out(drops)
        return Outcome(bool(drops), counts, tuple(skipped), tuple(work.notes))

    def _enough(self, blocks: Sequence[Block]) -> bool:
        """Tell whether there is anything to do.

        Raises:
            PreconditionError: Fewer blocks than asked for.
        """
        if self.max_error is not None:
            return bool(blocks)
        there = sum(block.macs > 0 for block in blocks)
        if self.count is not None and self.count > there:
            raise PreconditionError(
                f"the model has {there} blocks that can be left out, not {self.count}",
                pass_name=self.name,
                allowed="parts whose output has the size of their input: residual blocks, layers "
                "of a transformer, layers with as many outputs as inputs",
                hint=f"ask for {there} at most" if there else "use prune_channels instead",
            )
        return there > 0


_NOTHING = "nothing has an output of the size of its input: there is no block that can be left out"


@dataclass(eq=False)
class _Work:
    """One run of the pass."""

    wanted: DropLayers
    model: ir.Model
    sizes: Sizes
    selection: Selection
    context: Context
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.batches = self._samples()
        self.fitted_on: Sequence[Batch] = self.batches
        held: Sequence[Batch] = ()
        if self.context.budget:
            self.batches = finer(self.model, self.batches)
        if self.context.budget and len(self.batches) > 1:
            self.fitted_on, held = hold_out(self.batches)
        self.guard = Guard.of(self.context, self.model, held)
        if self.guard is None:
            self.fitted_on = self.batches

    def _samples(self) -> list[Batch]:
        dataset = self.context.dataset
        if dataset is None:
            dataset = make_smooth(self.model, samples=_MADE_UP, seed=self.context.seed)
            self.notes.append(
                f"there is no calibration data: blocks were compared on {dataset.samples} samples "
                "of smooth noise; give real ones with --data"
            )
        taken: list[Batch] = []
        for batch in dataset:
            if taken and sum(b.samples for b in taken) + batch.samples > _MOST_SAMPLES:
                break
            taken.append(batch)
        return taken

    def choose(self) -> list[Drop]:
        """Choose blocks on a clone."""
        wanted = self.wanted
        chooser = Chooser(
            model=self.model.clone(),
            sizes=self.sizes,
            selection=self.selection,
            total=sum_macs(self.model, self.sizes)[0],
            context=self.context,
            batches=self.fitted_on,
            outputs=Outputs.of(self.context, self.model, self.fitted_on),
        )
        progress = self.context.progress
        progress.start("choosing blocks", wanted.count)
        try:
            if wanted.max_error is not None:
                return chooser.small_errors(
                    wanted.max_error, wanted.count, lambda: progress.advance(1)
                )
            return chooser.least_damage(wanted.count or 1, lambda: progress.advance(1))
        finally:
            progress.stop()

    def guarded(self, drops: Sequence[Drop]) -> Search[None] | None:
        """Find how many blocks may go before the budget is missed; None without such a budget."""
        guard = self.guard
        if guard is None or not drops:
            return None

        def attempt(count: int) -> Ruling:
            draft = self.model.clone()
            replay(draft, drops[:count], self.sizes)
            self._recover(draft)
            return guard.judge(draft)

        search = most(attempt, len(drops))
        terms = ", ".join(bound.text for bound in guard.bounds)
        self.notes.append(f"{search.words(terms)} ({guard.samples} samples held out)")
        return search

    def carry_out(self, drops: Sequence[Drop]) -> dict[str, float]:
        """Drop blocks from the model itself, fit what follows, and say what was done."""
        if not drops:
            if self.wanted.max_error is not None and self.guard is None:
                bound = self.wanted.max_error
                self.notes.append(f"no block has an error of {bound:g} or less")
            return {}
        before = sum_macs(self.model, self.sizes)[0]
        draft = self.model.clone()
        nodes = replay(draft, drops, self.sizes)
        self.notes += self._recover_with_all(draft)
        after = sum_macs(draft, self.sizes)[0]
        take_over(self.model, draft)
        share = f": {1 - after / before:.1%} of the multiply-accumulates are gone" if before else ""
        named = "; ".join(drop.words() for drop in drops)
        self.notes.insert(0, f"left out {named}{share}")
        return {"blocks_dropped": float(len(drops)), "nodes_removed": float(nodes)}

    def _recover_with_all(self, draft: ir.Model) -> tuple[str, ...]:
        """Fit on what was held out as well, unless the budget would be missed then."""
        if self.guard is None:
            return self._recover(draft)
        trial = draft.clone()
        notes = self._recover(trial, self.batches)
        if not self.guard.judge(trial).holds:
            return self._recover(draft)
        take_over(draft, trial)
        return notes

    def _recover(self, draft: ir.Model, batches: Sequence[Batch] | None = None) -> tuple[str, ...]:
        if self.wanted.recover == "none":
            return ()
        repair = reconstruct(
            self.model,
            draft,
            {},
            batches or self.fitted_on,
            self.context.settings,
            progress=self.context.progress,
        )
        return repair.notes
