"""What constants and nodes add to a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converter.core import graph as g
from converter.core.packed import is_decoder
from passes.rewriting.sizes import constant_bytes, node_bytes

if TYPE_CHECKING:
    import onnx_ir as ir


_DECLARATION_BYTES = 20
"""Of type and shape of a value, beside its name."""


def stored_bytes(model: ir.Model) -> int:
    """Return the bytes of all constants and nodes in the file.

    Shapes of values are left out, but for those that a decoder makes, which constants do not need.
    """
    total = 0
    for graph in g.graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                total += constant_bytes(value.const_value, value.name)
        for node in graph:
            total += node_bytes(node)
            if is_decoder(node):
                total += sum(_DECLARATION_BYTES + len(o.name or "") for o in node.outputs)
            for output in node.outputs:
                tensor = g.constant(output)
                if tensor is not None:
                    total += constant_bytes(tensor, "")
    return total
