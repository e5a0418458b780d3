"""What exporters write about nodes for those who look for faults: longer than the graph itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from converter.core import graph as g

if TYPE_CHECKING:
    import onnx_ir as ir

_EXPORTER = ("pkg.torch.", "pkg.onnxscript.")
_EXPORTER_KEYS = frozenset({"namespace"})
_TAGS = 6
_LISTED = f"{g.META_PREFIX}listed"
"""Key of constants that are declared a second time, with the type and shape they have anyway."""
_DECLARATION = 24


def drop_traces(model: ir.Model) -> int:
    """Remove an exporter's notes on graphs, nodes and values: stack traces above all.

    Second declarations of constants go with them.

    Returns:
        About the bytes that they took.
    """
    total = 0
    for value in (v for graph in g.graphs(model) for v in graph.initializers.values()):
        if value.meta.pop(_LISTED, None) is not None:
            total += _DECLARATION + len(value.name or "")
    for props in _properties(model):
        for key in [key for key in props if _is_trace(key)]:
            total += len(key) + len(props.pop(key).encode()) + _TAGS
    return total


def _is_trace(key: str) -> bool:
    return key.startswith(_EXPORTER) or key in _EXPORTER_KEYS


def _properties(model: ir.Model) -> Iterator[dict[str, str]]:
    for graph in g.graphs(model):
        yield graph.metadata_props
        for value in (*graph.inputs, *graph.initializers.values()):
            yield value.metadata_props
        for node in graph:
            yield node.metadata_props
            for value in node.outputs:
                yield value.metadata_props
