"""What a graph states although it follows from the rest: sizes of values, attributes at defaults.

Exporters declare the type and the shape of every inner value, and write every attribute out. In a
packed file that is as much as the scales of all weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from converter.core import graph as g
from converter.core.packed import is_decoder
from converter.errors import ConverterError
from converter.measure.declared import redundant
from passes.storage.prove import prove
from passes.storage.shorten import shorten
from passes.storage.size import stored_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context

_WORTH = 1e-3
"""Share of the constants and nodes that it must bring: it is proven, which takes time."""
_TAGS = 4


def slim(plain: ir.Model, packed: ir.Model, context: Context) -> tuple[ir.Model, int]:
    """Leave out of a packed model what follows from the rest of it, and long names of quantizers.

    Args:
        plain: The same model with plain constants.
        packed: Left as it is.
        context: Says how models are run.

    Returns:
        The smaller model and the bytes that it saves; the model given and 0 where that is too
        little, or where onnxruntime would make something else of it.
    """
    smaller = packed.clone()
    saved = _drop_defaults(smaller) + _drop_declarations(smaller, context) + shorten(smaller)
    if saved < _WORTH * stored_bytes(packed):
        return packed, 0
    try:
        proven = prove(plain, smaller, (), context).equal
    except ConverterError:
        proven = False
    return (smaller, saved) if proven else (packed, 0)


def _drop_defaults(model: ir.Model) -> int:
    """Remove attributes whose values are those that the operator set gives them anyway."""
    total = 0
    for node in model.graph:
        for name, default in _defaults(node, g.opset(model)).items():
            attribute = node.attributes.get(name)
            if attribute is None or attribute.is_ref() or attribute.value != default:
                continue
            del node.attributes[name]
            total += len(name) + 2 * _TAGS
    return total


def _defaults(node: ir.Node, opset: int) -> dict[str, int | str]:
    """Return numbers and texts that attributes have when they are not written."""
    if node.domain not in ("", "ai.onnx"):
        return {}
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return {}
    values = {name: entry.default_value for name, entry in schema.attributes.items()}
    integers = {k: v.i for k, v in values.items() if v.name and v.type == onnx.AttributeProto.INT}
    texts = {k: v.s for k, v in values.items() if v.name and v.type == onnx.AttributeProto.STRING}
    return {**integers, **{k: text.decode() for k, text in texts.items()}}


def _drop_declarations(model: ir.Model, context: Context) -> int:
    """Remove types and shapes of inner values that onnx infers just so without them.

    Those that decoders make stay declared: tools that do not run decoders see the weights' sizes.
    """
    made = {
        value.name: value
        for node in model.graph
        if not is_decoder(node)
        for value in node.outputs
        if value.name and not value.is_graph_output() and not value.metadata_props
    }
    try:
        found = redundant(model, made, context.settings.limits)
    except ConverterError:
        return 0
    for name in found:
        made[name].type = made[name].shape = None
    return sum(size + _TAGS for size in found.values())
