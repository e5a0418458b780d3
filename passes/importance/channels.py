"""Importance of channels, heads and hidden units: how much the model loses without each of them.

Every criterion is a function of a component, the coupling that it belongs to, and the evidence
(what is known beside the weights), and gives one number per atom: the higher, the rather it stays.
Numbers are comparable within a component; those of ``l2`` and ``l1`` are 1 on average, those of
``wanda`` are shares of what the readers compute, so these can be compared between components, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.calibration.statistic import Request
from converter.core.graph import constant_array, is_op
from converter.coupling.structure import Component, Coupling, Sink, Use
from passes.importance.weights import floats, weight_at, weight_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context

Array = np.ndarray[Any, Any]
OUTLIER = 3.0
"""Standard deviations above the mean from which on ``clp`` takes a channel for a backdoor."""
_NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization")


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a criterion may use beside the weights.

    Attributes:
        powers: Mean square of every index of the axis that a sink sums over: float64 (size,), by
            the input of the node. Without it every index counts the same.
        gradients: Gradient of the loss, of the shape of the constant, by the input of the node.
        seed: Of random orders.
    """

    powers: Mapping[Use, Array] = field(default_factory=dict)
    gradients: Mapping[Use, Array] = field(default_factory=dict)
    seed: int = 0


Score = Callable[[Component, Coupling, Evidence], Array]


@dataclass(frozen=True)
class Criterion:
    """One way to order the atoms of a component.

    Attributes:
        score: Gives float64 (atoms,); higher: rather kept.
        what: For help texts.
        data: It reads ``Evidence.powers``.
    """

    score: Score
    what: str
    data: bool = False


def observe_powers(
    model: ir.Model, coupling: Coupling, components: Sequence[Component], context: Context
) -> dict[Use, Array]:
    """Measure the mean square of everything that the components' sinks sum up.

    Args:
        model: With the nodes of the components.
        coupling: Of this model.
        components: Whose sinks are looked at.
        context: With samples.

    Returns:
        For :class:`Evidence`; without the values that are not finite on the samples.

    Raises:
        MissingDataError: There are no samples.
    """
    wanted: dict[Use, Request] = {}
    for sink in (s for component in components for s in component.sinks):
        value = sink.node.inputs[sink.position]
        axes = coupling.uses.get((sink.node, sink.position), ())
        if value is not None and value.name and sink.axis < len(axes):
            request = Request(value.name, "moments", sink.axis - len(axes))
            wanted[sink.node, sink.position] = request
    seen = context.collect(model, list(dict.fromkeys(wanted.values())))
    found: dict[Use, Array] = {}
    for use, request in wanted.items():
        moments = seen[request]
        if moments.count and moments.finite:
            found[use] = np.asarray(moments.squares / moments.count, np.float64)
    return found


def outliers(scores: Array, limit: float = OUTLIER) -> Array:
    """Return which atoms ``clp`` removes: bool (atoms,).

    Args:
        scores: Those of the criterion ``clp``: minus the distance to the mean in deviations.
        limit: Deviations above the mean; called u in the paper, which uses 3.
    """
    return np.asarray(scores < -limit)


# --- criteria -----------------------------------------------------------------------------------


def _l2(component: Component, coupling: Coupling, evidence: Evidence) -> Array:
    """Euclidean norm of everything that makes or reads an atom (group norm, Fang et al. 2023)."""
    total = sum(_over(component, coupling, np.square), np.zeros(component.atoms.size))
    return _relative(np.sqrt(total))


def _l1(component: Component, coupling: Coupling, evidence: Evidence) -> Array:
    """Sum of magnitudes of everything that makes or reads an atom."""
    return _relative(sum(_over(component, coupling, np.abs), np.zeros(component.atoms.size)))


def _wanda(component: Component, coupling: Coupling, evidence: Evidence) -> Array:
    """Share of every reader's output power (Wanda, Sun et al. 2023, summed over columns).

    The power of a column is its sum of squares times the mean square of what it multiplies; what
    is summed without weights counts with its own mean square.
    """
    total = np.zeros(component.atoms.size)
    for sink in component.sinks:
        total += _share(sink, component, coupling, evidence)
    if not total.any():  # nobody reads them through weights, or all of that is zero
        return _l2(component, coupling, evidence)
    return total


def _bn(component: Component, coupling: Coupling, evidence: Evidence) -> Array:
    """Mean magnitude of the scales of normalizations (Liu et al. 2017); else norm of the rows."""
    found = []
    for (node, position), axes in coupling.uses.items():
        if position == 1 and len(axes) == 1 and is_op(node, *_NORMS):
            scale = weight_of(node.inputs[1])
            if scale is not None and _concerns(component, axes[0]):
                found.append(_gather(np.abs(floats(scale)), axes[0], component, coupling))
    if found:
        return np.asarray(np.mean(found, axis=0))
    total = np.zeros(component.atoms.size)
    for node, position, axis in component.producers:
        total += _along(node, position, axis, component, coupling, np.square)
    return _relative(np.sqrt(total))


def _clp(component: Component, coupling: Coupling, evidence: Evidence) -> Array:
    """Minus the distance of a channel's Lipschitz constant to the mean, in deviations.

    Zheng et al. 2022, "Data-free Backdoor Removal based on Channel Lipschitzness": channels that
    carry a backdoor have an unusually large constant, bounded by the spectral norm of the kernel
    (channels, positions) that makes the channel, with the normalization behind it folded in. Of
    several kernels the most unusual one counts. Channels with large constants go first.
    """
    worst = np.full(component.atoms.size, -np.inf)
    for node, position, axis in component.producers:
        weight = weight_at(node, position)
        labels = _axis_labels(coupling, node, position, axis)
        if weight is None or labels is None or weight.ndim < 2 or weight.shape[axis] < 2:
            continue
        constants = _spectral(floats(weight), axis) * _folded_scale(node, weight.shape[axis])
        spread = float(constants.std())
        if spread > 0:
            distance = (constants - constants.mean()) / spread
            at = _places(labels, component, coupling)
            np.maximum.at(worst, at[at >= 0], distance[at >= 0])
    return np.asarray(-np.where(np.isfinite(worst), worst, 0.0))


def _random(component: Component, coupling: Coupling, evidence: Evidence) -> Array:
    """Nothing: a random order, the baseline."""
    rng = np.random.default_rng((evidence.seed & 0xFFFFFFFF, component.index))
    return rng.random(component.atoms.size)


CRITERIA: Mapping[str, Criterion] = {
    "l2": Criterion(_l2, "norm of the weights that make and read it"),
    "l1": Criterion(_l1, "magnitudes of the weights that make and read it"),
    "wanda": Criterion(_wanda, "its share of the power of what its readers compute", data=True),
    "bn": Criterion(_bn, "scale of the normalization behind it"),
    "clp": Criterion(_clp, "unusually large Lipschitz constants go first"),
    "random": Criterion(_random, "a random order"),
}


def score(name: str, component: Component, coupling: Coupling, evidence: Evidence) -> Array:
    """Return the importance of every atom of a component: float64 (atoms,).

    Numbers that are not finite (weights that are NaN) become infinite: such atoms stay.

    Raises:
        KeyError: There is no such criterion.
    """
    found = CRITERIA[name].score(component, coupling, evidence)
    return np.where(np.isfinite(found), found, np.inf)


# --- from axes to atoms -------------------------------------------------------------------------


def _places(labels: Array, component: Component, coupling: Coupling) -> Array:
    """Return the position in ``component.atoms`` of every index; -1: it belongs to another."""
    table = np.full(coupling.size + 1, -1)
    table[component.atoms] = np.arange(component.atoms.size)
    return np.asarray(table[labels])  # label -1 reads the last entry, which no atom has


def _concerns(component: Component, labels: Array | None) -> bool:
    return labels is not None and bool(np.isin(component.atoms, labels).all())


def _gather(numbers: Array, labels: Any, component: Component, coupling: Coupling) -> Array:
    """Add up the numbers of the indices of an axis per atom: float64 (atoms,)."""
    total = np.zeros(component.atoms.size)
    at = _places(labels, component, coupling)
    np.add.at(total, at[at >= 0], numbers[at >= 0])
    return total


def _axis_labels(coupling: Coupling, node: ir.Node, position: int, axis: int) -> Array | None:
    axes = coupling.uses.get((node, position), ())
    return axes[axis] if axis < len(axes) else None


def _sums(array: Array, axis: int, function: Callable[[Array], Array]) -> Array:
    """Return the sum of a function of all elements per index of an axis: float64 (size,)."""
    others = tuple(a for a in range(array.ndim) if a != axis)
    return np.asarray(function(floats(array)).sum(axis=others, dtype=np.float64))


def _along(
    node: ir.Node,
    position: int,
    axis: int,
    component: Component,
    coupling: Coupling,
    function: Callable[[Array], Array],
) -> Array:
    """Return the sum of a function of a constant's elements per atom."""
    weight = weight_at(node, position)
    labels = _axis_labels(coupling, node, position, axis)
    if weight is None or labels is None or weight.shape[axis] != labels.size:
        return np.zeros(component.atoms.size)
    return _gather(_sums(weight, axis, function), labels, component, coupling)


def _over(
    component: Component, coupling: Coupling, function: Callable[[Array], Array]
) -> Iterator[Array]:
    """Yield the sums of every axis that makes or reads the atoms, each once."""
    read = [
        (s.node, s.weight, s.weight_axis)
        for s in component.sinks
        if s.weight is not None and s.weight_axis is not None
    ]
    for node, position, axis in dict.fromkeys([*component.producers, *read]):
        yield _along(node, position, axis, component, coupling, function)


def _share(sink: Sink, component: Component, coupling: Coupling, evidence: Evidence) -> Array:
    """Return the share of the sink's power that comes from every atom of the component."""
    labels = _axis_labels(coupling, sink.node, sink.position, sink.axis)
    if labels is None:
        return np.zeros(component.atoms.size)
    powers = evidence.powers.get((sink.node, sink.position))
    if powers is None or powers.size != labels.size:
        powers = np.ones(labels.size)
    columns = _columns(sink, labels.size)
    if columns is None:
        columns = np.ones(labels.size)
    shares = columns * powers
    total = float(shares.sum())
    if not total > 0:
        return np.zeros(component.atoms.size)
    return _gather(shares / total, labels, component, coupling)


def _columns(sink: Sink, size: int) -> Array | None:
    """Return the sum of squares of what multiplies each index of the sink's axis, or None."""
    if sink.weight is None or sink.weight_axis is None:
        return None
    weight = weight_of(sink.node.inputs[sink.weight])
    if weight is None:
        return None
    axis = sink.weight_axis
    if weight.shape[axis] == size:
        return _sums(weight, axis, np.square)
    groups = sink.node.attributes.get_int("group", 1)
    if weight.shape[axis] * groups != size or axis != 1 or weight.shape[0] % groups:
        return None
    cut = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    squares = np.square(floats(cut)).sum(axis=(1, 3), dtype=np.float64)
    return np.asarray(squares.reshape(-1))


def _relative(numbers: Array) -> Array:
    """Divide by the mean, so that components can be compared."""
    mean = float(numbers.mean()) if numbers.size else 0.0
    return np.asarray(numbers / mean) if np.isfinite(mean) and mean > 0 else numbers


def _spectral(weight: Array, axis: int) -> Array:
    """Return the spectral norm of every index's kernel (channels, positions): float64 (size,)."""
    rows = np.moveaxis(weight, axis, 0).astype(np.float64)
    kernels = rows.reshape(rows.shape[0], rows.shape[1], -1)
    if not np.isfinite(kernels).all():
        return np.full(rows.shape[0], np.nan)
    return np.asarray(np.linalg.norm(kernels, 2, axis=(1, 2)))


def _folded_scale(node: ir.Node, size: int) -> Array:
    """Return the magnitude by which a BatchNormalization right behind scales each channel."""
    users = list(node.outputs[0].uses())
    reader = users[0][0] if len(users) == 1 else None
    if reader is None or not is_op(reader, "BatchNormalization"):
        return np.ones(size)
    scale, variance = (constant_array(reader.inputs[i]) for i in (1, 4))
    if scale is None or variance is None or scale.size != size or variance.size != size:
        return np.ones(size)
    epsilon = reader.attributes.get_float("epsilon", 1e-5)
    deviation = np.sqrt(np.maximum(variance.astype(np.float64), 0) + epsilon)
    return np.asarray(np.abs(scale.astype(np.float64)) / deviation)
