"""Which blocks go: those whose loss the outputs feel least, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.layers.blocks import Block, Sizes, find_block, find_blocks
from passes.layers.measure import Effect, Outputs, effects
from passes.layers.remove import remove

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, Context
    from converter.core.select import Selection

TRIED = 8
"""Blocks with the smallest error of their own that are tried at the outputs in each round."""
_SMALL = 5e-3
"""Blocks with a smaller share of all multiply-accumulates are taken only when no other is left."""


@dataclass(frozen=True, eq=False)
class Drop:
    """One block that goes, as it was when it was chosen.

    Attributes:
        key: Finds it in a clone of the model.
        name: For people.
        macs: Multiply-accumulates that go with it.
        effect: What it did to its input.
        loss: Damage at the outputs once it is gone, with all dropped before; None: not measured.
        measure: What the damage is.
    """

    key: tuple[str, int]
    name: str
    macs: int
    effect: Effect
    loss: float | None = None
    measure: str = ""

    def words(self) -> str:
        """Describe it for the report."""
        loss = "" if self.loss is None else f", {self.measure} {self.loss:.3g}"
        return f"{self.name} (error {self.effect.error:.3g}{loss})"


@dataclass(eq=False)
class Chooser:
    """Takes blocks out of a clone, one after the other.

    Attributes:
        model: A clone, edited in place.
        sizes: Of values by name.
        selection: Which blocks may go.
        total: Multiply-accumulates of the whole model.
        context: Runs models.
        batches: What effects are measured on.
        outputs: What damage is measured against.
    """

    model: ir.Model
    sizes: Sizes
    selection: Selection
    total: int
    context: Context
    batches: Sequence[Batch]
    outputs: Outputs

    def blocks(self) -> list[Block]:
        """Return what can be dropped now."""
        return find_blocks(self.model, self.sizes, self.selection, self.total)[0]

    def least_damage(self, count: int, tick: Callable[[], None]) -> list[Drop]:
        """Drop the block whose loss damages the outputs least, ``count`` times.

        Args:
            count: How many; fewer when no block is left.
            tick: Called after every block.
        """
        drops: list[Drop] = []
        while len(drops) < count:
            blocks = [block for block in self.blocks() if block.macs]
            large = [block for block in blocks if block.macs > _SMALL * self.total]
            if not blocks:
                break
            drops.append(self._least(large or blocks))
            tick()
        return drops

    def small_errors(self, bound: float, most: int | None, tick: Callable[[], None]) -> list[Drop]:
        """Drop the block with the smallest error of its own, as long as it is within a bound.

        Args:
            bound: Largest error.
            most: Drop at most so many; None: all.
            tick: Called after every block.
        """
        drops: list[Drop] = []
        while most is None or len(drops) < most:
            ranked = self._ranked(self.blocks())
            if not ranked or ranked[0][1].error > bound:
                break
            drops.append(self._drop(*ranked[0]))
            tick()
        return drops

    def _ranked(self, blocks: Sequence[Block]) -> list[tuple[Block, Effect]]:
        if not blocks:
            return []
        found = effects(self.model, blocks, self.sizes, self.context, self.batches)
        pairs = [(block, found[block.key]) for block in blocks]
        return sorted(pairs, key=lambda pair: pair[1].error)  # equal ones in the graph's order

    def _least(self, blocks: Sequence[Block]) -> Drop:
        tried: list[tuple[float, int, Block, Effect, str]] = []
        for block, effect in self._ranked(blocks)[:TRIED]:
            drop = Drop(block.key, block.name, block.macs, effect)
            trial = self.model.clone()
            replay(trial, [drop], self.sizes)
            damage = self.outputs.damage(trial)
            tried.append((damage.loss, len(tried), block, effect, damage.measure))
        loss, _, block, effect, measure = min(tried, key=lambda item: item[:2])
        return self._drop(block, effect, loss, measure)

    def _drop(
        self, block: Block, effect: Effect, loss: float | None = None, measure: str = ""
    ) -> Drop:
        drop = Drop(block.key, block.name, block.macs, effect, loss, measure)
        remove(self.model, block, effect.mean, effect.axis)
        return drop


def replay(model: ir.Model, drops: Sequence[Drop], sizes: Sizes) -> int:
    """Drop the same blocks from a clone; return how many nodes are gone."""
    before = len(model.graph)
    for drop in drops:
        block = find_block(model, sizes, drop.key)
        remove(model, block, drop.effect.mean, drop.effect.axis)
    return before - len(model.graph)
