"""Small valid models that the hostile cases break, and the type of a case."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

Verdict = Literal["reject", "accept", "either"]
FILE = "model.onnx"
CANARY = b"CANARY-7f3a9b51-do-not-leak-0123"
FLOAT, INT64, INT8, UINT8 = (
    TensorProto.FLOAT,
    TensorProto.INT64,
    TensorProto.INT8,
    TensorProto.UINT8,
)
node = helper.make_node
tensor = helper.make_tensor


@dataclass(frozen=True)
class Case:
    """One file that somebody may hand to the converter.

    Attributes:
        group: What is wrong with it, roughly.
        name: What is wrong with it, exactly.
        expect: ``reject`` and ``accept``, or ``either`` where only a crash, a hang, a leak or a
            foreign exception is a failure.
        make: Writes ``FILE``, and what it needs, into a folder. Beside the folder lies
            ``secret.bin``, which nobody may read.
    """

    group: str
    name: str
    expect: Verdict
    make: Callable[[Path], None]

    def __str__(self) -> str:
        return f"{self.group}-{self.name}"


def value(name: str, shape: Sequence[int | str] | None = (2, 3), kind: int = FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Iterable[onnx.NodeProto],
    inputs: Iterable[onnx.ValueInfoProto] = (),
    outputs: Iterable[onnx.ValueInfoProto] = (),
    constants: Iterable[onnx.TensorProto] = (),
    *,
    opset: int = 17,
    ir: int = 8,
    functions: Iterable[onnx.FunctionProto] = (),
    domains: Iterable[str] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(constants))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    made = helper.make_model(graph, opset_imports=imports, functions=list(functions))
    made.ir_version = ir
    return made


def relu(**options) -> onnx.ModelProto:
    """x -> Relu -> y."""
    return model([node("Relu", ["x"], ["y"], name="n")], [value("x")], [value("y")], **options)


def weights(name: str = "w", shape: Sequence[int] = (3, 4), scale: float = 0.1):
    count = int(np.prod(shape))
    return tensor(name, FLOAT, shape, [scale * (i % 7 - 3) for i in range(count)])


def matmul(constant: onnx.TensorProto | None = None) -> onnx.ModelProto:
    """x (2, 3) @ w (3, 4) -> y."""
    constant = weights() if constant is None else constant
    return model(
        [node("MatMul", ["x", "w"], ["y"], name="m")],
        [value("x")],
        [value("y", (2, 4))],
        [constant],
    )


def conv(**attributes) -> onnx.ModelProto:
    """x (1, 4, 8, 8) -> Conv with w (8, 4, 3, 3) and b (8) -> y."""
    return conv_with((1, 4, 8, 8), (8, 4, 3, 3), (8,), **attributes)


def conv_with(x, w, b, **attributes) -> onnx.ModelProto:
    names = ["x", "w", "b"] if b is not None else ["x", "w"]
    constants = [weights("w", w)] + ([weights("b", b)] if b is not None else [])
    return model(
        [node("Conv", names, ["y"], name="c", **attributes)],
        [value("x", x)],
        [value("y", None)],
        constants,
    )


def write(folder: Path, content: onnx.ModelProto | bytes) -> None:
    data = content if isinstance(content, bytes) else content.SerializeToString()
    (folder / FILE).write_bytes(data)


def external(
    location: str = "data.bin", *, dims=(3, 4), kind: int = FLOAT, **entries: str
) -> onnx.TensorProto:
    """A tensor whose bytes are in another file."""
    made = TensorProto(name="w", data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, text in {"location": location, **entries}.items():
        made.external_data.add(key=key, value=text)
    return made


def secret_beside(folder: Path) -> Path:
    """The file that must not leak."""
    return folder.parent / "secret.bin"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def saved(build: Callable[[], onnx.ModelProto | bytes]) -> Callable[[Path], None]:
    """Turn a model into what :class:`Case` wants."""
    return lambda folder: write(folder, build())


def edited(
    build: Callable[[], onnx.ModelProto], edit: Callable[[onnx.ModelProto], object]
) -> Callable[[Path], None]:
    """Write a valid model after one change."""

    def make(folder: Path) -> None:
        made = build()
        edit(made)
        write(folder, made)

    return make
