"""What a removal tells the user, gathered while it goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from converter.core.contract import Event, Outcome, Skip

if TYPE_CHECKING:
    from collections.abc import Iterable

    from converter.coupling.structure import Coupling, Freeze
    from passes.coupling.certificate import Certified
    from passes.reconstruction.repair import Repair


@dataclass(eq=False)
class Account:
    """Everything for the outcome of the pass."""

    skipped: list[Skip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)

    def outcome(self, *, modified: bool) -> Outcome:
        """Return the outcome."""
        return Outcome(
            modified=modified,
            counts=self.counts if modified else {},
            skipped=tuple(dict.fromkeys(self.skipped)),
            notes=tuple(dict.fromkeys(note for note in self.notes if note)),
            events=tuple(self.events),
        )

    def frozen(self, frozen: Iterable[Freeze]) -> None:
        """Say what cannot be removed; a single index is no loss to anybody."""
        self.skipped += [Skip(f.subject, f.reason, minor=f.size == 1) for f in frozen]

    def proof(self, done: Certified) -> None:
        """Say how well the cut agrees with the masked original, and what was put back."""
        self.skipped += [Skip(r.component, r.reason) for r in done.refused]
        if done.kept:
            self.notes.append(
                f"the cut model equals the original with zeros in place of what was removed, "
                f"within {done.difference:.1e} of the largest output on {done.feeds} inputs"
            )

    def repair(self, repair: Repair) -> None:
        """Say how the recovery went."""
        self.notes += repair.notes
        self.skipped += repair.skipped
        if repair.layers:
            self.counts["layers_fitted"] = float(sum(f.after < f.before for f in repair.layers))

    def sizes(self, before: Coupling, after: Coupling, samples: int) -> None:
        """Say what was gained; the couplings are of a run of so many samples."""
        macs = before.macs() // samples, after.macs() // samples
        weights = before.parameters(), after.parameters()
        self.counts["macs_removed"] = float(macs[0] - macs[1])
        self.counts["weights_removed"] = float(weights[0] - weights[1])
        if macs[0] and weights[0]:
            self.notes.append(
                f"left: {100 * macs[1] / macs[0]:.1f} % of the multiply-accumulates "
                f"({macs[0]:,} to {macs[1]:,}), {100 * weights[1] / weights[0]:.1f} % of the "
                f"weights"
            )
