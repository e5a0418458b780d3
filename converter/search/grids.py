"""Integers between integer operators, made visible as floats.

In a model of quantized operators (QLinearConv and the like) no float exists between two of them.
Each such value is given one: dequantized and quantized again, which changes no bit of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
from onnx import helper

from converter.search.wiring import OTHER, Wiring, read_wiring

_GRIDS: Mapping[str, tuple[int, int]] = {
    "QLinearAdd": (6, 7),
    "QLinearAveragePool": (3, 4),
    "QLinearConcat": (0, 1),
    "QLinearConv": (6, 7),
    "QLinearGlobalAveragePool": (3, 4),
    "QLinearLeakyRelu": (3, 4),
    "QLinearMatMul": (6, 7),
    "QLinearMul": (6, 7),
    "QLinearSigmoid": (3, 4),
    "QLinearSoftmax": (3, 4),
    "QGemm": (7, 8),
}
"""Where an operator names the scale and the zero point of its result."""
_MOVES = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "MaxPool",
        "Pad",
        "Reshape",
        "Resize",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators whose results lie on the grid of their first input."""
_SUFFIX = "_quantized"


def read_pair(first: Path, second: Path, fed: Iterable[str]) -> tuple[Wiring, Wiring]:
    """Read two models side by side; the names of the second start with ``other/``.

    Args:
        first: A model file, its weights beside it.
        second: The other one.
        fed: Inputs with a default that are fed all the same.
    """
    names = list(fed)
    return expose(read_wiring(first, fed=names)), expose(read_wiring(second, OTHER, fed=names))


def expose(graph: Wiring) -> Wiring:
    """Return a graph in which every integer value with a known grid also exists as a float.

    The float of ``v_quantized`` is named ``v_dequantized``.
    """
    known: dict[str, tuple[str, str]] = {}
    again: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(graph.nodes):
        grid = _grid(node, known)
        reads = [again.get(name, name) for name in node.input]
        if reads != list(node.input) and node.op_type != "DequantizeLinear":
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = reads
            node = copy  # noqa: PLW2901 - the rest of the loop is about what is kept
        nodes.append(node)
        if grid is None:
            continue
        for name in filter(None, graph.nodes[index].output):
            known[name] = grid
            if node.op_type != "QuantizeLinear" and _read_as_integers(graph, name):
                again[name] = f"{name}/again"
                nodes += _round_trip(name, again[name], grid)
    if not again:
        return graph
    return Wiring(
        nodes,
        graph.constants,
        graph.inputs,
        graph.outputs,
        graph.opsets,
        graph.folder,
        kinds=graph.kinds,
    )


def _grid(node: onnx.NodeProto, known: Mapping[str, tuple[str, str]]) -> tuple[str, str] | None:
    """Return the names of scale and zero point of a node's results."""
    if node.op_type == "QuantizeLinear" and len(node.input) > 2:
        return node.input[1], node.input[2]
    if node.op_type in _MOVES:
        return known.get(node.input[0])
    places = _GRIDS.get(node.op_type)
    if places is None or len(node.input) <= places[1] or not node.input[places[1]]:
        return None
    return node.input[places[0]], node.input[places[1]]


def _read_as_integers(graph: Wiring, name: str) -> bool:
    return any(node.op_type != "DequantizeLinear" for node in graph.consumers(name))


def _round_trip(name: str, again: str, grid: tuple[str, str]) -> list[onnx.NodeProto]:
    middle = f"{name.removesuffix(_SUFFIX)}_dequantized"
    return [
        helper.make_node("DequantizeLinear", [name, *grid], [middle], name=middle),
        helper.make_node("QuantizeLinear", [middle, *grid], [again], name=again),
    ]
