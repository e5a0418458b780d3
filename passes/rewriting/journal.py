"""What a clean-up run writes down: counts, times, and why eligible nodes were left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from converter.core.contract import Event, Outcome, Skip
from converter.core.graph import label
from converter.core.select import Selection

if TYPE_CHECKING:
    import onnx_ir as ir

FIRED = "applied"
GONE = "removed"


@dataclass
class Journal:
    """The notes of one run.

    Attributes:
        watched: Nodes that the user asked about, or None.
        counts: How often each rule fired.
        seconds: Time spent in each rule.
        acting: The rule that is editing at the moment.
    """

    watched: Selection | None = None
    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    acting: str = ""
    _skips: dict[tuple[ir.Node, str], tuple[str, bool]] = field(default_factory=dict)
    _events: dict[tuple[str, str], str] = field(default_factory=dict)

    def fired(self, node: ir.Node, rule: str, subject: str) -> None:
        """Count a use of a rule; ``subject`` is the node's label before its output was renamed."""
        self.counts[rule] += 1
        self._skips.pop((node, rule), None)
        if self.watches(node):
            self._events[subject, rule] = FIRED

    def watches(self, node: ir.Node) -> bool:
        """Tell whether the user asked about the node."""
        return self.watched is not None and node in self.watched

    def skip(self, node: ir.Node, rule: str, reason: str, *, minor: bool = False) -> None:
        """Note why an eligible node was left alone; the last reason of a rule counts."""
        self._skips[node, rule] = reason, minor
        self.explain(node, rule, reason)

    def gone(self, node: ir.Node) -> None:
        """Note that a node was removed."""
        self.explain(node, self.acting or "clean-up", GONE)

    def explain(self, node: ir.Node, rule: str, what: str) -> None:
        """Note what a rule did or did not do to a node that the user asked about."""
        if self.watches(node):
            key = (label(node), rule)
            if self._events.get(key) != FIRED:
                self._events[key] = what

    def spend(self, rule: str, seconds: float) -> None:
        """Add to the time of a rule."""
        self.seconds[rule] = self.seconds.get(rule, 0.0) + seconds

    def outcome(
        self, *, modified: bool, alive: Callable[[ir.Node], bool], notes: tuple[str, ...]
    ) -> Outcome:
        """Report what was done; reasons about nodes that are gone do not matter any more."""
        skips = (
            Skip(label(node), *reason) for (node, _), reason in self._skips.items() if alive(node)
        )
        return Outcome(
            modified=modified,
            counts={name: float(count) for name, count in sorted(self.counts.items()) if count},
            skipped=tuple(dict.fromkeys(skips)),
            notes=notes,
            seconds=dict(self.seconds),
            events=tuple(Event(*key, what) for key, what in self._events.items()),
        )
