"""The share of zeros among all weights of a model, packed ones counted as what they decode to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from converter.core.graph import tensors
from converter.measure.sparsity import count_zeros
from converter.report.decoded import look_into
from converter.report.storage import SMALL, packed, uses

if TYPE_CHECKING:
    from converter.core.graph import Footprint

MOST_BYTES = 256 << 20
"""Bytes of tensors up to which a report counts zeros without being asked."""


def zero_share(model: ir.Model, footprint: Footprint) -> float | None:
    """Return zeros / weights; None without weights, or when that many are too many to read.

    Args:
        model: The model.
        footprint: Its size.
    """
    if footprint.tensor_bytes > MOST_BYTES:
        return None
    groups = look_into(model, packed(model))
    told = [one for one in groups if one.elements is not None and one.zeros is not None]
    elements = sum(one.elements or 0 for one in told)
    zeros = sum(one.zeros or 0 for one in told)
    counted = {identity for one in groups for identity in one.stored}
    points = {identity: zero for identity, (_, zero) in uses(model)}
    for tensor in tensors(model):
        plain = tensor.size >= SMALL and tensor.dtype != ir.DataType.STRING
        if plain and id(tensor) not in counted:
            elements += tensor.size
            zeros += count_zeros(tensor, points.get(id(tensor), 0))
    return zeros / elements if elements else None
