"""What a rule of a rewriting pass is.

A :class:`Rule` is data: its name (which is also the name of its count), the operator types it is
indexed by, and a function ``(node, work)`` that edits the graph through
:class:`passes.rewriting.work.Work` and returns :class:`Applied`, a sentence that says why an
eligible node was left alone, or None when the node is not what the rule is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.rewriting.work import Work


@dataclass(frozen=True)
class Applied:
    """A rule has changed the graph.

    Attributes:
        revisit: Nodes to look at again beside the ones that the edit touched.
    """

    revisit: tuple[ir.Node, ...] = ()


Result = Applied | str | None


@dataclass(frozen=True)
class Rule:
    """One rewrite.

    Attributes:
        name: Names the count of its uses in the outcome.
        op_types: Operators of the default domain that the function is called with.
        function: See the module's description.
        tolerance: How outputs may differ, for people; "" means bit-equal.
        patterns: What it looks for, of a rule that is written as patterns.
        since: Operator set that it needs.
        below: By operator, those of which one has to be directly below the node; a quick test that
            saves most calls. An operator that is missing here has no such need.
        minor: No user could do anything about a near miss, so that no list shows it.
    """

    name: str
    op_types: tuple[str, ...]
    function: Callable[[ir.Node, Work], Result]
    tolerance: str = ""
    patterns: tuple[str, ...] = ()
    since: int = 1
    below: Mapping[str, frozenset[str]] = field(default_factory=dict)
    minor: bool = False


def minor(rules: Iterable[Rule], *but: str) -> tuple[Rule, ...]:
    """Return the rules, of which only those named ``but`` have near misses for everybody."""
    return tuple(replace(rule, minor=rule.name not in but) for rule in rules)
