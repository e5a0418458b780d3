"""Which values of a changed model can be compared with the original, and corrected where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from converter.core import graph as g
from converter.core.contract import Skip
from converter.core.select import Selection
from passes.bias.places import Array, Place, norm_place, place_of
from passes.equalization.layers import Layer, described, layer_of

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits")


@dataclass(frozen=True, eq=False)
class Station:
    """A value that both models have, and where its mean can be moved.

    Attributes:
        name: Of the value in the original.
        value: In the changed model, float.
        axis: Axis of the channels, counted from the end.
        rank: Axes of the value; None: not known.
        place: Where numbers are added.
        layer: The layer of the original that makes the value; None: another operator does.
        source: Input of the layer in the changed model.
        rows: The layer of the changed model whose float weight may be scaled row by row.
        base: What the original adds where ``place`` is, if that is another node than the one that
            makes the value; None: the same node does both.
    """

    name: str
    value: ir.Value
    axis: int
    rank: int | None
    place: Place
    layer: Layer | None = None
    source: ir.Value | None = None
    rows: Layer | None = None
    base: Array | None = None

    def added(self) -> Array | float:
        """Return what the original adds behind the value and the changed model does not."""
        return 0.0 if self.base is None else self.base - self.place.current()


def stations(
    model: ir.Model, original: ir.Model, selection: Selection
) -> tuple[list[Station], list[Skip]]:
    """Match the main graphs of two models by the names of values.

    Returns:
        What can be compared and corrected, in the order of the original, and which of its layers
        cannot, with the reason.
    """
    ours = {v.name: v for node in model.graph for v in node.outputs if v.name}
    found: list[Station] = []
    skipped: list[Skip] = []
    taken: set[ir.Node] = set()
    for node in original.graph:
        offer = _offer(node, ours, selection)
        if isinstance(offer, str):
            skipped.append(Skip(g.label(node), offer))
        elif offer is not None and offer.place.node not in taken:
            taken.add(offer.place.node)
            found.append(offer)
    return found, [*skipped, *_inside(original, selection)]


def _offer(
    node: ir.Node, ours: Mapping[str, ir.Value], selection: Selection
) -> Station | str | None:
    if g.is_op(node, "BatchNormalization"):
        return _norm(node, ours, selection)
    layer = described(node)
    if not isinstance(layer, Layer):
        return None
    twin = ours.get(node.outputs[0].name or "")
    maker = None if twin is None else _maker(twin)
    if maker is None:
        return "no value of its output's name is left in the model"
    reason = _obstacle(maker, selection)
    return reason or _matched(node, layer, maker)


def _obstacle(maker: ir.Node, selection: Selection) -> str:
    if maker not in selection:
        return "not selected by include and exclude"
    floats = maker.outputs[0].dtype in {None, ir.DataType.FLOAT}
    return "" if floats else "its output is not float32 any more"


def _matched(node: ir.Node, layer: Layer, maker: ir.Node) -> Station | str:
    """Join a layer of the original and what makes the same value now."""
    value, place = maker.outputs[0], place_of(maker, layer.outputs)
    if isinstance(place, str):
        return place
    before = place_of(node, layer.outputs)
    outside = place.node is not maker
    if outside and (isinstance(before, str) or before.node.op_type != place.node.op_type):
        return "its bias is not where the original has it"
    name = node.outputs[0].name or ""
    rows = None if place.normalizes else layer_of(maker)
    return Station(
        name,
        value,
        layer.axis,
        layer.rank,
        place,
        layer,
        _source(maker),
        rows if isinstance(rows, Layer) and rows.outputs == layer.outputs else None,
        before.current() if outside and isinstance(before, Place) else None,
    )


def _source(maker: ir.Node) -> ir.Value | None:
    """Return what the layer multiplies in the changed model; None: not a single float value."""
    if g.is_op(maker, "Add"):
        made = [v for v in maker.inputs if v is not None and v.producer() is not None]
        made = [v for v in made if g.constant(v) is None]
        maker = next((p for v in made if (p := v.producer()) and p.op_type in _LINEAR), maker)
    return maker.inputs[0] if maker.op_type in _LINEAR else None


def _norm(node: ir.Node, ours: Mapping[str, ir.Value], selection: Selection) -> Station | None:
    """Offer a BatchNormalization whose input no layer makes; the others come with the layer."""
    x, scale = node.inputs[0], g.constant(node.inputs[1])
    if x is None or scale is None or isinstance(_described(x.producer()), Layer):
        return None
    twin = ours.get(node.outputs[0].name or "")
    maker = None if twin is None else twin.producer()
    if maker is None or not g.is_op(maker, "BatchNormalization") or maker not in selection:
        return None
    value = maker.inputs[0]
    place = norm_place(maker, scale.size)
    if value is None or value.name != x.name or isinstance(place, str) or x.shape is None:
        return None
    rank, before = len(x.shape), norm_place(node, scale.size)
    if isinstance(before, str):
        return None
    return Station(x.name or "", value, 1 - rank, rank, place, base=before.current())


def _described(node: ir.Node | None) -> Layer | str | None:
    return None if node is None else described(node)


def _maker(value: ir.Value) -> ir.Node | None:
    """Return the node that computes a value before it was put on a grid."""
    node = value.producer()
    for op_type in ("DequantizeLinear", "QuantizeLinear"):
        if node is not None and g.is_op(node, op_type):
            before = node.inputs[0]
            node = None if before is None else before.producer()
    return node


def _inside(original: ir.Model, selection: Selection) -> Iterator[Skip]:
    for graph in g.graphs(original):
        if graph is original.graph:
            continue
        for node in graph:
            if isinstance(described(node), Layer) and node in selection:
                yield Skip(g.label(node), "inside a sub-graph or function")
