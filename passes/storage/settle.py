"""Keeping those of the chosen forms that onnxruntime provably undoes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from converter.core.contract import Skip
from converter.core.select import Selection
from converter.errors import ConverterError
from passes.storage.choose import Choice, rounded, write
from passes.storage.find import Place, find
from passes.storage.prove import Proof, prove

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context

_MOST_PROOFS = 24
_NOT_FOLDED = "onnxruntime does not undo its form when it opens the file"
_CHANGES = "with it onnxruntime would run something else than now"
_UNTRIED = "some forms are not undone by onnxruntime, and finding all of them takes too long"


@dataclass
class Settled:
    """What stays after the proof.

    Attributes:
        choices: The forms that are kept.
        skipped: Those that are not, with reasons.
        proof: For all that are kept together; None when nothing is kept.
        plain: The model with the values of the forms as plain constants.
        packed: The model in these forms.
    """

    choices: list[Choice]
    skipped: list[Skip]
    proof: Proof | None
    plain: ir.Model
    packed: ir.Model


def settle(
    model: ir.Model, selection: Selection, choices: Sequence[Choice], context: Context
) -> Settled:
    """Drop the forms that are not undone when onnxruntime opens the model.

    Args:
        model: With plain constants; left as it is.
        selection: What the places were found with.
        choices: Forms of the constants of the model.
        context: Says how models are run.

    Raises:
        ConverterError: onnxruntime cannot open the model as it is.
    """
    search = _Search(model, selection, context)
    kept = search.good(list(choices))
    while kept and (search.proof is None or search.tried != kept):
        if search.check(kept):
            break
        search.drop(kept, _CHANGES)  # alone each is undone, together they are not
        kept = []
    plain, packed, _ = search.build(kept)
    return Settled(kept, search.skipped, search.proof if kept else None, plain, packed)


@dataclass
class _Search:
    model: ir.Model
    selection: Selection
    context: Context
    skipped: list[Skip] = field(default_factory=list)
    proof: Proof | None = None
    tried: list[Choice] = field(default_factory=list)
    left: int = _MOST_PROOFS
    culprits: set[int] = field(default_factory=set)
    reason: str = _CHANGES

    def build(self, choices: Sequence[Choice]) -> tuple[ir.Model, ir.Model, dict[str, int]]:
        """Return the model with plain constants and with decoders, and the nodes of these."""
        plain, packed = self.model.clone(), self.model.clone()
        rounded(self._places(plain), choices)
        return plain, packed, write(packed, self._places(packed), choices)

    def _places(self, model: ir.Model) -> list[Place]:
        return find(model, self.selection)[0]

    def good(self, choices: list[Choice]) -> list[Choice]:
        """Return those that are undone: all, or what is found by halving."""
        if not choices:
            return []
        if self.check(choices):
            return choices
        if self.culprits:
            culprits = [c for at, c in enumerate(choices) if at in self.culprits]
            rest = [c for at, c in enumerate(choices) if at not in self.culprits]
            self.drop(culprits, _NOT_FOLDED)
            return self.good(rest)
        if len(choices) == 1 or self.left <= 0:
            self.drop(choices, self.reason if len(choices) == 1 else _UNTRIED)
            return []
        middle = len(choices) // 2
        return self.good(choices[:middle]) + self.good(choices[middle:])

    def drop(self, choices: Sequence[Choice], reason: str) -> None:
        self.skipped.extend(Skip(m.name, reason) for c in choices for m in c.members)

    def check(self, choices: list[Choice]) -> bool:
        """Tell whether all of these are undone; remember the nodes that stay otherwise."""
        self.left -= 1
        self.culprits.clear()
        self.proof = None
        plain, packed, added = self.build(choices)
        try:
            proof = prove(plain, packed, list(added), self.context)
        except ConverterError as error:
            prove(plain, plain, (), self.context)  # raises when the model itself is the reason
            self.reason = f"packed, onnxruntime does not open it: {error.what}"
            return False
        self.reason = _CHANGES
        self.culprits |= {added[name] for name in proof.left}
        if not proof.equal or proof.left:
            return False
        self.proof, self.tried = proof, choices
        return True
