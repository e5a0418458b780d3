"""Normalizations with statistics over what is left of the axis, in plain operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.coupling.masked import Masked

Array = np.ndarray[Any, Any]
_MICROSOFT_EPSILON = 1e-12


class _Chain:
    """Nodes in front of the one that they replace."""

    def __init__(self, masked: Masked, node: ir.Node) -> None:
        self.masked = masked
        self.node = node

    def __call__(self, op_type: str, *inputs: ir.Value | None) -> ir.Value:
        return self.masked.edit.before(self.node, op_type, list(inputs))

    def number(self, array: Array | float) -> ir.Value:
        dtype = self.masked.dtype(self.node.inputs[0]).numpy()
        return self.masked.edit.constant("number", np.asarray(array).astype(dtype))

    def scaled(self, y: ir.Value, scale: ir.Value | None, bias: ir.Value | None) -> ir.Value:
        """Return ``y`` times a scale, plus a bias, where there are any."""
        if scale is not None:
            y = self("Mul", y, scale)
        return y if bias is None else self("Add", y, bias)


def _input(node: ir.Node, position: int) -> ir.Value | None:
    return node.inputs[position] if position < len(node.inputs) else None


def _joint(masked: Masked, node: ir.Node, axes: list[int], rank: int) -> Array:
    """Return which entries stay: bool, of the rank of the input, 1 where all do."""
    stays = np.ones((1,) * rank, bool)
    for axis in axes:
        one = masked.stays(node, 0, axis)
        if one is not None:
            stays = stays & one.reshape([-1 if i == axis else 1 for i in range(rank)])
    return stays


def _normal(chain: _Chain, x: ir.Value, axes: list[int], *, centred: bool) -> ir.Value:
    """Return x normalized over axes with the statistics of what stays."""
    masked, node = chain.masked, chain.node
    sizes = masked.sizes(node.inputs[0])
    stays = _joint(masked, node, axes, len(sizes))
    count = float(np.count_nonzero(stays)) * math.prod(
        sizes[axis] for axis in axes if stays.shape[axis] == 1
    )
    epsilon = node.attributes.get_float("epsilon", _epsilon(node))
    if centred:
        total = masked.sum_over(node, masked.fill(node, x, stays, 0), axes)
        x = chain("Sub", x, chain("Div", total, chain.number(count)))
    left = masked.fill(node, x, stays, 0)
    power = chain("Div", masked.sum_over(node, chain("Mul", left, left), axes), chain.number(count))
    return chain("Div", x, chain("Sqrt", chain("Add", power, chain.number(epsilon))))


def _epsilon(node: ir.Node) -> float:
    return _MICROSOFT_EPSILON if node.op_type.startswith("Skip") else 1e-5


def _layer(*, centred: bool) -> Callable[[Masked, ir.Node], None]:
    def rule(masked: Masked, node: ir.Node) -> None:
        chain = _Chain(masked, node)
        x = node.inputs[0]
        assert x is not None
        rank = len(masked.sizes(x))
        scale, bias = _input(node, 1), _input(node, 2)
        axes = [rank - 1]
        if node.op_type.startswith("Skip"):
            x = chain("Add", x, node.inputs[1])
            extra = _input(node, 4 if centred else 3)
            x = x if extra is None else chain("Add", x, extra)
            scale, bias = _input(node, 2), _input(node, 3) if centred else None
            if len(node.outputs) > 3 and node.outputs[3].name:
                masked.put(node, x, 3)
        else:
            first = node.attributes.get_int("axis", -1) % rank
            axes = list(range(first, rank))
        y = _normal(chain, x, axes, centred=centred)
        masked.put(node, chain.scaled(y, scale, bias))
        masked.edit.graph.remove(node, safe=True)

    return rule


def _group(masked: Masked, node: ir.Node) -> None:
    """Average over the positions first, then over the channels that stay in each group."""
    chain = _Chain(masked, node)
    x = node.inputs[0]
    assert x is not None
    sizes = masked.sizes(x)
    channels, rank = sizes[1], len(sizes)
    groups = int(node.attributes.get_int("num_groups", 1))
    stays = masked.stays(node, 0, 1)
    assert stays is not None
    member = np.repeat(np.arange(groups), channels // groups)
    share = (member[:, None] == member[None, :]) & stays[:, None]
    weights = share / np.maximum(1, share.sum(0, keepdims=True))
    shaped = stays.reshape(1, -1, *(1,) * (rank - 2))

    def average(value: ir.Value) -> ir.Value:
        if rank > 2:
            value = masked.mean_over(node, value, list(range(2, rank)))
        flat = masked.edit.before(node, "Flatten", [value], {"axis": 1})
        mixed = chain("MatMul", flat, chain.number(weights))
        shape = np.array([0, channels] + [1] * (rank - 2), np.int64)
        return chain("Reshape", mixed, masked.edit.constant("shape", shape))

    d = chain("Sub", x, average(masked.fill(node, x, shaped, 0)))
    epsilon = chain.number(node.attributes.get_float("epsilon", 1e-5))
    y = chain("Div", d, chain("Sqrt", chain("Add", average(chain("Mul", d, d)), epsilon)))
    vectors = [_per_channel(chain, _input(node, i), channels, rank) for i in (1, 2)]
    masked.put(node, chain.scaled(y, *vectors))
    masked.edit.graph.remove(node, safe=True)


def _instance(masked: Masked, node: ir.Node) -> None:
    """Statistics are taken over all axes but the first two; scale and bias go with the second."""
    chain = _Chain(masked, node)
    x = node.inputs[0]
    assert x is not None
    rank = len(masked.sizes(x))
    y = _normal(chain, x, list(range(2, rank)), centred=True)
    channels = masked.sizes(x)[1]
    vectors = [_per_channel(chain, _input(node, i), channels, rank) for i in (1, 2)]
    masked.put(node, chain.scaled(y, *vectors))
    masked.edit.graph.remove(node, safe=True)


def _per_channel(
    chain: _Chain, vector: ir.Value | None, channels: int, rank: int
) -> ir.Value | None:
    """Return a scale or bias with one number per channel, before opset 21 one per group."""
    if vector is None:
        return None
    (size,) = chain.masked.sizes(vector)
    edit = chain.masked.edit
    picked = np.repeat(np.arange(size), channels // size).astype(np.int64)
    wide = edit.before(chain.node, "Gather", [vector, edit.constant("channel", picked)])
    shape = np.array([channels] + [1] * (rank - 2), np.int64)
    return chain("Reshape", wide, edit.constant("shape", shape))


NORMS: dict[str, Callable[[Masked, ir.Node], None]] = {
    "layer_norm": _layer(centred=True),
    "rms_norm": _layer(centred=False),
    "group_norm": _group,
    "instance_norm": _instance,
}
"""By kind of sink; the node is replaced."""
