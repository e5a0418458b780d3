"""The table of rows: how labels go through every operator."""

from __future__ import annotations

from collections.abc import Sequence

from converter.ops.axes import (
    attention,
    einsum,
    elementwise,
    embedding,
    fused,
    layers,
    linear,
    movement,
    quantized,
    recurrent,
    reduction,
    reshape,
    sampling,
)
from converter.ops.axes.site import Rule
from converter.ops.table import Entry, Table

_MODULES: tuple[Sequence[Entry[Rule]], ...] = (
    attention.ENTRIES,
    einsum.ENTRIES,
    elementwise.ENTRIES,
    embedding.ENTRIES,
    fused.ENTRIES,
    layers.ENTRIES,
    linear.ENTRIES,
    movement.ENTRIES,
    quantized.ENTRIES,
    recurrent.ENTRIES,
    reduction.ENTRIES,
    reshape.ENTRIES,
    sampling.ENTRIES,
)

AXES: Table[Rule] = Table("axes", [entry for entries in _MODULES for entry in entries])
"""Operator -> what it does to the labels of its inputs."""
