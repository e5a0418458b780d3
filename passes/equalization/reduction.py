"""Reductions added to a graph, in the form that its operator set wants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from converter.core import graph as g

_AXES_AS_INPUT = 18  # opset from which these operators take their axes as an input


def reduce(
    model: ir.Model, value: ir.Value, op_type: str, axes: Sequence[int], names: g.Names
) -> ir.Value:
    """Append ReduceMin, ReduceMax or ReduceMean to the main graph and return its float32 output.

    Args:
        model: Edited.
        value: Of the main graph.
        op_type: The operator.
        axes: At least one; they are gone from the output.
        names: Of the model.
    """
    output = ir.Value(
        name=names.fresh(f"{value.name}_{op_type}"), type=ir.TensorType(ir.DataType.FLOAT)
    )
    inputs, attributes = [value], [ir.AttrInt64("keepdims", 0)]
    if g.opset(model) >= _AXES_AS_INPUT:
        constant = np.asarray(axes, np.int64)
        inputs.append(g.add_initializer(model.graph, names.fresh("axes"), constant))
    else:
        attributes.append(ir.AttrInt64s("axes", list(axes)))
    model.graph.append(ir.Node("", op_type, inputs, attributes, outputs=[output], name=output.name))
    return output
