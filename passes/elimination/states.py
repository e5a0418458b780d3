"""Initial states of recurrent layers that are zeros, which is what the operators start from anyway.

Exporters write them with the batch size of the input, and often once for all layers: dropping them
saves the shape arithmetic and sets the layers free from each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from converter.core.graph import DEFAULT_DOMAINS, constant
from passes.rewriting.rule import Applied, Result, Rule
from passes.rewriting.work import Work

if TYPE_CHECKING:
    import onnx_ir as ir

_STATES = (5, 6)  # initial_h and, of LSTM, initial_c
_LARGEST = 1 << 20
_DEEPEST = 16
_MOVES = frozenset(
    {
        *("Slice", "Split", "Gather", "Expand", "Tile", "Reshape", "Flatten", "Squeeze"),
        *("Unsqueeze", "Transpose", "Identity", "Cast"),
    }
)
"""What moves, repeats or picks elements of its first input."""


def _zero_states(node: ir.Node, work: Work) -> Result:
    found = False
    for index in _STATES:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and _is_zero(value, _DEEPEST):
            work.set_input(node, index, None)
            found = True
    return Applied() if found else None


def _is_zero(value: ir.Value | None, depth: int) -> bool:
    """Tell whether every element is a positive zero, whatever the inputs are."""
    if value is None or not depth:
        return False
    tensor = constant(value)
    if tensor is not None:
        return tensor.size <= _LARGEST and _zeros(tensor.numpy())
    producer = value.producer()
    return producer is not None and _makes_zeros(producer, depth)


def _makes_zeros(node: ir.Node, depth: int) -> bool:
    """Tell whether the outputs of a node are positive zeros."""
    if node.domain not in DEFAULT_DOMAINS:
        return False
    if node.op_type == "ConstantOfShape":
        attribute = node.attributes.get("value")
        if attribute is None:
            return True
        return not attribute.is_ref() and _zeros(attribute.as_tensor().numpy())
    if node.op_type == "Concat":
        return all(_is_zero(each, depth - 1) for each in node.inputs)
    return node.op_type in _MOVES and _is_zero(node.inputs[0], depth - 1)


def _zeros(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bool:
    return array.dtype.kind == "f" and not array.any() and not np.signbit(array).any()


RULES = (Rule("zero_states_removed", ("LSTM", "GRU", "RNN"), _zero_states),)
