"""The wire-format scanner and splicer against protobuf itself, also on damaged bytes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from converter.errors import ConverterError, FormatError, LimitExceededError
from converter.io import wire

BIG = np.arange(1000, dtype=np.float32)


def small_model() -> onnx.ModelProto:
    """Large tensors at every place that can hold one."""
    body = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(BIG + 1, "k"))],
        "body",
        [],
        [helper.make_tensor_value_info("c", 1, [1000])],
        [numpy_helper.from_array(BIG + 2, "inner")],
    )
    nodes = [
        helper.make_node("If", ["cond"], ["y"], then_branch=body, else_branch=body),
        helper.make_node(
            "Holder", [], ["z"], domain="d", many=[_tensor(BIG + 4), _tensor(BIG + 5)]
        ),
    ]
    packed = helper.make_tensor("packed", TensorProto.FLOAT, [1000], (BIG + 3).tolist())
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("cond", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", 1, [1000])],
        [numpy_helper.from_array(BIG, "w"), packed, numpy_helper.from_array(BIG[:3], "tiny")],
    )
    function = helper.make_function(
        "d",
        "F",
        [],
        ["o"],
        [helper.make_node("Constant", [], ["o"], value=numpy_helper.from_array(BIG + 6))],
        [helper.make_opsetid("", 17)],
    )
    model = helper.make_model(graph, functions=[function], ir_version=8)
    sparse = model.graph.sparse_initializer.add(dims=[5000])
    sparse.values.CopyFrom(numpy_helper.from_array(BIG + 7, "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(1000), "s_indices"))
    return model


def _tensor(array: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(array)


def rejoin(data: bytes, scan: wire.Scan) -> bytes:
    """Scan and splice back."""
    token = next(iter(scan.places)).rpartition("/")[0] + "/"
    sizes = {location: place.nbytes for location, place in scan.places.items()}
    out = b""
    for piece in wire.splice(scan.skeleton, token, sizes):
        if isinstance(piece, wire.Hole):
            place = scan.places[piece.location]
            out += data[place.offset : place.offset + place.nbytes]
        else:
            out += piece
    return out


def test_every_large_tensor_stays_in_the_file_and_comes_back():
    model = small_model()
    data = model.SerializeToString()
    scan = wire.scan(wire.Memory(data))
    assert len(scan.places) == 1 + 1 + 2 * 2 + 2 + 1 + 2
    assert len(scan.skeleton) < len(data) / 10
    back = onnx.ModelProto.FromString(rejoin(data, scan))
    packed = next(t for t in model.graph.initializer if t.name == "packed")
    packed.raw_data = np.asarray(packed.float_data, "<f4").tobytes()
    packed.ClearField("float_data")
    assert back == model


def test_field_numbers_are_those_of_onnx():
    messages = {
        "model": onnx.ModelProto,
        "graph": onnx.GraphProto,
        "node": onnx.NodeProto,
        "attribute": onnx.AttributeProto,
        "sparse": onnx.SparseTensorProto,
        "function": onnx.FunctionProto,
        "tensor": onnx.TensorProto,
    }
    kinds = {message.DESCRIPTOR.full_name: kind for kind, message in messages.items()}
    for kind, message in messages.items():
        found = {
            field.number: kinds[field.message_type.full_name]
            for field in message.DESCRIPTOR.fields
            if field.message_type is not None and field.message_type.full_name in kinds
        }
        assert found == wire.CHILDREN.get(kind, {}), kind


def test_a_graph_field_in_two_parts_is_merged_as_protobuf_does():
    model = small_model()
    extra = onnx.ModelProto()
    extra.graph.initializer.add().CopyFrom(numpy_helper.from_array(BIG + 9, "late"))
    data = model.SerializeToString() + extra.SerializeToString()
    scan = wire.scan(wire.Memory(data))
    proto = onnx.ModelProto.FromString(scan.skeleton)
    assert [t.name for t in proto.graph.initializer][-1] == "late"


def test_an_explicit_default_location_does_not_keep_the_tensor_in_memory():
    model = small_model()
    model.graph.initializer[0].data_location = TensorProto.DEFAULT
    scan = wire.scan(wire.Memory(model.SerializeToString()))
    proto = onnx.ModelProto.FromString(scan.skeleton)
    assert proto.graph.initializer[0].data_location == TensorProto.EXTERNAL


def field(number: int, payload: bytes) -> bytes:
    return wire.delimited(number, payload)


RAW = field(9, bytes(2000))
DAMAGED = {
    "truncated": small_model().SerializeToString()[:-100],
    "group": b"\x0b\x0c",
    "field zero": b"\x00\x00",
    "wire type 7": b"\x0f",
    "long varint": b"\x08" + b"\xff" * 10 + b"\x01",
    "varint over 64 bits": b"\x08" + b"\xff" * 9 + b"\x7f",
    "length over the end": b"\x3a\xff\xff\xff\xff\x0f",
    "huge length": b"\x3a" + b"\xff" * 9 + b"\x01",
    "child longer than parent": field(7, b"\x2a\xff\x10" + bytes(2000)),
    "raw twice": field(7, field(5, RAW + RAW)),
    "t twice": field(7, field(1, field(5, field(5, RAW) + field(5, RAW)))),
    "raw and external": field(7, field(5, RAW + b"\x70\x01")),
    "raw and entries": field(7, field(5, RAW + field(13, field(1, b"k")))),
    "segment": field(7, field(5, RAW + field(3, b""))),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_bytes_are_refused(name):
    with pytest.raises(FormatError, match="damaged"):
        wire.scan(wire.Memory(DAMAGED[name]))


def test_nesting_is_bounded():
    data = bytes(2000)
    for _ in range(60):
        data = field(1, field(5, field(6, data)))
    with pytest.raises(LimitExceededError, match="nested"):
        wire.scan(wire.Memory(field(7, data)))


def test_a_skeleton_is_bounded():
    data = field(7, field(10, bytes(5000)))
    with pytest.raises(LimitExceededError, match="too large"):
        wire.scan(wire.Memory(data), max_bytes=4000)


def test_millions_of_fields_are_refused(monkeypatch):
    monkeypatch.setattr(wire, "MAX_FIELDS", 1000)
    with pytest.raises(LimitExceededError, match="fields"):
        wire.scan(wire.Memory(b"\x08\x00" * 2000))


def test_one_field_per_element_is_left_to_protobuf():
    unpacked = b"\x25\x00\x00\x80\x3f" * 1000
    data = field(7, field(5, b"\x08\xe8\x07\x10\x01" + unpacked))
    scan = wire.scan(wire.Memory(data))
    assert not scan.places
    tensor = onnx.ModelProto.FromString(scan.skeleton).graph.initializer[0]
    assert numpy_helper.to_array(tensor).sum() == 1000


WHOLE = small_model().SerializeToString()


@settings(max_examples=300, deadline=None)
@given(
    cut=st.integers(0, len(WHOLE)),
    flips=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 7)), max_size=8),
)
def test_only_our_errors_come_out_of_damaged_files(cut, flips):
    data = bytearray(WHOLE)
    for position, bit in flips:
        data[position] ^= 1 << bit
    try:
        scan = wire.scan(wire.Memory(bytes(data[:cut] if cut % 2 else data)))
    except ConverterError:
        return
    for place in scan.places.values():
        assert 0 <= place.offset <= place.offset + place.nbytes <= len(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_only_our_errors_come_out_of_random_bytes(data):
    try:
        scan = wire.scan(wire.Memory(data))
    except ConverterError:
        return
    assert len(scan.skeleton) <= len(data)
