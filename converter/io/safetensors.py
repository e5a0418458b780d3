"""The header of a .safetensors file, so that external data of ONNX can lie inside one.

The file begins with the length of a JSON header, the header follows, then the tensors without gaps.
ONNX refers to them by their offset in the whole file, so one file serves both worlds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from converter.io.skeleton import Placed, Skeleton, set_external
from converter.io.strip import LISTS, shaping_inputs
from converter.io.unknown import messages

Kind = ir.DataType
DTYPES: dict[ir.DataType, str] = {
    Kind.FLOAT: "F32",
    Kind.DOUBLE: "F64",
    Kind.FLOAT16: "F16",
    Kind.BFLOAT16: "BF16",
    Kind.FLOAT8E4M3FN: "F8_E4M3",
    Kind.FLOAT8E5M2: "F8_E5M2",
    Kind.INT64: "I64",
    Kind.INT32: "I32",
    Kind.INT16: "I16",
    Kind.INT8: "I8",
    Kind.UINT64: "U64",
    Kind.UINT32: "U32",
    Kind.UINT16: "U16",
    Kind.UINT8: "U8",
    Kind.BOOL: "BOOL",
}
"""Names of element types that every version of the format since 2024 has.

What has none is stored as its bytes (``U8``), and the metadata say what they are.
"""

METADATA = "__metadata__"
_ALIGNMENT = 64
_ENTRY_BYTES = 128  # an entry less its name and shape, offsets of any size included


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        names: Its names: the first owns the bytes, the others are told in the metadata.
        tensor: The tensor.
    """

    names: tuple[str, ...]
    tensor: ir.TensorProtocol

    @property
    def room(self) -> int:
        """Upper bound of the bytes that the entry takes in the header."""
        text = json.dumps(self.names) + str(list(self.tensor.shape.numpy())) * 2
        return _ENTRY_BYTES * len(self.names) + 2 * len(text)


def entries_of(placed: Iterable[Placed]) -> list[Entry]:
    """Return one entry per tensor, with names that no other entry has."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, ir.TensorProtocol] = {}
    used = {METADATA}
    for one in placed:
        base = one.proto.name or "tensor"
        name, number = base, 2
        while name in used:  # values of different sub-graphs may share one
            name, number = f"{base}#{number}", number + 1
        used.add(name)
        names.setdefault(id(one.tensor), []).append(name)
        tensors[id(one.tensor)] = one.tensor
    return [Entry(tuple(found), tensors[key]) for key, found in names.items()]


def place_small(skeleton: Skeleton) -> Skeleton:
    """Take small weights out of the model, too, so that the file holds all of them.

    Scalars, integers, and numbers that decide about shapes stay: onnxruntime must know them before
    it reads external data.
    """
    needed = shaping_inputs(skeleton.proto)
    found = list(skeleton.placed)
    for graph in messages(skeleton.proto):
        for proto in graph.initializer if isinstance(graph, onnx.GraphProto) else ():
            if not _is_small_weight(proto) or proto.name in needed:
                continue
            copy = onnx.TensorProto()
            copy.CopyFrom(proto)
            tensor = ir.TensorProtoTensor(copy)
            for name in (*LISTS, "raw_data"):
                proto.ClearField(name)
            set_external(proto, f"{skeleton.token}{len(found)}", 0, tensor.nbytes)
            found.append(Placed(proto, tensor, attribute=False))
    return Skeleton(skeleton.proto, found, skeleton.token)


def _is_small_weight(proto: onnx.TensorProto) -> bool:
    if proto.data_location == onnx.TensorProto.EXTERNAL or not math.prod(proto.dims or [0]):
        return False
    return Kind(proto.data_type).is_floating_point()


def in_file_order(entries: Iterable[Entry]) -> list[Entry]:
    """Sort wide elements first, so that every tensor is aligned without a gap between them."""
    return sorted(entries, key=lambda e: -e.tensor.dtype.bitwidth)


def header(entries: Sequence[Entry]) -> bytes:
    """Return everything before the first tensor of a file with these tensors, in this order."""
    table: dict[str, object] = {METADATA: _metadata(entries)}
    offset = 0
    for entry in entries:
        dtype = DTYPES.get(entry.tensor.dtype)
        shape = [int(n) for n in entry.tensor.shape.numpy()]
        end = offset + entry.tensor.nbytes
        table[entry.names[0]] = {
            "dtype": dtype or "U8",
            "shape": shape if dtype else [entry.tensor.nbytes],
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )
    length = math.ceil((8 + len(text)) / _ALIGNMENT) * _ALIGNMENT - 8
    return length.to_bytes(8, "little") + text.ljust(length)


def _metadata(entries: Iterable[Entry]) -> Mapping[str, str]:
    """Say what a reader of safetensors cannot see: shared tensors, and types without a name."""
    found = {"format": "onnx"}
    for entry in entries:
        for other in entry.names[1:]:
            found[other] = entry.names[0]
        if entry.tensor.dtype not in DTYPES:
            shape = list(entry.tensor.shape.numpy())
            found[entry.names[0]] = f"{entry.tensor.dtype.name} {shape} as bytes"
    return found
