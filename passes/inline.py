"""``inline``: calls of model functions are replaced by the bodies of the functions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from converter.core.graph import subgraphs
from passes.inlining.calls import Judge, Key, Verdict, all_nodes, callers_first
from passes.inlining.instance import Instance, Taken, instantiate
from passes.inlining.weigh import declared_bytes, definition_bytes, nodes_bytes
from passes.rewriting.rewrite import Rewrite
from passes.rewriting.work import Work

if TYPE_CHECKING:
    import onnx_ir as ir

_MOST_NODES = 100_000
_MOST_BYTES = 1 << 28
_TINY = 1
_RECURSIVE = "its function calls itself"
_TOO_LARGE = "inlining it would make the model too large"
_NEW_IMPORT = "the model would have to import an operator set that only its function imports"


@dataclass(frozen=True)
class Inline(Rewrite):
    """Replace calls of model functions by their bodies and remove functions without callers.

    A function that is called more than once is copied for each call, so the file may grow (what
    ``simplify`` inlines by itself never makes it bigger). A call stays, with the reason, when its
    function uses another version of an operator than the graph around it, calls itself, or takes a
    graph as attribute. The operator set of a domain that only a function imports is added to the
    model, unless the opset is to be kept.
    """

    name: ClassVar[str] = "inline"
    summary: ClassVar[str] = "replace calls of model functions by their bodies"
    changes_interface: ClassVar[bool] = True  # operator sets that only functions import

    def rewrite(self, work: Work) -> None:
        """Inline the chosen calls."""
        inline(work)


def inline(
    work: Work,
    *,
    only_if_smaller: bool = False,
    new_imports: bool = True,
    only: Collection[Key] | None = None,
) -> None:
    """Inline calls of model functions; the body of the pass.

    Args:
        work: The model; facts and scopes are forgotten when anything was inlined.
        only_if_smaller: Inline a function only where that makes neither the file bigger nor the
            nodes more: one that has a single node.
        new_imports: The model may have to import operator sets that only functions import.
        only: Inline these functions and no others; None: all.
    """
    if not work.model.functions:
        return
    before = work.edits
    imports = new_imports and not only_if_smaller
    _Inliner(work, only_if_smaller=only_if_smaller, new_imports=imports).run(only)
    if work.edits != before:
        work.__dict__.pop("names", None)
        work.refresh()


class _Inliner:
    """One run over all functions, callers first."""

    def __init__(self, work: Work, *, only_if_smaller: bool, new_imports: bool) -> None:
        self.work = work
        self.new_imports = new_imports and not work.context.keep_opset
        self.functions = work.model.functions
        self.smaller = only_if_smaller
        self.judge = Judge(self.functions)
        self.calls: dict[Key, dict[ir.Node, None]] = {key: {} for key in self.functions}
        self.roots: dict[ir.Graph, ir.Graph] = {}
        self.owners = {function.graph: key for key, function in self.functions.items()}
        self.taken: dict[ir.Graph, Taken] = {}
        self.nodes_left, self.bytes_left = _MOST_NODES, _MOST_BYTES
        for root in (work.model.graph, *self.owners):
            self._register(root, root)

    def run(self, only: Collection[Key] | None) -> None:
        order, recursive = callers_first(self.functions)
        for key in recursive:
            for call in self.calls[key]:
                self._skip(call, _RECURSIVE)
        for key in order:
            if only is not None and key not in only:
                continue
            had_calls = bool(self.calls[key])
            if had_calls:
                self._inline_function(key)
            if not self.calls[key] and (had_calls or not self.work.selection.include):
                self._remove(key)

    def _register(self, graph: ir.Graph, root: ir.Graph) -> None:
        """Note the calls in a graph, and which root it is under."""
        self.roots[graph] = root
        for node in all_nodes(graph):
            self._note(node, root)

    def _note(self, node: ir.Node, root: ir.Graph) -> None:
        if node.op_identifier() in self.calls:
            self.calls[node.op_identifier()][node] = None
        for inner in subgraphs(node):
            self.roots[inner] = root

    def _root(self, call: ir.Node) -> ir.Graph:
        return self.roots[self.work.home(call)]

    def _skip(self, call: ir.Node, reason: str) -> None:
        if call in self.work.selection and not self.smaller:
            self.work.skip(call, "inline", reason)

    def _verdict(self, call: ir.Node) -> Verdict:
        root = self._root(call)
        owner = self.owners.get(root)
        declared = self.functions[owner].attributes if owner is not None else {}
        found = self.judge.verdict(call, root, declared)
        if found.imports and not owner and not self.new_imports:
            return Verdict(_NEW_IMPORT)
        return found

    def _inline_function(self, key: Key) -> None:
        function = self.functions[key]
        if self.smaller and not self._could_be_smaller(key):
            return
        size, count = nodes_bytes(function.graph), sum(1 for _ in all_nodes(function.graph))
        calls = len(self.calls[key])
        too_large = count * calls > self.nodes_left or size * calls > self.bytes_left
        made: list[tuple[ir.Node, Instance, Verdict]] = []
        for call in list(self.calls[key]):
            if call not in self.work.selection:
                continue
            verdict = self._verdict(call)
            if not verdict.reason and too_large:
                verdict = Verdict(_TOO_LARGE)
            if verdict.reason:
                self._skip(call, verdict.reason)
                continue
            self.nodes_left -= count
            self.bytes_left -= size
            made.append((call, self._instance(call, function), verdict))
        growth = self._growth(function, made)
        if self.smaller and (growth > 0 or len(made) < len(self.calls[key])):
            for _, instance, _ in made:
                instance.drop()
            return
        self.work.saved -= growth
        for call, instance, verdict in made:
            self._place(call, instance, verdict)

    def _could_be_smaller(self, key: Key) -> bool:
        """A quick look, so that not every function is copied to find out."""
        calls = self.calls[key]
        if any(call not in self.work.selection for call in calls):
            return False
        return sum(1 for _ in all_nodes(self.functions[key].graph)) <= _TINY

    def _instance(self, call: ir.Node, function: ir.Function) -> Instance:
        root = self._root(call)
        if root not in self.taken:
            self.taken[root] = Taken(root)
        return instantiate(call, function, self.taken[root])

    def _growth(self, function: ir.Function, made: list[tuple[ir.Node, Instance, Verdict]]) -> int:
        growth = sum(
            nodes_bytes(instance.nodes) + declared_bytes(instance.nodes) - nodes_bytes([call])
            for call, instance, _ in made
        )
        if len(made) == len(self.calls[function.identifier()]):
            growth -= definition_bytes(function)
        return growth

    def _place(self, call: ir.Node, instance: Instance, verdict: Verdict) -> None:
        """Put the nodes where the call is and remove the call."""
        graph, root = self.work.home(call), self._root(call)
        root.opset_imports.update(verdict.imports)
        graph.insert_before(call, instance.nodes)
        for old, new in zip(call.outputs, instance.outputs, strict=False):
            if old.uses() or old.is_graph_output():
                old.replace_all_uses_with(new, replace_graph_outputs=True)
        for node in instance.nodes:
            self._note_deep(node, root)
        del self.calls[call.op_identifier()][call]
        graph.remove(call, safe=True)
        self.work.edits += 1
        self.work.counts["calls_inlined"] += 1

    def _note_deep(self, node: ir.Node, root: ir.Graph) -> None:
        self._note(node, root)
        for inner in subgraphs(node):
            self._register(inner, root)

    def _remove(self, key: Key) -> None:
        """Remove a function that nobody calls, and the calls in it."""
        for node in all_nodes(self.functions[key].graph):
            self.calls.get(node.op_identifier(), {}).pop(node, None)
        self.owners.pop(self.functions[key].graph)
        del self.functions[key]
        self.work.edits += 1
        self.work.counts["functions_removed"] += 1
