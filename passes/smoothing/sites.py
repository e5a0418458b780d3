"""The activations of a model that can be smoothed, and smoothing them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx_ir as ir

from converter.calibration.statistic import Request
from converter.core import graph as g
from converter.core.contract import Skip
from passes.smoothing.factors import Choice, Input, choose, classic
from passes.smoothing.fold import NORMALIZATIONS, Edit, fold, trace, twin_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from converter.core.context import Context
    from passes.affine.grid import Array

_NO_MATRIX = "the weight is not a constant float32 matrix"


@dataclass(frozen=True, eq=False)
class Site:
    """An activation and the products that read it.

    Attributes:
        value: The activation; its channels are its last axis.
        readers: MatMul and Gemm nodes whose weights take up the factors.
        edits: What divides the activation by them.
        shared: Others read it too, so the normalization that makes it is computed twice.
    """

    value: ir.Value
    readers: tuple[Edit, ...]
    edits: tuple[Edit, ...]
    shared: bool

    @property
    def name(self) -> str:
        """Name of the activation."""
        return self.value.name or ""

    def weights(self) -> Array:
        """Return the weights of all readers as (channels, outputs of all)."""
        parts = []
        for edit in self.readers:
            array = g.constant_array(edit.node.inputs[edit.position])
            assert array is not None
            parts.append(array if edit.axis == -2 else array.T)
        return np.concatenate(parts, axis=1)


class Nodes(Protocol):
    """Anything that knows which nodes belong to it."""

    def __contains__(self, node: ir.Node, /) -> bool:
        """Tell whether the node does."""


def find(model: ir.Model, selection: Nodes) -> tuple[list[Site], list[Skip]]:
    """Return the activations of the main graph that can be smoothed, and what cannot be."""
    groups: dict[ir.Value, list[ir.Node]] = {}
    skipped: list[Skip] = []
    for node in model.graph:
        if not g.is_op(node, "MatMul", "Gemm") or node not in selection:
            continue
        if _weight(node) is None:
            skipped.append(Skip(g.label(node), _NO_MATRIX))
        elif node.inputs[0] is not None:
            groups.setdefault(node.inputs[0], []).append(node)
    sites = []
    for value, nodes in groups.items():
        site = _site(value, nodes)
        if isinstance(site, Site):
            sites.append(site)
        else:
            skipped += [Skip(g.label(node), site) for node in nodes]
    return sites, skipped


def _weight(node: ir.Node) -> Edit | None:
    """Return the weight of a product as what takes up factors of its input channels."""
    if node.attributes.get_int("transA", 0):  # MatMul has none
        return None
    value = node.inputs[1]
    tensor = g.constant(value)
    if value is None or tensor is None or tensor.dtype != ir.DataType.FLOAT or not tensor.size:
        return None
    if len(tensor.shape) != 2 or g.constant(node.inputs[0]) is not None:
        return None
    turned = node.attributes.get_int("transB", 0)  # MatMul has none
    return Edit(node, 1, 1, -1 if turned else -2)


def _site(value: ir.Value, nodes: Sequence[ir.Node]) -> Site | str:
    readers = tuple(edit for node in nodes if (edit := _weight(node)) is not None)
    for node in nodes:
        weight = node.inputs[1]
        if weight is not None and len(tuple(weight.uses())) != 1:
            return "its weight is used by others too"
    sizes = {_channels(edit) for edit in readers}
    if len(sizes) != 1:
        return "its readers disagree about the number of channels"
    found = trace(value, sizes.pop())
    if isinstance(found, str):
        return found
    others = bool({use.node for use in value.uses()} - set(nodes)) or value.is_graph_output()
    producer = value.producer()
    if others and (producer is None or producer.op_type not in NORMALIZATIONS):
        return "others read its input too"
    return Site(value, readers, tuple(found), others)


def _channels(edit: Edit) -> int:
    tensor = g.constant(edit.node.inputs[edit.position])
    assert tensor is not None
    return int(tensor.shape.numpy()[edit.axis])


def smooth(
    model: ir.Model, sites: Sequence[Site], context: Context, alpha: float | None
) -> tuple[dict[str, float], list[Skip], tuple[str, ...]]:
    """Smooth what pays, in place.

    Args:
        model: The model.
        sites: From :func:`find`.
        context: Has calibration data.
        alpha: Share of the spread that goes into the weights; None: what is best for each.

    Returns:
        Counts, what was left, and notes for the report.
    """
    skipped: list[Skip] = []
    if not sites:
        return {}, skipped, ()
    kinds = [Request(s.name, kind, -1) for s in sites for kind in ("absmax", "moments")]
    seen = context.collect(model, [*kinds, *(Request(site.name) for site in sites)])
    names, counts, shares = g.Names(model), dict.fromkeys(("activations_smoothed",), 0.0), []
    for site in sites:
        choice = _choose(site, seen, alpha)
        if isinstance(choice, str):
            skipped.append(Skip(site.name, choice))
            continue
        _apply(site, choice.factors, names)
        counts["activations_smoothed"] += 1
        if site.shared:
            counts["normalizations_added"] = counts.get("normalizations_added", 0) + 1
        shares.append(choice.share)
    if not shares:
        return {}, skipped, ()
    note = (
        f"predicted squared error of 8-bit products falls to {np.median(shares):.0%} (median of "
        f"{len(shares)} activations)"
    )
    return counts, skipped, (note,)


def _choose(site: Site, seen: Mapping[Request, Any], alpha: float | None) -> Choice | str:
    largest = np.asarray(seen[Request(site.name, "absmax", -1)].largest, np.float64)
    moments, span = seen[Request(site.name, "moments", -1)], seen[Request(site.name)]
    if not largest.size:
        return "its values were never computed on the calibration data"
    weights = site.weights()
    if not (np.isfinite(largest).all() and moments.finite and np.isfinite(weights).all()):
        return "its values or weights are NaN, infinite or too large"
    if largest.size != weights.shape[0]:
        return "its channels are not those of the weight"
    top = max(-span.low, span.high, 1e-30)
    width = (max(span.high, 0.0) - min(span.low, 0.0)) / top
    square = moments.mean**2 + moments.variance
    given = Input(largest, square, float(np.clip(width, 1.0, 2.0)), weights)
    if alpha is not None:
        return Choice(classic(given, alpha), 1.0, f"alpha {alpha}")
    return choose(given) or "its channels are even enough"


def _apply(site: Site, factors: Array, names: g.Names) -> None:
    edits = site.edits
    if site.shared:
        producer = site.value.producer()
        assert producer is not None
        made = twin_of(producer, names)
        edits = tuple(Edit(made, e.position, e.power, e.axis) for e in edits)
        for reader in site.readers:
            reader.node.replace_input_with(0, made.outputs[0])
    for edit in edits:
        fold(edit, factors, names)
    for reader in site.readers:
        fold(reader, factors, names)
