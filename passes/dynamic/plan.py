"""Which nodes compute on integers whose ranges are found while the model runs, and why others not.

Nothing has to be known of the activations, so all scopes count: sub-graphs and functions too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from converter.core.contract import Skip
from converter.core.select import Selection
from converter.ops.quantizable import QUANTIZING_OPS
from passes.affine.eligible import bias_add
from passes.dynamic.recurrent import Layer, offer_lstm
from passes.rewriting.scopes import Scope, scopes_of

LEAST_OPSET = 11
"""First opset with DynamicQuantizeLinear."""
_LEAST_SIDE = 16
_LEAST_ELEMENTS = 64 * 64
_LEAST_FOR_ONE_ROW = 512 * 256
"""Below these the search for the range costs more than the integers save (measured, one thread)."""
_LEAST_TABLE = 1 << 14
_MATRIX_RANK = 2


@dataclass(frozen=True, eq=False)
class Constant:
    """A float32 constant, and how a node reads it.

    Attributes:
        source: The value that holds the numbers.
        transposed: The node reads it through a transposition.
    """

    source: ir.Value
    transposed: bool = False

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The numbers."""
        tensor = g.constant(self.source)
        assert tensor is not None
        return tensor


@dataclass(frozen=True, eq=False)
class Product:
    """A MatMul or Gemm with a constant weight.

    Attributes:
        node: The node.
        graph: The graph it is in.
        weight: (inputs, channels) as the node reads it; ``transposed``: stored the other way round.
        factor: What the product is multiplied by.
        added: The Add of a constant vector after a MatMul, and the position of the vector.
    """

    node: ir.Node
    graph: ir.Graph
    weight: Constant
    factor: float = 1.0
    added: tuple[ir.Node, int] | None = None

    @property
    def x(self) -> ir.Value:
        """Its activation; writing a product changes what the next one reads."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def bias(self) -> ir.Value | None:
        """What a Gemm adds, or None."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    @property
    def axis(self) -> int:
        """The axis of the output channels in the stored weight."""
        return 0 if self.weight.transposed else 1


@dataclass(frozen=True, eq=False)
class Lookup:
    """A Gather of rows from a constant table."""

    node: ir.Node
    graph: ir.Graph
    table: Constant


Offer = Product | Lookup | Layer | str
"""What a node becomes, or why it stays in float ("": it is no business of this pass)."""


@dataclass
class Plan:
    """What computes on integers.

    Attributes:
        products: Matrix products, in the order of their graphs.
        lookups: Tables that are read by row.
        layers: Recurrent layers.
        skipped: What was eligible and stays in float.
    """

    products: list[Product] = field(default_factory=list)
    lookups: list[Lookup] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)

    @property
    def needs_opset(self) -> bool:
        """Tell whether operators of :data:`LEAST_OPSET` are needed."""
        return bool(self.products)

    def __bool__(self) -> bool:
        """Tell whether there is anything to do."""
        return bool(self.products or self.lookups or self.layers)


def plan(
    model: ir.Model, selection: Selection, *, tables: bool = True, opset: int | None = None
) -> Plan:
    """Decide what computes on integers.

    Args:
        model: Left as it is.
        selection: Nodes that may be chosen.
        tables: Store tables that Gather reads as int8 too.
        opset: Plan as if the model had this opset; None: its own.
    """
    made = Plan()
    for scope in scopes_of(model):
        for node in scope.graph:
            offer = _OFFERS.get(node.op_type) if node.domain in g.DEFAULT_DOMAINS else None
            if offer is None or node not in selection:
                continue
            if not tables and node.op_type == "Gather":
                continue
            found = offer(node, scope.graph)
            if not isinstance(found, str):
                found = _scope_refusal(node, scope, opset) or found
            _add(made, node, found)
    _keep_shared_tables(made)
    return made


def _scope_refusal(node: ir.Node, scope: Scope, opset: int | None) -> str:
    if (opset or scope.opset) < LEAST_OPSET and node.op_type in {"MatMul", "Gemm"}:
        return f"opset {scope.opset} is too old for DynamicQuantizeLinear"
    if scope.in_function and node.op_type == "LSTM":
        return "inside a function; the pass inline takes it out"
    return ""


def _add(made: Plan, node: ir.Node, found: Offer) -> None:
    if isinstance(found, str):
        made.skipped += [Skip(g.label(node), found)] if found else []
    elif isinstance(found, Product):
        made.products.append(found)
    elif isinstance(found, Lookup):
        made.lookups.append(found)
    else:
        made.layers.append(found)


def _keep_shared_tables(made: Plan) -> None:
    """Leave tables in float that somebody else needs in float anyway."""
    planned = {id(p.node) for p in made.products} | {id(k.node) for k in made.lookups}
    kept = []
    for lookup in made.lookups:
        other = next((n for n in _readers(lookup.table.source) if id(n) not in planned), None)
        if other is None:
            kept.append(lookup)
        else:
            reason = f"its table is read by {g.label(other)} in float too"
            made.skipped.append(Skip(g.label(lookup.node), reason))
    made.lookups = kept


def _readers(value: ir.Value) -> Iterator[ir.Node]:
    """Yield all nodes that read a constant, also through what only passes it on."""
    for node in value.consumers():
        if g.is_op(node, "Identity") or _transposes(node):
            yield from _readers(node.outputs[0])
        else:
            yield node


def resolve(value: ir.Value | None) -> Constant | str:
    """Follow Identity and Transpose to a float32 constant, or say why there is none."""
    transposed = False
    while value is not None and g.constant(value) is None:
        node = value.producer()
        if node is None or not (g.is_op(node, "Identity") or _transposes(node)):
            break
        transposed ^= node.op_type == "Transpose"
        value = node.inputs[0]
    tensor = g.constant(value)
    if value is None or tensor is None:
        return _variable(value)
    if tensor.dtype != ir.DataType.FLOAT:
        return f"the weight is {tensor.dtype.name.lower()}, not float32"
    return Constant(value, transposed)


def _variable(value: ir.Value | None) -> str:
    if value is None:
        return "an input is missing"
    if g.is_op(value.producer(), *QUANTIZING_OPS):
        return "already quantized"
    overridable = value.is_graph_input() and value.is_initializer()
    return g.OVERRIDABLE if overridable else "the weight is not constant"


def _transposes(node: ir.Node) -> bool:
    return g.is_op(node, "Transpose") and tuple(node.attributes.get_ints("perm", ())) == (1, 0)


def _offer_matmul(node: ir.Node, graph: ir.Graph) -> Product | str:
    x, right = node.inputs[0], node.inputs[1]
    if x is not None and g.constant(x) is not None:
        return "the constant is its left operand"
    weight = resolve(right)
    if isinstance(weight, str) or x is None:
        return weight if isinstance(weight, str) else "an input is missing"
    # The Add is looked for where the weight is the node's own input: it tells how many channels.
    added = bias_add(node) if weight.source is right else None
    return _refusal(x, weight) or Product(node, graph, weight, added=added)


def _offer_gemm(node: ir.Node, graph: ir.Graph) -> Product | str:
    x, weight = node.inputs[0], resolve(node.inputs[1])
    if isinstance(weight, str) or x is None:
        return weight if isinstance(weight, str) else "an input is missing"
    if node.attributes.get_int("transA", 0):
        return "its first input is transposed"
    if g.constant(x) is not None:
        return "the constant is its left operand"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and node.attributes.get_float("beta", 1.0) != 1.0:
        return "its beta is not 1"
    turned = bool(node.attributes.get_int("transB", 0))
    weight = Constant(weight.source, weight.transposed != turned)
    alpha = node.attributes.get_float("alpha", 1.0)
    return _refusal(x, weight, rank=2) or Product(node, graph, weight, alpha)


def _refusal(x: ir.Value, weight: Constant, rank: int = 0) -> str:
    """Say why a product does not pay; "" when it does. ``rank``: that of x, if it is certain."""
    if g.is_op(x.producer(), "DequantizeLinear"):
        return "its input is quantized already"
    shape = tuple(weight.tensor.shape.numpy())
    if len(shape) != _MATRIX_RANK:
        return "the weight is not a matrix"
    least = _LEAST_FOR_ONE_ROW if _one_row(x, rank) else _LEAST_ELEMENTS
    if min(shape) < _LEAST_SIDE or shape[0] * shape[1] < least:
        return "too small to be faster on integers"
    if not np.isfinite(weight.tensor.numpy()).all():
        return "the weight holds NaN or infinity"
    return ""


def _one_row(x: ir.Value, rank: int) -> bool:
    """Tell whether the product most likely has one row: then it waits for memory, not for sums."""
    if x.shape is None:
        return rank == _MATRIX_RANK
    rows = [d if isinstance(d, int) else None for d in x.shape.dims[:-1]]
    # A single unknown dimension is the batch, which is 1 in most deployments.
    return all(d == 1 or (d is None and len(rows) == 1) for d in rows)


def _offer_lookup(node: ir.Node, graph: ir.Graph) -> Lookup | str:
    table = resolve(node.inputs[0])
    if isinstance(table, str):
        return ""  # a Gather of activations or shapes
    shape = tuple(table.tensor.shape.numpy())
    if len(shape) != _MATRIX_RANK or node.attributes.get_int("axis", 0) != 0 or table.transposed:
        return ""
    if shape[1] == 1:
        return ""  # scales of rows
    if shape[0] * shape[1] < _LEAST_TABLE:
        return "its table is too small to matter"
    if not np.isfinite(table.tensor.numpy()).all():
        return "its table holds NaN or infinity"
    return Lookup(node, graph, table)


def _stays(reason: str) -> Callable[[ir.Node, ir.Graph], str]:
    def say(node: ir.Node, _: ir.Graph) -> str:
        constant = any(g.constant(value) is not None for value in node.inputs[1:])
        return reason if constant else ""

    return say


_NO_CONV = "a convolution with dynamic ranges is slower than in float; quantize has static ones"
_NO_RECURRENCE = "onnxruntime computes this layer in float only"
_OFFERS: dict[str, Callable[[ir.Node, ir.Graph], Offer]] = {
    "MatMul": _offer_matmul,
    "Gemm": _offer_gemm,
    "Gather": _offer_lookup,
    "LSTM": offer_lstm,
    "GRU": _stays(_NO_RECURRENCE),
    "RNN": _stays(_NO_RECURRENCE),
    "Conv": _stays(_NO_CONV),
    "ConvTranspose": _stays(_NO_CONV),
}
