"""What is in a model: interface, operators, weights, storage, and what stands out about it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from converter.core import registry
from converter.core.forecast import UNASKED_BYTES, Forecast, Forecaster
from converter.core.graph import DEFAULT_DOMAINS, footprint, graphs, subgraphs, tensors, walk
from converter.core.packed import is_packed
from converter.core.tensors import FileTensor
from converter.errors import ConverterError, UnknownPassError
from converter.io.meta import CONTENT
from converter.measure.sparsity import measure_sparsity
from converter.report.decoded import look_into
from converter.report.report import jsonable
from converter.report.storage import SMALL, Packed, packed, parameters, uses

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
    """One stored tensor.

    Attributes:
        name: Its name; empty for some constants.
        kind: Element type.
        shape: Sizes.
        nbytes: Bytes of its elements.
        zeros: Share of its elements that are zero; None for few elements, for texts, and for what
            is decoded before it is used.
        pattern: How the zeros lie, see :mod:`converter.measure.sparsity`; "" without zeros.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int
    zeros: float | None
    pattern: str = ""


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
        parameters: Elements of all tensors, packed ones as what they decode to.
        tensor_bytes: Bytes of all stored tensors.
        by_type: Elements and bytes by element type.
        largest: The biggest tensors.
        weights: All tensors of 64 elements or more that hold numbers, the biggest first.
        zeros: Share of zeros among float and integer weights of 64 elements or more, packed ones
            counted as what they decode to where that is known; None when there are none.
        quantized_nodes: Nodes of quantization operators.
        metadata: Keys of the model's metadata.
        packed: Weights that are stored in another form than they are used in.
        packing: What the pass ``pack`` would bring; None when that was not looked at.
        content: Bytes of the model in a file that is compressed for transport; else None.
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
    weights: tuple[TensorFacts, ...]
    zeros: float | None
    quantized_nodes: int
    metadata: tuple[str, ...]
    packed: tuple[Packed, ...] = ()
    packing: Forecast | None = None
    content: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        made = asdict(self)
        made["external_files"] = [{"file": n, "bytes": b} for n, b in self.external_files]
        for one in made["packed"]:
            del one["stored"], one["encoded"]
        made["by_type"] = {
            kind: {"parameters": count, "bytes": nbytes}
            for kind, (count, nbytes) in self.by_type.items()
        }
        if self.packing is not None:
            made["packing"]["saved"] = self.packing.saved
        plain: dict[str, Any] = jsonable(made)
        return plain


def inspect_model(
    model: ir.Model, path: Path | None = None, *, packing: bool | None = None
) -> Inspection:
    """Count what is in a model. Tensors are read chunk by chunk, to count zeros.

    Args:
        model: A loaded model.
        path: The file it came from, for sizes on disk.
        packing: Try what the pass ``pack`` would bring; None: up to :data:`UNASKED_BYTES`.
    """
    operators: Counter[str] = Counter()
    nested = 0
    for node in walk(model):
        operators[_operator(node)] += 1
        nested += len(list(subgraphs(node)))
    found = tuple(look_into(model, packed(model)))
    weights = _Weights(model, found)
    for tensor in tensors(model):
        weights.add(tensor)
    nbytes = sum(nbytes for _, nbytes in weights.by_type.values())
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
        parameters=parameters(model, found, footprint(model).parameters),
        tensor_bytes=nbytes,
        by_type=dict(sorted(weights.by_type.items(), key=lambda item: -item[1][1])),
        largest=tuple(sorted(weights.facts, key=_by_size)[:TOP]),
        weights=tuple(sorted((t for t in weights.facts if _is_weight(t)), key=_by_size)),
        zeros=weights.zero_elements / weights.elements if weights.elements else None,
        quantized_nodes=sum(n for op, n in operators.items() if _bare(op) in _QUANTIZED_OPS),
        metadata=tuple(sorted(model.metadata_props)),
        packed=found,
        content=model.meta.get(CONTENT),
        packing=forecast_packing(model) if _wanted(packing, nbytes) else None,
    )


def _wanted(packing: bool | None, nbytes: int) -> bool:  # noqa: FBT001 - passed on
    return nbytes <= UNASKED_BYTES if packing is None else packing


def forecast_packing(model: ir.Model) -> Forecast | None:
    """Ask the pass ``pack`` what it would bring; None when there is no such pass."""
    if is_packed(model):
        return Forecast(notes=("it is packed already",))
    try:
        pass_ = registry.get("pack")()
    except UnknownPassError:
        return None
    if not isinstance(pass_, Forecaster):
        return None
    try:
        return pass_.forecast(model)
    except ConverterError as error:
        return Forecast(notes=(f"what packing would bring is not known: {error}",))


def _is_weight(facts: TensorFacts) -> bool:
    return math.prod(facts.shape) >= SMALL and facts.kind != "string"


def _by_size(facts: TensorFacts) -> tuple[int, str]:
    return -facts.nbytes, facts.name


class _Weights:
    """Counts tensors one after the other."""

    def __init__(self, model: ir.Model, packed: tuple[Packed, ...]) -> None:
        self.by_type: dict[str, tuple[int, int]] = {}
        self.facts: list[TensorFacts] = []
        told = [one for one in packed if one.elements is not None and one.zeros is not None]
        self.elements = sum(one.elements or 0 for one in told)
        self.zero_elements = sum(one.zeros or 0 for one in told)
        self._packed = {identity for one in packed for identity in one.stored}
        self._encoded = {identity for one in packed for identity in one.encoded}
        self._uses = dict(uses(model))

    def add(self, tensor: ir.TensorProtocol) -> None:
        """Count one tensor."""
        kind = tensor.dtype.name.lower()
        count, nbytes = self.by_type.get(kind, (0, 0))
        self.by_type[kind] = (count + tensor.size, nbytes + tensor.nbytes)
        zeros, pattern = None, ""
        if tensor.size >= SMALL and kind != "string" and id(tensor) not in self._encoded:
            views, zero = self._uses.get(id(tensor), ((), 0))
            found = measure_sparsity(tensor, views, zero)
            zeros, pattern = found.share, found.pattern
            if id(tensor) not in self._packed:
                self.elements += tensor.size
                self.zero_elements += found.zeros
        shape = tuple(int(d) for d in tensor.shape.numpy())
        self.facts.append(
            TensorFacts(tensor.name or "", kind, shape, tensor.nbytes, zeros, pattern)
        )


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
