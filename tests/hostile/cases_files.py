"""Hostile cases about files: containers, flipped bits, external data."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import onnx
from hostile import builders as b
from hostile.builders import Case


def _wire(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def containers() -> Iterator[Case]:
    good = b.matmul().SerializeToString()
    graph = b.matmul().graph.SerializeToString()
    contents = {
        "empty": b"",
        "one zero byte": b"\0",
        "zeros": bytes(4096),
        "text": b"hello, this is no model\n" * 20,
        "html": b"<!DOCTYPE html><html><body>404 not found</body></html>",
        "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n",
        "zip": b"PK\x03\x04" + bytes(200),
        "gzip": b"\x1f\x8b\x08\x00" + bytes(200),
        "pickle": b"\x80\x04\x95" + bytes(100),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "json of something else": b'{"a": 1}',
        "only a header": b"\x08\x08",
        "cut in half": good[: len(good) // 2],
        "last byte missing": good[:-1],
        "garbage at the end": good + b"\xff\xff\xff\xff",
        "group wire type": good + b"\x0b",
        "field number zero": good + b"\x02\x00",
        "varint of eleven bytes": good + b"\x08" + b"\xff" * 11,
        "length beyond the end": good + b"\x3a\xff\xff\xff\xff\x07",
        "length of 2^63": good + b"\x3a" + b"\xff" * 8 + b"\x7f",
        "graph with a broken tensor": b"\x08\x08" + _wire(7, _wire(5, b"\x0a\xff\xff")),
        "two graphs": good + _wire(7, graph),
        "invalid utf-8 in a name": b.relu().SerializeToString().replace(b"\x01y", b"\x01\xff"),
    }
    either = {"two graphs"}
    for name, data in contents.items():
        yield Case("container", name, "either" if name in either else "reject", _writer(data))
    unknown = good + _wire(1999, b"x" * 50)
    yield Case("container", "unknown field", "either", _writer(unknown))
    yield Case("container", "valid", "accept", _writer(good))
    padded = good[:0] + b"\x08\x88\x80\x80\x80\x00" + good[2:]
    yield Case("container", "overlong varint", "either", _writer(padded))
    for depth in (40, 90, 200, 5000):
        nested = b""
        for _ in range(depth):
            nested = _wire(1, _wire(5, _wire(6, nested)))
        data = b"\x08\x08" + _wire(7, nested)
        yield Case("container", f"messages nested {depth} deep", "reject", _writer(data))
    yield Case("container", "a folder", "reject", lambda f: (f / b.FILE).mkdir())
    yield Case("container", "a named pipe", "reject", lambda f: b.fifo(f / b.FILE))
    yield Case("container", "a socket", "reject", _socket)
    yield Case("container", "a dangling link", "reject", lambda f: (f / b.FILE).symlink_to("none"))
    yield Case("container", "a link to itself", "reject", lambda f: (f / b.FILE).symlink_to(b.FILE))
    for device in ("/dev/zero", "/dev/null", "/dev/urandom", "/proc/self/mem"):
        yield Case("container", f"a link to {device}", "reject", _link(device))
    yield Case("container", "no file", "reject", lambda _: None)
    yield Case("container", "a link to a model", "accept", _linked_model)
    yield Case("container", "a file of 3 GiB", "reject", _huge)
    yield Case("container", "a hole of 1 TiB", "reject", lambda f: _truncate(f / b.FILE, 1 << 40))
    yield Case("container", "million empty nodes", "either", _writer(_many_nodes(1_000_000)))
    yield Case("container", "million empty attributes", "reject", _writer(_many_attributes()))


def _writer(data: bytes):
    return lambda folder: b.write(folder, data)


def _link(target: str):
    return lambda folder: (folder / b.FILE).symlink_to(target)


def _socket(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(b.FILE)
    finally:
        os.chdir(here)


def _linked_model(folder: Path) -> None:
    b.write(folder, b.matmul())
    (folder / b.FILE).rename(folder / "real.onnx")
    (folder / b.FILE).symlink_to("real.onnx")


def _truncate(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def _huge(folder: Path) -> None:
    b.write(folder, b.matmul())
    with (folder / b.FILE).open("r+b") as file:
        file.truncate(3 << 30)


def _many_nodes(count: int) -> bytes:
    return b"\x08\x08" + _wire(7, _wire(1, b"") * count)


def _many_attributes() -> bytes:
    return b"\x08\x08" + _wire(7, _wire(1, _wire(5, b"") * 1_000_000))


def bit_flips() -> Iterator[Case]:
    sources = {
        "matmul": b.matmul(),
        "conv": b.conv(pads=[1, 1, 1, 1]),
        "if": _if_model(),
    }
    for source, made in sources.items():
        data = made.SerializeToString()
        for seed in range(20):
            yield Case("bitflip", f"{source} {seed}", "either", _writer(_flipped(data, seed)))


def _flipped(data: bytes, seed: int) -> bytes:
    random_ = random.Random(seed)
    content = bytearray(data)
    for _ in range(1 + seed % 4):
        content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
    return bytes(content)


def _if_model() -> onnx.ModelProto:
    branches = {
        name: onnx.helper.make_graph([b.node(op, ["x"], [out])], name, [], [b.value(out)])
        for name, op, out in (("then_branch", "Relu", "t"), ("else_branch", "Neg", "e"))
    }
    return b.model(
        [b.node("If", ["c"], ["y"], **branches)],
        [b.value("x")],
        [b.value("y")],
        [b.tensor("c", onnx.TensorProto.BOOL, (), [True])],
    )


def externals() -> Iterator[Case]:
    """External data; each escape as an initializer, in a Constant, a sub-graph and a function."""
    for name, location, prepare in _escapes():
        for place, build in _PLACES.items():
            yield Case(
                "external", f"{name} in {place}", "reject", _escape(location, prepare, build)
            )
    data = b"\0" * 48
    yield Case("external", "valid", "accept", _external({}, data))
    yield Case("external", "valid in a folder", "accept", _in_folder)
    yield Case(
        "external", "valid with a dot", "accept", _external({"location": "./data.bin"}, data)
    )
    yield Case("external", "offset", "accept", _external({"offset": "16"}, bytes(64)))
    yield Case("external", "checksum", "accept", _external({"checksum": "0" * 40}, data))
    wrong = {
        "no file": ({"location": "none.bin"}, data),
        "no location": ({"location": None}, data),
        "empty location": ({"location": ""}, data),
        "location is the folder": ({"location": "."}, data),
        "length too short": ({"length": "47"}, data),
        "length too long": ({"length": "49"}, bytes(64)),
        "length of 10^15": ({"length": "1000000000000000"}, data),
        "length zero": ({"length": "0"}, data),
        "length negative": ({"length": "-48"}, data),
        "length of 30 digits": ({"length": "9" * 30}, data),
        "length is text": ({"length": "all"}, data),
        "length is a float": ({"length": "48.0"}, data),
        "length is hexadecimal": ({"length": "0x30"}, data),
        "length is in other digits": ({"length": "٤٨"}, data),
        "length with a newline": ({"length": "48\n"}, data),
        "offset beyond the end": ({"offset": "4096"}, data),
        "offset one too far": ({"offset": "1"}, data),
        "offset negative": ({"offset": "-8"}, data),
        "offset is text": ({"offset": "start"}, data),
        "offset wraps": ({"offset": str((1 << 64) - 48)}, data),
        "offset and length wrap": ({"offset": str((1 << 63) - 1), "length": "48"}, data),
        "file too short": ({}, data[:40]),
        "file empty": ({}, b""),
        "unknown key": ({"__class__": "x"}, data),
        "memory address": ({"location": "*/_ORT_MEM_ADDR_/*", "offset": "4096"}, data),
        "the model itself": ({"location": b.FILE, "length": "48"}, data),
    }
    for name, (entries, content) in wrong.items():
        expect = "either" if name == "the model itself" else "reject"
        yield Case("external", name, expect, _external(entries, content))
    yield Case("external", "key twice", "reject", _key_twice)
    yield Case("external", "strings", "reject", _strings)
    yield Case("external", "also raw data", "reject", _also_raw)
    yield Case("external", "2000 tensors on one file", "reject", _shared)
    yield Case("external", "a hole of 64 GiB", "reject", _hole)
    yield Case("external", "dims of 2^40", "reject", _dims)


def _escapes():
    """(name, location, what to prepare beside the model) of ways to another file."""

    def nothing(_: Path) -> None:
        return

    yield "parent folder", "../secret.bin", nothing
    yield "parent of a folder", "sub/../../secret.bin", lambda f: (f / "sub").mkdir()
    yield "hidden parent", "./.././secret.bin", nothing
    yield "absolute path", "ABSOLUTE", nothing
    yield "absolute after slashes", "//ABSOLUTE", nothing
    yield "link", "l.bin", lambda f: (f / "l.bin").symlink_to("../secret.bin")
    yield "folder link", "up/secret.bin", lambda f: (f / "up").symlink_to("..")
    yield "link to a link", "a.bin", _two_links
    yield "hard link", "h.bin", lambda f: (f / "h.bin").hardlink_to(b.secret_beside(f))
    yield "named pipe", "p.bin", lambda f: b.fifo(f / "p.bin")
    yield "device link", "z.bin", lambda f: (f / "z.bin").symlink_to("/dev/zero")
    yield "folder", "d.bin", lambda f: (f / "d.bin").mkdir()
    yield "nul", "secret.bin\0.bin", nothing
    yield "backslashes", "..\\secret.bin", nothing
    yield "drive letter", "C:secret.bin", nothing


def _two_links(folder: Path) -> None:
    (folder / "a.bin").symlink_to("b.bin")
    (folder / "b.bin").symlink_to("../secret.bin")


def _in_initializer(weight: onnx.TensorProto) -> onnx.ModelProto:
    return b.matmul(weight)


def _in_constant(weight: onnx.TensorProto) -> onnx.ModelProto:
    nodes = [b.node("Constant", [], ["w"], value=weight), b.node("MatMul", ["x", "w"], ["y"])]
    return b.model(nodes, [b.value("x")], [b.value("y", (2, 4))])


def _in_subgraph(weight: onnx.TensorProto) -> onnx.ModelProto:
    made = _if_model()
    branch = made.graph.node[0].attribute[0].g
    branch.initializer.append(weight)
    return made


def _in_function(weight: onnx.TensorProto) -> onnx.ModelProto:
    body = [b.node("Constant", [], ["w"], value=weight), b.node("MatMul", ["a", "w"], ["r"])]
    function = onnx.helper.make_function(
        "local", "F", ["a"], ["r"], body, [onnx.helper.make_opsetid("", 17)]
    )
    return b.model(
        [b.node("F", ["x"], ["y"], domain="local")],
        [b.value("x")],
        [b.value("y", (2, 4))],
        functions=[function],
        domains=["local"],
    )


_PLACES = {
    "initializer": _in_initializer,
    "constant": _in_constant,
    "sub-graph": _in_subgraph,
    "function": _in_function,
}


def _escape(location: str, prepare, build):
    def make(folder: Path) -> None:
        prepare(folder)
        text = location.replace("ABSOLUTE", str(b.secret_beside(folder)))
        b.write(folder, build(b.external(text, dims=(3, 4))))

    return make


def _external(entries: dict, data: bytes):
    def make(folder: Path) -> None:
        (folder / "data.bin").write_bytes(data)
        merged = {"location": "data.bin", **entries}
        weight = b.external("x")
        del weight.external_data[:]
        for key, text in merged.items():
            if text is not None:
                weight.external_data.add(key=key, value=text)
        b.write(folder, b.matmul(weight))

    return make


def _in_folder(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "data.bin").write_bytes(bytes(48))
    b.write(folder, b.matmul(b.external("deep/er/data.bin")))


def _key_twice(folder: Path) -> None:
    (folder / "data.bin").write_bytes(bytes(48))
    weight = b.external()
    weight.external_data.add(key="location", value="../secret.bin")
    b.write(folder, b.matmul(weight))


def _strings(folder: Path) -> None:
    (folder / "data.bin").write_bytes(bytes(48))
    b.write(folder, b.matmul(b.external(kind=onnx.TensorProto.STRING)))


def _also_raw(folder: Path) -> None:
    (folder / "data.bin").write_bytes(bytes(48))
    weight = b.external()
    weight.raw_data = bytes(48)
    b.write(folder, b.matmul(weight))


def _shared(folder: Path) -> None:
    (folder / "data.bin").write_bytes(bytes(1 << 20))
    made = b.matmul()
    for index in range(2000):
        weight = b.external(dims=(512, 512))
        weight.name = f"t{index}"
        made.graph.initializer.append(weight)
    b.write(folder, made)


def _hole(folder: Path) -> None:
    _truncate(folder / "data.bin", 64 << 30)
    b.write(folder, b.matmul(b.external(dims=(1 << 34,))))


def _dims(folder: Path) -> None:
    (folder / "data.bin").write_bytes(bytes(48))
    b.write(folder, b.matmul(b.external(dims=(1 << 20, 1 << 20))))
