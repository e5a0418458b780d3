"""Which constants of a model may be pruned: what layers multiply with, each tensor once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from converter.core import graph as g
from converter.core.contract import Skip
from converter.core.select import Selection
from passes.importance.magnitude import FLOATS

if TYPE_CHECKING:
    import onnx_ir as ir

_MICROSOFT = "com.microsoft"
MARK = f"{g.META_PREFIX}pruned"  # key in Value.meta: the zeros were made on purpose, keep them

# Inputs that hold weights. Biases, norms and embeddings (Gather) are left alone on purpose: they
# are small, and every one of their zeros costs more than one of a matrix.
_WEIGHTS: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "Conv"): (1,),
    ("", "ConvTranspose"): (1,),
    ("", "DeformConv"): (1,),
    ("", "Gemm"): (0, 1),
    ("", "MatMul"): (0, 1),
    ("", "Einsum"): tuple(range(8)),
    ("", "LSTM"): (1, 2),
    ("", "GRU"): (1, 2),
    ("", "RNN"): (1, 2),
    (_MICROSOFT, "FusedConv"): (1,),
    (_MICROSOFT, "FusedGemm"): (0, 1),
    (_MICROSOFT, "FusedMatMul"): (0, 1),
    (_MICROSOFT, "Attention"): (1,),
}
# Inputs of quantized operators that hold weights; zero of those is the zero point.
_QUANTIZED: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "ConvInteger"): (1,),
    ("", "MatMulInteger"): (0, 1),
    ("", "QLinearConv"): (3,),
    ("", "QLinearMatMul"): (0, 3),
    (_MICROSOFT, "QGemm"): (0, 3),
    (_MICROSOFT, "MatMulNBits"): (1,),
    (_MICROSOFT, "DynamicQuantizeMatMul"): (1,),
    (_MICROSOFT, "DynamicQuantizeLSTM"): (1, 2),
}
# Operators through which a zero of the first input stays a zero of the output.
_VIEWS = ("Transpose", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast")
_COMPUTED = "its weight is computed from other constants: put simplify before prune"


@dataclass
class Layer:
    """A constant found behind the weight input of at least one node.

    Attributes:
        value: Initializer, or output of a Constant node.
        tensor: Its tensor.
        path: The uses, by node and input index, from the constant through views to weight inputs.
        values: The constant and its views, by identity.
        nodes: The nodes with the weight inputs.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    path: set[tuple[int, int]] = field(default_factory=set)
    values: dict[int, ir.Value] = field(default_factory=dict)
    nodes: list[ir.Node] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name for people."""
        return self.value.name or g.label(self.nodes[0])


def find(model: ir.Model, selection: Selection) -> tuple[list[Layer], list[Skip]]:
    """Return what can be pruned, in the order of the model, and what cannot, with the reason."""
    weights: dict[int, Layer] = {}
    skipped: list[Skip] = []
    nodes = list(g.walk(model))
    for node in nodes:
        if any(_way(node, index) for index in _slots(node, _QUANTIZED)):
            skipped.append(Skip(g.label(node), "already quantized"))
        for index in _slots(node, _WEIGHTS):
            way = _way(node, index)
            if not way:
                if _computed(node.inputs[index]):
                    skipped.append(Skip(g.label(node), _COMPUTED))
                continue
            value = way[-1]
            if g.is_op(value.producer(), "DequantizeLinear"):
                skipped.append(Skip(g.label(node), "already quantized"))
                continue
            tensor = _tensor(value)
            if tensor is None or len(tensor.shape) < 2:
                continue
            weight = weights.setdefault(id(value), Layer(value, tensor))
            weight.path.add((id(node), index))
            weight.path.update((id(view.producer()), 0) for view in way[:-1])
            weight.values.update((id(passed), passed) for passed in way)
            weight.nodes.append(node)
    skipped.extend(selection.misses(nodes))
    chosen = []
    for weight in weights.values():
        reason = _obstacle(weight, selection)
        if reason:
            skipped.append(Skip(weight.name, reason))
        else:
            chosen.append(weight)
    return chosen, skipped


def _slots(node: ir.Node, table: dict[tuple[str, str], tuple[int, ...]]) -> Iterator[int]:
    domain = "" if node.domain in g.DEFAULT_DOMAINS else node.domain
    for index in table.get((domain, node.op_type), ()):
        if index < len(node.inputs) and node.inputs[index] is not None:
            yield index


def _way(node: ir.Node, index: int) -> list[ir.Value]:
    """Follow views from an input of a node back to a constant or a dequantized constant.

    Returns:
        The input, the views it comes through, and the constant at the end; empty when there is an
        activation at the end.
    """
    way: list[ir.Value] = []
    value = node.inputs[index]
    while value is not None:
        way.append(value)
        if _tensor(value) is not None:
            return way
        producer = value.producer()
        if producer is not None and g.is_op(producer, "DequantizeLinear"):
            return way if g.constant(producer.inputs[0]) is not None else []
        if producer is None or not g.is_op(producer, *_VIEWS):
            return []
        value = producer.inputs[0]
    return []


def _computed(value: ir.Value | None) -> bool:
    """Tell whether a value depends on constants alone."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        producer = value.producer()
        if producer is None:
            if value.const_value is None or value.is_graph_input():
                return False
        elif next(g.subgraphs(producer), None) is not None:  # reads values by name
            return False
        else:
            waiting += producer.inputs
    return True


def _tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the tensor of a constant, also of an initializer that callers may override."""
    return value.const_value if value.is_initializer() else g.constant(value)


def _obstacle(weight: Layer, selection: Selection) -> str:
    """Return why the tensor must be left alone, or an empty text."""
    if weight.value.is_graph_input():
        return g.OVERRIDABLE
    if weight.tensor.dtype not in FLOATS:
        return f"element type {weight.tensor.dtype.name.lower()}"
    if any(node not in selection for node in weight.nodes):
        return "not selected by include and exclude"
    for value in weight.values.values():
        if value.is_graph_output():
            return "also an output of the graph"
        for use in value.uses():
            if (id(use.node), use.idx) not in weight.path:
                return f"also used by {use.node.op_type}"
    return ""


def uses_of(layer: Layer) -> Iterator[tuple[ir.Node, int]]:
    """Yield the nodes that multiply with a layer, and the input where they do, in order."""
    for node in dict.fromkeys(layer.nodes):
        for index in _slots(node, _WEIGHTS):
            way = _way(node, index)
            if way and way[-1] is layer.value:
                yield node, index


def way_of(layer: Layer) -> tuple[ir.Node, int, list[ir.Node]]:
    """Return the first node that multiplies with a layer, the input, and the views before it.

    The views are in the order in which the constant passes through them.
    """
    for node, index in uses_of(layer):
        return node, index, [_producer(value) for value in _way(node, index)[-2::-1]]
    raise RuntimeError("the model changed after its layers were found")


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node
