"""The masked original: removed atoms are made zero where they are summed up, and nowhere else.

A model that was cut computes what its masked original computes. Statistics are taken over what is
left: the mean over 48 of 64 channels is their sum divided by 48. The masked original says so with
masks and factors, the cut model by being smaller; that the two agree shows that the cut is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core import graph as g
from passes.coupling.edit import Edit
from passes.coupling.mask_norms import NORMS
from passes.coupling.masked import Masked

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.coupling.structure import Coupling, Sink

Array = np.ndarray[Any, Any]


def mask(model: ir.Model, coupling: Coupling, alive: Array) -> None:
    """Turn a model into the masked original, in place; names and sizes stay.

    Args:
        model: The model that was coupled; its coupling is of no use afterwards.
        coupling: Its atoms.
        alive: bool (atoms,): those that are not masked.
    """
    edit = Edit(model)
    by_node: dict[ir.Node, list[Sink]] = {}
    for component in coupling.components:
        for sink in component.sinks:
            found = by_node.setdefault(sink.node, [])
            if not any(_place(sink) == _place(other) for other in found):
                found.append(sink)
    order = {node: i for i, node in enumerate(model.graph)}
    for node in sorted(by_node, key=lambda node: order[node]):
        _mask_node(Masked(edit, coupling, np.append(alive, True)), node, by_node[node])


def _place(sink: Sink) -> tuple[int, int, str]:
    return sink.position, sink.axis, sink.kind


def _mask_node(masked: Masked, node: ir.Node, sinks: Sequence[Sink]) -> None:
    norms = [sink for sink in sinks if sink.kind in NORMS]
    for sink in sinks:
        if sink in norms:
            continue
        stays = masked.stays(node, sink.position, sink.axis)
        if stays is not None:
            _SINKS[sink.kind](masked, sink, stays)
    if norms and any(masked.stays(node, s.position, s.axis) is not None for s in norms):
        NORMS[norms[0].kind](masked, node)


def _weights(masked: Masked, sink: Sink, stays: Array) -> None:
    """Mask the input, or where that holds integers the weight, whose zero point counts."""
    node = sink.node
    weight = None if sink.weight is None else g.constant_array(node.inputs[sink.weight])
    position = _ZERO_POINTS.get((node.op_type, sink.weight or 0))
    if weight is None or sink.weight_axis is None or position is None:
        _zero(masked, sink, stays)
        return
    at = masked.stays(node, sink.weight or 0, sink.weight_axis)
    shape = [1] * weight.ndim
    shape[sink.weight_axis] = -1
    fill = _zero_point(sink, position, weight)
    new = np.where((stays if at is None else at).reshape(shape), weight, fill)
    masked.edit.replace(node, sink.weight or 0, new.astype(weight.dtype))


_ZERO_POINTS: Mapping[tuple[str, int], int] = {
    ("QLinearConv", 3): 5,
    ("ConvInteger", 1): 3,
    ("QLinearMatMul", 0): 2,
    ("QLinearMatMul", 3): 5,
    ("MatMulInteger", 0): 2,
    ("MatMulInteger", 1): 3,
    ("QGemm", 3): 5,
    ("MatMulIntegerToFloat", 1): 5,
}
"""Where the zero point of a weight is whose input holds integers, by operator and position."""


def _zero_point(sink: Sink, position: int, weight: Array) -> Array:
    """Return the zero point of a weight, aligned with its axes."""
    inputs = sink.node.inputs
    found = g.constant_array(inputs[position]) if position < len(inputs) else None
    if found is None:
        return np.zeros((), weight.dtype)
    if found.size == 1:
        return found.reshape(())
    last, axis = weight.ndim - 1, sink.weight_axis
    columns = 0 if "Conv" in sink.node.op_type else last - 1 if axis == last else last
    shape = [1] * weight.ndim
    shape[columns] = -1
    return found.reshape(shape)


def _zero(masked: Masked, sink: Sink, stays: Array) -> None:
    _fill(masked, sink, stays, 0)


def _mean(masked: Masked, sink: Sink, stays: Array) -> None:
    """Mask, and make up for the divisor, which counts what is gone, too."""
    _zero(masked, sink, stays)
    factor = len(stays) / max(1, int(np.count_nonzero(stays)))
    value = sink.node.inputs[sink.position]
    dtype = masked.dtype(value).numpy()
    scale = masked.edit.constant("mean_scale", np.array(factor).astype(dtype))
    scaled = masked.edit.before(sink.node, "Mul", [value, scale])
    masked.edit.connect(sink.node, sink.position, scaled)


def _extreme(sign: int) -> Callable[[Masked, Sink, Array], None]:
    def rule(masked: Masked, sink: Sink, stays: Array) -> None:
        dtype = masked.dtype(sink.node.inputs[sink.position]).numpy()
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            _fill(masked, sink, stays, info.min if sign < 0 else info.max)
        else:
            _fill(masked, sink, stays, sign * np.inf)

    return rule


def _fill(masked: Masked, sink: Sink, stays: Array, number: float) -> None:
    """Put a number in place of what is gone."""
    node, position = sink.node, sink.position
    value = node.inputs[position]
    assert value is not None
    shaped = stays.reshape([-1 if i == sink.axis else 1 for i in range(masked.rank(value))])
    array = g.constant_array(value)
    if array is not None:
        new = np.where(shaped, array, np.array(number).astype(array.dtype))
        masked.edit.replace(node, position, new)
    else:
        masked.edit.connect(node, position, masked.fill(node, value, shaped, number))


def _recurrent(masked: Masked, sink: Sink, stays: Array) -> None:
    """Mask the columns of weights that are summed inside; of integers the zero point counts."""
    node = sink.node
    position = _INNER_ZERO_POINTS.get((node.op_type, sink.position))
    found = None
    if position is not None and position < len(node.inputs):
        found = g.constant_array(node.inputs[position])
    if found is None:
        _zero(masked, sink, stays)
        return
    weight = g.constant_array(node.inputs[sink.position])
    assert weight is not None
    shape = [-1 if axis == sink.axis else 1 for axis in range(weight.ndim)]
    fill = found.reshape(*found.shape, *(1,) * (2 - found.ndim))[:, None, :]
    new = np.where(stays.reshape(shape), weight, fill)
    masked.edit.replace(node, sink.position, new.astype(weight.dtype))


_INNER_ZERO_POINTS: Mapping[tuple[str, int], int] = {("DynamicQuantizeLSTM", 2): 11}


def _nothing(masked: Masked, sink: Sink, stays: Array) -> None:
    """Heads are only summed up behind the operator."""


_SINKS: dict[str, Callable[[Masked, Sink, Array], None]] = {
    "weights": _weights,
    "product": _zero,
    "sum": _zero,
    "mean": _mean,
    "greatest": _extreme(-1),
    "least": _extreme(1),
    "recurrent": _recurrent,
    "heads": _nothing,
}
"""By kind of sink; normalizations are in a module of their own."""
