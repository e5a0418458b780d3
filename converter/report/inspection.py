"""What is in a model: interface, operators, weights, storage, and what stands out about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.core.graph import DEFAULT_DOMAINS, graphs, subgraphs, tensors, walk
from converter.core.tensors import FileTensor, chunks
from converter.report.report import jsonable

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

TOP = 10
_QUANTIZED_OPS = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "MatMulNBits",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)


@dataclass(frozen=True)
class PortFacts:
    """One input or output: name, type, dims as text (None: rank not declared), has a default."""

    name: str
    kind: str
    dims: tuple[str, ...] | None
    has_default: bool = False


@dataclass(frozen=True)
class TensorFacts:
    """One stored tensor: name, element type, shape, bytes, share of its elements that are zero."""

    name: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int
    zeros: float | None


@dataclass(frozen=True)
class Inspection:
    """A model in figures; all counts cover sub-graphs and functions.

    Attributes:
        file: Path as given; empty for a model in memory.
        nbytes: Bytes of the model file and of its external data.
        external_files: Name and bytes of each external data file.
        ir_version: Version of the file format.
        opsets: Operator-set versions by domain.
        producer: Program that wrote the model.
        graph_name: Name of the main graph.
        inputs, outputs: The interface.
        nodes: Number of nodes.
        operators: Nodes by operator type, most frequent first; other domains are prefixed.
        custom_domains: Domains that are neither ONNX's own nor a model function's.
        subgraphs: Number of nested graphs.
        functions: Names of model functions.
        parameters: Elements of all stored tensors.
        tensor_bytes: Bytes of all stored tensors.
        by_type: Elements and bytes by element type.
        largest: The biggest tensors.
        zeros: Share of zeros among float and integer weights of 64 elements or more; None when
            there are none.
        quantized_nodes: Nodes of quantization operators.
        metadata: Keys of the model's metadata.
    """

    file: str
    nbytes: int
    external_files: tuple[tuple[str, int], ...]
    ir_version: int
    opsets: dict[str, int]
    producer: str
    graph_name: str
    inputs: tuple[PortFacts, ...]
    outputs: tuple[PortFacts, ...]
    nodes: int
    operators: dict[str, int]
    custom_domains: tuple[str, ...]
    subgraphs: int
    functions: tuple[str, ...]
    parameters: int
    tensor_bytes: int
    by_type: dict[str, tuple[int, int]]
    largest: tuple[TensorFacts, ...]
    zeros: float | None
    quantized_nodes: int
    metadata: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        made = asdict(self)
        made["external_files"] = [{"file": n, "bytes": b} for n, b in self.external_files]
        made["by_type"] = {
            kind: {"parameters": count, "bytes": nbytes}
            for kind, (count, nbytes) in self.by_type.items()
        }
        plain: dict[str, Any] = jsonable(made)
        return plain


def inspect_model(model: ir.Model, path: Path | None = None) -> Inspection:
    """Count what is in a model. Tensors are read once, chunk by chunk, to count zeros.

    Args:
        model: A loaded model.
        path: The file it came from, for sizes on disk.
    """
    operators: Counter[str] = Counter()
    nested = 0
    for node in walk(model):
        operators[_operator(node)] += 1
        nested += len(list(subgraphs(node)))
    weights = _Weights()
    for tensor in tensors(model):
        weights.add(tensor)
    files = _external_files(model, path)
    graph = model.graph
    return Inspection(
        file="" if path is None else str(path),
        nbytes=sum(b for _, b in files)
        + (path.stat().st_size if path is not None and path.exists() else 0),  # else a factory
        external_files=files,
        ir_version=model.ir_version,
        opsets={d or "ai.onnx": v for d, v in sorted(model.opset_imports.items())},
        producer=" ".join(p for p in (model.producer_name, model.producer_version) if p),
        graph_name=graph.name or "",
        inputs=tuple(_port(v, has_default=v.name in graph.initializers) for v in graph.inputs),
        outputs=tuple(_port(v) for v in graph.outputs),
        nodes=sum(operators.values()),
        operators=dict(operators.most_common()),
        custom_domains=_custom_domains(model),
        subgraphs=nested,
        functions=tuple("::".join(p for p in key[:2] if p) for key in model.functions),
        parameters=sum(n for kind, (n, _) in weights.by_type.items() if kind != "string"),
        tensor_bytes=sum(nbytes for _, nbytes in weights.by_type.values()),
        by_type=dict(sorted(weights.by_type.items(), key=lambda item: -item[1][1])),
        largest=tuple(sorted(weights.facts, key=lambda t: (-t.nbytes, t.name))[:TOP]),
        zeros=weights.zero_elements / weights.elements if weights.elements else None,
        quantized_nodes=sum(n for op, n in operators.items() if _bare(op) in _QUANTIZED_OPS),
        metadata=tuple(sorted(model.metadata_props)),
    )


class _Weights:
    """Counts tensors one after the other; keeps only what may be among the largest."""

    def __init__(self) -> None:
        self.by_type: dict[str, tuple[int, int]] = {}
        self.facts: list[TensorFacts] = []
        self.elements = 0
        self.zero_elements = 0

    def add(self, tensor: ir.TensorProtocol) -> None:
        """Count one tensor."""
        kind = tensor.dtype.name.lower()
        count, nbytes = self.by_type.get(kind, (0, 0))
        self.by_type[kind] = (count + tensor.size, nbytes + tensor.nbytes)
        zeros = None
        if tensor.size >= 64 and kind != "string":
            found = sum(part.size - int(np.count_nonzero(part)) for _, part in chunks(tensor))
            zeros = found / tensor.size
            self.elements += tensor.size
            self.zero_elements += found
        shape = tuple(int(d) for d in tensor.shape.numpy())
        self.facts.append(TensorFacts(tensor.name or "", kind, shape, tensor.nbytes, zeros))
        if len(self.facts) > 50 * TOP:
            self.facts = sorted(self.facts, key=lambda t: (-t.nbytes, t.name))[:TOP]


def _operator(node: ir.Node) -> str:
    plain = node.domain in DEFAULT_DOMAINS
    return node.op_type if plain else f"{node.domain}::{node.op_type}"


def _bare(operator: str) -> str:
    return operator.rpartition("::")[2]


def _port(value: ir.Value, *, has_default: bool = False) -> PortFacts:
    dims = None
    if value.shape is not None:
        dims = tuple(str(d) if isinstance(d, int) else (d.value or "?") for d in value.shape)
    kind = value.type
    dtype = getattr(kind, "dtype", None)
    is_tensor = type(kind).__name__ == "TensorType"
    word = dtype.name.lower() if dtype is not None and is_tensor else str(kind)
    return PortFacts(value.name or "", word, dims, has_default)


def _custom_domains(model: ir.Model) -> tuple[str, ...]:
    own = {key[0] for key in model.functions}
    known = {*DEFAULT_DOMAINS, *own, "ai.onnx.ml", "com.microsoft"}
    return tuple(sorted({node.domain for node in walk(model)} - known))


def _external_files(model: ir.Model, path: Path | None) -> tuple[tuple[str, int], ...]:
    """Name and size of the files, other than the model's own, in which tensors lie."""
    own = None if path is None else path.name
    found: dict[str, int] = {}
    for graph in graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, FileTensor):
                name = tensor.handle.path.replace("\\", "/").rpartition("/")[2]
                if name != own:
                    found[name] = tensor.handle.nbytes
    return tuple(sorted(found.items()))
