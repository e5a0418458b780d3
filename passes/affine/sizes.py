"""Shapes of the values of one run: derived from the inputs' shapes, else observed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import onnx_ir as ir

from converter.core import graph as g
from converter.errors import ConverterError
from passes.rewriting.facts import Fact, Facts
from passes.rewriting.scopes import scopes_of
from passes.rewriting.shapes import answer

if TYPE_CHECKING:
    from converter.core.context import Batch, Context

logger = logging.getLogger(__name__)
Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(model: ir.Model, values: Iterable[ir.Value], context: Context) -> Shapes:
    """Return the shapes that values have for the first calibration sample.

    Most follow from the shapes of the inputs. What depends on the data or passes through operators
    whose rules are not known is observed in a run of the first batch.

    Args:
        model: Left as it is.
        values: Values of its main graph.
        context: Gives the first batch, and the run.

    Returns:
        The shapes by name; values whose shape stays unknown are missing.
    """
    wanted = [v for v in dict.fromkeys(values) if v.name]
    batch: Batch | None = next(iter(context.dataset), None) if context.dataset else None
    opsets = {scope.graph: scope.opset for scope in scopes_of(model)}
    facts = Facts(set(model.graph.inputs), opsets, answer)
    if batch is not None:
        for value in model.graph.inputs:
            sample = batch.inputs.get(value.name or "")
            if sample is not None:
                facts.assume(value, Fact(value.dtype, sample.shape))
    found = {v.name or "": facts.of(v).static for v in wanted}
    known = {name: shape for name, shape in found.items() if shape is not None}
    missing = [v for v in wanted if found[v.name or ""] is None]
    return known | _observed(model, missing, batch, context) if missing and batch else known


def _observed(
    model: ir.Model, missing: Iterable[ir.Value], batch: Batch, context: Context
) -> dict[str, tuple[int, ...]]:
    """Run the first batch and look at the shapes alone."""
    twin = model.clone()
    names = g.Names(twin)
    by_name = {v.name: v for node in twin.graph for v in node.outputs}
    asked: dict[str, str] = {}
    for value in missing:
        source = by_name.get(value.name)
        if source is None:
            continue
        name = names.fresh(f"{value.name}_shape")
        shape = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=None)
        twin.graph.append(ir.Node("", "Shape", [source], outputs=[shape]))
        twin.graph.outputs.append(shape)
        asked[value.name or ""] = name
    try:
        (result,) = context.run(twin, [batch.inputs], list(asked.values()))
    except ConverterError as error:
        logger.debug("the shapes of values cannot be observed: %s", error)
        return {}
    return {name: tuple(int(d) for d in result[shape]) for name, shape in asked.items()}
