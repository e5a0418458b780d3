"""``fold_constants``: compute in advance what does not depend on inputs, unless the file grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_ir as ir

from converter.core.graph import constant
from converter.core.params import Param
from converter.errors import ConverterError
from passes.rewriting import sizes, turned
from passes.rewriting.facts import static
from passes.rewriting.foldable import BIGGER, Foldable, foldable
from passes.rewriting.rename import renamed
from passes.rewriting.rewrite import Rewrite
from passes.rewriting.rule import Applied, Result, Rule
from passes.rewriting.targets import target_of
from passes.rewriting.work import Work

Array = np.ndarray[Any, Any]

MORE_NODES = "the results would be more nodes than those that compute them"
_NODE_WORTH = 1024  # bytes
_MOST_RUNS = 64  # bounds the search for the nodes that onnxruntime cannot compute
_SHARED_FROM = 256
_MOST_ROUNDS = 8


@dataclass(frozen=True)
class FoldConstants(Rewrite):
    """Compute nodes whose inputs are constants, and shapes that are already certain.

    The values come from onnxruntime itself, all of them from one run in a child process. A result
    replaces its nodes only if the file does not grow by more than is allowed.

    Attributes:
        largest: Larger constants are made only if the file gets smaller by that.
        growth: How many bytes the model may grow altogether.
    """

    name: ClassVar[str] = "fold_constants"
    summary: ClassVar[str] = "compute what does not depend on inputs, unless the file would grow"

    largest: Annotated[
        int, Param("most bytes of a constant that makes the file bigger", ge=0, le=2147483648)
    ] = 1048576
    growth: Annotated[int, Param("bytes by which the model may grow", ge=0, le=2147483648)] = 0

    def rewrite(self, work: Work) -> None:
        """Replace what is constant by its value."""
        work.saved += self.growth
        largest = min(self.largest, work.context.settings.limits.fold_bytes)
        if self.growth:
            largest = self.largest
        fold_constants(work, FoldBudget(largest, self.growth))


@dataclass(frozen=True)
class FoldBudget:
    """What folding may cost.

    Attributes:
        largest: Bytes of a constant that makes the file bigger.
        growth: Bytes by which the model may grow.
    """

    largest: int
    growth: int = 0

    def allows(self, work: Work, cost: int, nodes: int) -> bool:
        """Tell whether a result may cost so much: a node that goes is worth up to a kilobyte."""
        return cost <= min(_NODE_WORTH * nodes + self.growth, max(0, work.saved))


def fold_constants(work: Work, budget: FoldBudget | None = None) -> None:
    """Replace what is constant by its value; the body of the pass, used by ``simplify`` too."""
    budget = budget or FoldBudget(work.context.settings.limits.fold_bytes)
    refused: set[ir.Node] = set()
    for _ in range(_MOST_ROUNDS):
        before, known = work.edits, len(refused)
        work.sweep(RULES)
        found = foldable(work, budget.largest, refused)
        _commit_all(work, _clusters(work, found), found, budget)
        refused |= found.refused
        work.finish()
        if work.edits == before and len(refused) == known:
            return
        if work.edits != before:
            work.forget_facts()


# Shape vectors with parts that only the run knows


def _shape_target(node: ir.Node, work: Work) -> Result:
    """Write a computed target of Reshape as constant sizes, 0 (same as the input's) and -1."""
    source = node.inputs[0]
    if source is None or len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    if constant(node.inputs[1]) is not None or work.opset(node) < 5:
        return None
    content = work.facts.of(node.inputs[1]).content
    if content is None or static(content) is not None:
        return None
    allow = node.attributes.get("allowzero")
    if allow is not None and allow.value and 0 in content:
        return "its target has a size of 0 beside unknown ones"
    target = target_of(content, work.facts.of(source).dims)
    if target is None:
        return "more than one size of its target depends on the input; fix_shapes gives it one"
    return _write_target(node, node.inputs[1], work, target)


def _write_target(node: ir.Node, old: ir.Value, work: Work, target: list[int]) -> Result:
    base = f"{old.name or 'shape'}_constant"
    cost = sizes.new_constant_bytes(8 * len(target), 1, base) + len(base) - len(old.name or "")
    if not work.affords(cost - _cone_bytes(work, old)):
        return BIGGER
    node.attributes.pop("allowzero", None)  # a 0 now means the size of the input
    work.set_input(node, 1, work.new_constant(node, base, np.array(target, np.int64)))
    return Applied()


def _cone_bytes(work: Work, value: ir.Value) -> int:
    """Return the bytes of the nodes and constants that only this value needs, counted low."""
    total, steps = 0, 256
    stack = [value]
    while stack and steps:
        steps -= 1
        current = stack.pop()
        if len(current.uses()) != 1 or current.is_graph_output():
            continue
        producer = current.producer()
        if producer is None:
            total += work.constant_saving(current, {use.node for use in current.uses()})
        elif len(producer.outputs) == 1 and producer in work.selection:
            total += sizes.node_bytes(producer)
            stack.extend(v for v in producer.inputs if v is not None)
    return total


RULES = (Rule("shape_targets_folded", ("Reshape",), _shape_target), *turned.RULES)


# Nodes with known results


@dataclass
class _Cluster:
    nodes: list[ir.Node] = field(default_factory=list)
    fronts: list[ir.Value] = field(default_factory=list)


def _clusters(work: Work, found: Foldable) -> list[_Cluster]:
    """Group foldable nodes; a front is an output that something outside the group reads."""
    parent: dict[object, object] = {}

    def root(key: object) -> object:
        while parent.setdefault(key, key) is not key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for node in found.nodes:
        for value in dict.fromkeys(v for v in (*node.inputs, *node.outputs) if v is not None):
            tensor = constant(value)
            if found.has(value) or (tensor is not None and tensor.nbytes >= _SHARED_FROM):
                parent[root(value)] = root(node)
    groups: dict[object, _Cluster] = {}
    for node in found.nodes:
        cluster = groups.setdefault(root(node), _Cluster())
        cluster.nodes.append(node)
        cluster.fronts += [output for output in node.outputs if _is_front(output, found)]
    return [cluster for cluster in groups.values() if cluster.fronts]


def _is_front(value: ir.Value, found: Foldable) -> bool:
    return value.is_graph_output() or any(use.node not in found.nodes for use in value.uses())


def _commit_all(
    work: Work, clusters: Sequence[_Cluster], found: Foldable, budget: FoldBudget
) -> None:
    """Compute all clusters in as few runs as possible and replace those that pay."""
    wanted: dict[int, list[_Cluster]] = {}
    for cluster in clusters:
        if _is_too_big(work, cluster, found, budget):
            _refuse(work, cluster, BIGGER)
            # Without the nodes that make data larger, what is before them may still pay.
            found.refused |= found.growing & set(cluster.nodes)
            continue
        wanted.setdefault(work.opset(cluster.nodes[0]), []).append(cluster)
    for opset, group in wanted.items():
        values = _Runs(work, found, {"": opset}).compute(group)
        for cluster in group:
            if all(front in values for front in cluster.fronts):
                _commit(work, cluster, values, budget)


def _is_too_big(work: Work, cluster: _Cluster, found: Foldable, budget: FoldBudget) -> bool:
    """Tell from the expected sizes that a cluster cannot pay; unknown sizes count nothing."""
    cost = sum(_price(work, front, found.nbytes.get(front, 0), 0) for front in cluster.fronts)
    return not budget.allows(work, cost - _gain(work, cluster), len(cluster.nodes))


def _price(work: Work, front: ir.Value, nbytes: int, rank: int) -> int:
    """Return the bytes of the constant that takes the place of a front."""
    cost = sizes.new_constant_bytes(nbytes, rank, front.name or "")
    return cost + sizes.CONSTANT_NODE_BYTES if _becomes_node(work, front) else cost


def _becomes_node(work: Work, front: ir.Value) -> bool:
    producer = front.producer()
    return front.is_graph_output() or (producer is not None and work.wants_nodes(producer))


def _makes_more_nodes(work: Work, cluster: _Cluster) -> bool:
    """Tell whether the Constant nodes that results become outnumber the nodes that go."""
    made = sum(_becomes_node(work, front) for front in cluster.fronts)
    return made > len(_leaving(cluster))


def _gain(work: Work, cluster: _Cluster) -> int:
    """Return the bytes of the nodes that go and of the constants that only they read."""
    nodes = _leaving(cluster)
    read = dict.fromkeys(v for node in nodes for v in node.inputs if v is not None)
    constants = sum(work.constant_saving(value, nodes) for value in read)
    return constants + sum(sizes.node_bytes(node) for node in nodes)


def _leaving(cluster: _Cluster) -> set[ir.Node]:
    """Return the nodes that nobody reads once the fronts are constants; dead ones stay."""
    leaving: set[ir.Node] = set()
    fronts = set(cluster.fronts)
    for node in reversed(cluster.nodes):
        users = [use.node for v in node.outputs if v not in fronts for use in v.uses()]
        if leaving.issuperset(users) and (users or fronts.intersection(node.outputs)):
            leaving.add(node)
    return leaving


def _refuse(work: Work, cluster: _Cluster, reason: str) -> None:
    for front in cluster.fronts:
        producer = front.producer()
        if producer is not None:
            work.skip(producer, "fold", reason)


def _commit(
    work: Work, cluster: _Cluster, values: dict[ir.Value, Array], budget: FoldBudget
) -> None:
    problem = next((p for p in (_problem(f, values[f]) for f in cluster.fronts) if p), None)
    arrays = [(front, values[front]) for front in cluster.fronts]
    cost = sum(_price(work, front, array.nbytes, array.ndim) for front, array in arrays)
    growth = cost - _gain(work, cluster)
    if problem is None and not budget.allows(work, growth, len(cluster.nodes)):
        problem = BIGGER
    if problem is None and _makes_more_nodes(work, cluster):
        problem = MORE_NODES
    if problem is None and growth > 0 and any(a.nbytes > budget.largest for _, a in arrays):
        problem = f"its result is larger than {budget.largest} bytes"
    if problem is not None:
        _refuse(work, cluster, problem)
        return
    for front, array in arrays:
        _replace(work, front, array)
    work.counts["nodes_folded"] += sum(1 for node in cluster.nodes if not work.alive(node))


def _replace(work: Work, front: ir.Value, array: Array) -> None:
    producer = front.producer()
    assert producer is not None
    public = front.is_graph_output()
    base = f"{front.name or 'value'}_constant" if public else front.name or "value"
    new = work.new_constant(producer, base, array, as_node=public)
    name = front.name
    if work.redirect(front, new, renamed=not public):
        if work.removable(producer):
            work.discard(producer)
            if not public and name:
                front.name = None
                new.name = name
    elif (maker := new.producer()) is not None:
        work.discard(maker)
    else:
        work.drop_initializer(new)


def _problem(front: ir.Value, array: Array) -> str | None:
    """Return why a computed value may not be stored."""
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        return f"its result has type {array.dtype}"
    declared = front.dtype
    if declared is not None and declared.numpy() != array.dtype:
        return f"it computed {array.dtype} instead of {declared.name}"
    return None


@dataclass
class _Runs:
    """Computes values with onnxruntime: all at once, and in halves where that fails."""

    work: Work
    found: Foldable
    opsets: dict[str, int]
    left: int = _MOST_RUNS

    def compute(self, clusters: Sequence[_Cluster]) -> dict[ir.Value, Array]:
        """Return the values of the clusters that can be computed."""
        values = {
            front: self.found.known[front]
            for cluster in clusters
            for front in cluster.fronts
            if front in self.found.known
        }
        rest = [c for c in clusters if any(front not in values for front in c.fronts)]
        values.update(self._run(rest) if rest else {})
        return values

    def _run(self, clusters: Sequence[_Cluster]) -> dict[ir.Value, Array]:
        if not self.left or self.work.context.services is None:
            reason = "too many nodes cannot be computed" if not self.left else "nothing can run it"
            for cluster in clusters:
                _refuse(self.work, cluster, reason)
            return {}
        self.left -= 1
        model, outputs = _model_of(clusters, self.found, self.opsets)
        try:
            (result,) = self.work.context.run(model, [{}], list(outputs))
        except ConverterError as error:
            if len(clusters) == 1:
                _refuse(self.work, clusters[0], f"onnxruntime cannot compute it: {error.what}")
                return {}
            middle = len(clusters) // 2
            return self._run(clusters[:middle]) | self._run(clusters[middle:])
        tensors = {
            outputs[n]: a for n, a in result.items() if isinstance(a, np.ndarray | np.generic)
        }
        return {front: np.asarray(array) for front, array in tensors.items()}


def _model_of(
    clusters: Sequence[_Cluster], found: Foldable, opsets: dict[str, int]
) -> tuple[ir.Model, dict[str, ir.Value]]:
    """Copy the nodes of the clusters into a model without inputs; outputs by their names in it."""
    copies: dict[ir.Value, ir.Value] = {}
    initializers: list[ir.Value] = []
    nodes: list[ir.Node] = []

    def copied(value: ir.Value | None) -> ir.Value | None:
        if value is None or value in copies:
            return None if value is None else copies[value]
        known = found.known.get(value)
        tensor = constant(value) if known is None else ir.tensor(known)
        assert tensor is not None
        name = f"v{len(copies)}"
        copy = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=renamed(tensor, name),
        )
        initializers.append(copy)
        copies[value] = copy
        return copy

    for cluster in clusters:
        for node in cluster.nodes:
            if all(output in found.known for output in node.outputs):
                continue
            inputs = [copied(value) for value in node.inputs]
            made = [ir.Value(name=f"v{len(copies) + i}", type=o.type) for i, o in _each(node)]
            copies.update(zip(node.outputs, made, strict=True))
            attributes = node.attributes.values()
            nodes.append(ir.Node(node.domain, node.op_type, inputs, attributes, outputs=made))
    fronts = [f for c in clusters for f in c.fronts if f not in found.known]
    outputs = [copies[front] for front in fronts]
    graph = ir.Graph(
        [], outputs, nodes=nodes, initializers=initializers, opset_imports=opsets, name="fold"
    )
    names = {copies[front].name or "": front for front in fronts}
    return ir.Model(graph, ir_version=8), names


def _each(node: ir.Node) -> list[tuple[int, ir.Value]]:
    return list(enumerate(node.outputs))
