"""Comparing a model with one whose inputs or outputs have another floating-point type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from converter.execution.session import Node, Session

_KINDS = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(bfloat16)": np.dtype(ml_dtypes.bfloat16),
}


def comparable(before: str, after: str) -> bool:
    """Tell whether values of the one type can be given to an input of the other."""
    return before == after or (before in _KINDS and after in _KINDS)


class Adapter:
    """Rounds samples to the inputs of a model and gives its outputs the types of another's.

    Args:
        original: Its inputs are what the samples were made for.
        converted: The model that is run.
    """

    def __init__(self, original: Session, converted: Session) -> None:
        self._inputs = _differing(original.inputs, converted.inputs)
        self._outputs = _differing(converted.outputs, original.outputs)

    def feed(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the samples in the types of the converted model."""
        return _cast(inputs, self._inputs)

    def outputs(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return outputs in the types of the original."""
        return dict(_cast(found, self._outputs))


def _differing(old: tuple[Node, ...], new: tuple[Node, ...]) -> dict[str, np.dtype[Any]]:
    before = {node.name: node.type for node in old}
    return {
        node.name: _KINDS[node.type]
        for node in new
        if before.get(node.name) != node.type
        and {before.get(node.name), node.type} <= _KINDS.keys()
    }


def _cast(values: Mapping[str, Any], kinds: Mapping[str, np.dtype[Any]]) -> Mapping[str, Any]:
    if not kinds:
        return values
    with np.errstate(over="ignore"):
        return {
            name: value.astype(kinds[name]) if name in kinds else value
            for name, value in values.items()
        }
