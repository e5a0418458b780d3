"""What of a quantized model really runs on integers: read from the graph that onnxruntime makes.

The file is opened as in production, onnxruntime writes down the graph it will run, and the
operators in it are counted. Quantized and dequantized values in the file prove nothing: where the
runtime does not fuse them, it computes in float and converts back and forth.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.core import graph as g
from converter.execution import sandbox

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from converter.core.context import RunSettings

INTEGER_LAYERS = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearConvTranspose",
        "QLinearMatMul",
    }
)
"""Operators that multiply by a weight of 8 bits or fewer."""
FLOAT_LAYERS = frozenset(
    {
        "Attention",
        "Conv",
        "ConvTranspose",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "GRU",
        "Gemm",
        "LSTM",
        "MatMul",
        "RNN",
    }
)
"""Operators that multiply by a weight in float."""
CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_ATTENTION = frozenset({"MatMul", "FusedMatMul", "QLinearMatMul", "MatMulInteger"})
_STORED = "its weights alone are integers, which become float when the file is loaded"
_OTHERS = ("QLinear", "QGemm", "QEmbed", "GatherBlockQuantized")


@dataclass(frozen=True)
class FloatLayer:
    """One layer of the written model that has a weight and stays in float.

    Attributes:
        name: Of the node, or of its first output.
        op_type: Its operator.
        reason: Why, as the passes said; "" when none did.
    """

    name: str
    op_type: str
    reason: str = ""


@dataclass(frozen=True)
class Integers:
    """How a quantized model runs.

    Attributes:
        runtime: Name and version of what was asked.
        layers: Operators with a weight that run on integers, in the runtime's graph.
        float_layers: Operators with a weight that run in float there.
        operators: Number of each integer operator there, layers and others, most frequent first.
        conversions: Operators there that only convert between integers and float.
        left: Layers of the written model that were left in float.
    """

    runtime: str
    layers: int
    float_layers: int
    operators: Mapping[str, int]
    conversions: int
    left: tuple[FloatLayer, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return asdict(self)


def quantized(model: ir.Model) -> bool:
    """Tell whether a model holds operators of quantization at all."""
    return any(
        node.op_type in CONVERSIONS or node.op_type in INTEGER_LAYERS for node in g.walk(model)
    )


def count_integers(
    model: ir.Model, path: Path, *, settings: RunSettings, reasons: Mapping[str, str] | None = None
) -> Integers:
    """Open a model file and count what runs on integers.

    Args:
        model: What the file holds.
        path: The file.
        settings: Limits, custom operators; the workspace takes the runtime's graph.
        reasons: Why a node was left alone, by its label (:func:`converter.core.graph.label`).

    Raises:
        ModelError: onnxruntime refuses the file.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="optimized-", dir=settings.workspace) as folder:
        found = sandbox.call(
            _look,
            path,
            Path(folder) / "optimized.onnx",
            settings=settings,
            limits=settings.limits,
            task="opening the model",
        )
    return Integers(
        runtime=f"onnxruntime {onnxruntime.__version__}",
        left=tuple(_left(model, reasons or {})),
        **found,
    )


def _look(path: Path, target: Path, *, settings: RunSettings) -> dict[str, Any]:
    import onnx

    from converter.execution.session import Session

    Session(
        path,
        threads=settings.threads,
        custom_op_library=settings.custom_op_library,
        optimized=target,
    )
    graph = onnx.load(str(target), load_external_data=False).graph
    weights: set[str] = set()
    nodes = list(_nodes(graph, weights))
    integer: Counter[str] = Counter()
    layers = floats = conversions = 0
    for node in nodes:
        kind = node.op_type
        # the products of attention have no weight: they are no layers
        weighted = kind not in _ATTENTION or any(name in weights for name in node.input)
        if kind in CONVERSIONS:
            conversions += 1
        elif kind in INTEGER_LAYERS or kind.startswith(_OTHERS):
            integer[kind] += 1
            layers += kind in INTEGER_LAYERS and weighted
        elif kind in FLOAT_LAYERS and weighted:
            floats += 1
    return {
        "layers": layers,
        "float_layers": floats,
        "operators": dict(sorted(integer.items(), key=lambda item: (-item[1], item[0]))),
        "conversions": conversions,
    }


def _nodes(graph: onnx.GraphProto, weights: set[str]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of all scopes; ``weights`` takes the names of all constants."""
    weights.update(tensor.name for tensor in graph.initializer)
    for node in graph.node:
        if node.op_type in {"Constant", "DequantizeLinear"} and (
            not node.input or node.input[0] in weights
        ):
            weights.update(node.output)
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _nodes(inner, weights)


def _left(model: ir.Model, reasons: Mapping[str, str]) -> Iterator[FloatLayer]:
    for node in g.walk(model):
        if node.op_type not in FLOAT_LAYERS:
            continue
        name = node.name or next((o.name for o in node.outputs if o.name), "") or "?"
        if _float_weight(node):
            yield FloatLayer(name, node.op_type, reasons.get(g.label(node), ""))
        elif _unpacked_weight(node):
            yield FloatLayer(name, node.op_type, _STORED)


def _float_weight(node: ir.Node) -> bool:
    """Tell whether a node multiplies by a constant that is no dequantized integer."""
    return any(value is not None and _constant(value) for value in _operands(node))


def _unpacked_weight(node: ir.Node) -> bool:
    """Tell whether a weight is made of constants by operators other than DequantizeLinear."""
    return any(
        value is not None
        and (maker := value.producer()) is not None
        and maker.op_type != "DequantizeLinear"
        and _made_of_constants(maker)
        for value in _operands(node)
    )


def _operands(node: ir.Node) -> Sequence[ir.Value | None]:
    return node.inputs[:2] if node.op_type in _ATTENTION else node.inputs[1:2]


def _made_of_constants(maker: ir.Node) -> bool:
    waiting, seen = [maker], {maker}
    while waiting:
        for value in waiting.pop().inputs:
            if value is None or _constant(value):
                continue
            before = value.producer()
            if before is None:
                return False
            if before not in seen:
                seen.add(before)
                waiting.append(before)
    return True


def _constant(value: ir.Value) -> bool:
    return g.constant(value) is not None or value.is_initializer()
