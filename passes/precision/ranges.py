"""Ranges of activations, observed on the calibration data, and what they forbid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converter.calibration.minmax import MinMax
from converter.calibration.statistic import Request

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_ir as ir

    from converter.core.context import Context
    from passes.precision.operators import HalfOp
    from passes.precision.rounding import Format, Loss

_UNKNOWN_TERMS = 4096  # taken for the number of terms of a sum whose shapes are not known
_WHOLE = {"FLOAT16": 2048, "BFLOAT16": 256}
"""Every whole number up to here is exact."""


class Ranges:
    """What is known of the values of a model: nothing, or what the data showed.

    Args:
        observed: Smallest and largest element by value.
        format_: The type that values would be computed in.
        limit: Largest magnitude that may be computed in it.
    """

    def __init__(self, observed: dict[ir.Value, MinMax], format_: Format, limit: float) -> None:
        self._observed = observed
        self.format = format_
        self.limit = min(limit, format_.largest)
        self._name = format_.dtype.name.lower()

    def known(self, value: ir.Value) -> bool:
        """Tell whether the data showed the value."""
        found = self._observed.get(value)
        return found is not None and found.seen

    def add_constant(self, value: ir.Value, loss: Loss) -> None:
        """Take in the range of a constant."""
        self._observed[value] = MinMax(*loss.ends)

    def flaw(self, value: ir.Value) -> str:
        """Say why the value cannot be held in 16 bits; "" when it can or nothing is known."""
        if not self.known(value):
            return ""
        seen = self._observed[value]
        if not seen.finite:
            return "its values are NaN or infinite on the calibration data"
        size = max(-seen.low, seen.high)
        if size > self.limit:
            return f"its values leave the range of {self._name} (beyond {self.limit:.5g})"
        if 0 < size < self.format.tiny:
            return f"its values are too small for {self._name} (below {self.format.tiny:.2g})"
        return ""

    def node_flaw(self, node: ir.Node, row: HalfOp) -> str:
        """Say what the ranges of its inputs forbid a node; "" when nothing."""
        for index in row.small:
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None and self.known(value) and self._near_zero(value):
                return f"it divides by, or takes the logarithm of, values that {self._name} loses"
        if node.op_type == "Sqrt" and node.inputs[0] is not None and self._sinks(node.inputs[0]):
            return f"it takes the root of values that {self._name} rounds to zero"
        return self._sum_flaw(node, row)

    def whole_flaw(self, value: ir.Value) -> str:
        """Say why whole numbers would be rounded; "" when they fit or nothing is known."""
        if not self.known(value):
            return "it holds whole numbers of unknown size"
        seen = self._observed[value]
        exact = max(-seen.low, seen.high) <= _WHOLE[self.format.dtype.name]
        return "" if exact else f"it holds whole numbers that {self._name} rounds"

    def _near_zero(self, value: ir.Value) -> bool:
        seen = self._observed[value]
        return not (seen.low >= self.format.tiny or seen.high <= -self.format.tiny)

    def _sinks(self, value: ir.Value) -> bool:
        found = self._observed.get(value)
        return found is not None and 0 < found.low < self.format.tiny

    def _sum_flaw(self, node: ir.Node, row: HalfOp) -> str:
        value = node.inputs[0] if node.inputs else None
        if not row.sums or value is None or not self.known(value):
            return ""
        seen = self._observed[value]
        size = max(-seen.low, seen.high)
        terms = _terms(node)
        total = terms * (size * size if row.sums == "square" else size)
        if total > self.format.largest:
            return f"its inner sum can leave the range of {self._name}"
        return ""


def observe(
    model: ir.Model, values: Iterable[ir.Value], context: Context
) -> dict[ir.Value, MinMax]:
    """Collect the ranges of values of the main graph over the calibration data."""
    wanted = {Request(v.name): v for v in values if v.name}
    if not wanted:
        return {}
    found = context.collect(model, list(wanted))
    return {value: found[request] for request, value in wanted.items()}


def _terms(node: ir.Node) -> int:
    """Return how many elements one result of the node is made of, at most."""
    if node.op_type in {"Sum", "Mean"}:
        return len(node.inputs)
    sizes = [_elements(v) for v in (node.inputs[0], node.outputs[0])]
    source, result = sizes
    if source is None or result is None or not result:
        return _UNKNOWN_TERMS
    if source == result:  # a normalization: the last axes, which is at most everything but two
        assert node.inputs[0] is not None
        assert node.inputs[0].shape is not None
        dims = node.inputs[0].shape.numpy()
        return max(1, source // max(1, dims[0] * (dims[1] if len(dims) > 2 else 1)))
    return max(1, source // result)


def _elements(value: ir.Value | None) -> int | None:
    """Return the number of elements; a free first dimension, the batch, counts as one."""
    if value is None or value.shape is None:
        return None
    total = 1
    for index, dim in enumerate(value.shape):
        if isinstance(dim, int):
            total *= dim
        elif index:
            return None
    return total
