"""A whole random model with feeds, and a random list of passes for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from properties.random_models import elementwise, movement, patterns, scopes
from properties.random_models.builder import BOOL, F32, I64, Builder, Dims, Shared, Tensor

OPSETS = (13, 17, 18, 20, 21, 23, 11)
_TARGETS = (13, 15, 17, 18, 20, 21)  # from 22 on onnxruntime lacks kernels of random operators
_IR = {11: 7, 13: 7, 17: 8, 18: 8, 20: 9, 21: 10, 23: 11}
_SIZES = ({"N": 2, "L": 3}, {"N": 1, "L": 1}, {"N": 3, "L": 5}, {"N": 0, "L": 2})
_INPUTS: tuple[Dims, ...] = (
    ("N", 4),
    ("N", "L", 8),
    (2, 3, 4),
    ("N", 3, 6, 6),
    (1, 4, 5, 5),
    (4,),
    ("N",),
    (),
    (1, 1, 4),
    ("N", 2, 6),
)
_TABLE = (*elementwise.STEPS, *movement.STEPS, *patterns.STEPS, *scopes.STEPS)
_STEPS: tuple[Callable[[Builder], None], ...] = tuple(s for s, w in _TABLE for _ in range(w))
_AFTER_11 = frozenset({movement.pad, patterns.softmax})


@dataclass(frozen=True)
class RandomModel:
    """A model, its feeds, and a list of passes in text form."""

    proto: onnx.ModelProto
    feeds: list[dict[str, Any]]


def step(b: Builder) -> None:
    """Do one random step; some need a value that the graph does not have, and do nothing."""
    chosen = b.choose(_STEPS)
    if b.opset < 13 and chosen in _AFTER_11:
        return
    chosen(b)
    if b.nodes and b.chance(0.06):
        _repeat(b)


def _repeat(b: Builder) -> None:
    """Write a node again under other names: what merging equal computations is for."""
    node = b.choose(b.nodes)
    known = {value.name: value for value in b.values}
    if node.op_type in ("Constant", "If", "Loop", "Scan") or node.domain:
        return
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = ""
    for index, output in enumerate(node.output):
        copy.output[index] = b.name()
        if output in known:
            like = known[output]
            b.values.append(Tensor(copy.output[index], like.dtype, like.dims))
    b.nodes.append(copy)


def build(random: Random, most_steps: int = 14) -> RandomModel:
    """Make one model from a stream of choices."""
    opset = random.choice(OPSETS)
    b = Builder(Shared(random, opset))
    inputs = [Tensor(f"x{i}", F32, random.choice(_INPUTS)) for i in range(random.choice((1, 1, 2)))]
    inputs.append(Tensor("flag", BOOL, ()))
    if random.random() < 0.3:
        inputs.append(Tensor("ids", I64, random.choice((("N",), ("N", 4), (3,)))))
    b.values += inputs
    for _ in range(random.randrange(1, most_steps + 1)):
        step(b)
    proto = _finish(b, inputs, random)
    # onnxruntime gives reductions of empty tensors the shape of their input
    # and its Attention takes no empty batch
    awkward = ("Reduce", "Arg") if opset < 23 else ("Reduce", "Arg", "Softmax")
    filled_only = any(op.startswith(awkward) for op in _operators(proto))
    sizes = [s for s in _SIZES if s["N"] or not filled_only]
    return RandomModel(proto, [_feed(inputs, size, random) for size in sizes])


def _operators(proto: onnx.ModelProto) -> set[str]:
    nodes = list(proto.graph.node)
    for node in nodes:
        nodes += [n for a in node.attribute if a.HasField("g") for n in a.g.node]
    return {node.op_type for node in nodes}


def _finish(b: Builder, inputs: list[Tensor], random: Random) -> onnx.ModelProto:
    made = [value for value in b.values if value not in inputs]
    if not made:
        made = [b.node("Identity", [inputs[0]], inputs[0])]
    read = {name for node in b.nodes for name in node.input}
    unread = [value for value in made if value.name not in read]
    ends = unread if unread and random.random() < 0.7 else made
    chosen = {value.name: value for value in ends[-random.choice((1, 2, 3, 6)) :]}
    for value in random.sample(made, min(len(made), random.choice((0, 0, 1, 2)))):
        chosen[value.name] = value
    ports = [helper.make_tensor_value_info(v.name, v.dtype, _shown(v.dims)) for v in inputs]
    outputs = [
        helper.make_tensor_value_info(v.name, v.dtype, None if random.random() < 0.5 else _any(v))
        for v in chosen.values()
    ]
    graph = helper.make_graph(b.nodes, "random", ports, outputs, b.initializers)
    _extras(graph, random)
    imports = [helper.make_opsetid("", b.opset)]
    if b.shared.functions:
        imports.append(helper.make_opsetid("local", 1))
    ir_version = max(_IR[b.opset], 8 if b.shared.functions else 0)
    return helper.make_model(
        graph, opset_imports=imports, ir_version=ir_version, functions=b.shared.functions
    )


def _shown(dims: Dims) -> list[int | str]:
    return list(dims)


def _any(value: Tensor) -> list[int | str | None]:
    return [None if isinstance(d, str) and d.startswith("?") else d for d in value.dims]


def _extras(graph: onnx.GraphProto, random: Random) -> None:
    """Unused initializers, defaults that a caller may override, and inferred types."""
    if random.random() < 0.2:
        graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "unused"))
    if random.random() < 0.15 and graph.initializer:
        chosen = random.choice(graph.initializer)
        port = helper.make_tensor_value_info(chosen.name, chosen.data_type, list(chosen.dims))
        graph.input.append(port)


def _feed(inputs: Sequence[Tensor], sizes: dict[str, int], random: Random) -> dict[str, Any]:
    rng = np.random.default_rng(random.randrange(1 << 30))
    feed: dict[str, Any] = {}
    for value in inputs:
        shape = [sizes[d] if isinstance(d, str) else d for d in value.dims]
        if value.dtype == BOOL:
            feed[value.name] = np.array(bool(rng.integers(2)))
        elif value.dtype == I64:
            feed[value.name] = rng.integers(-3, 4, shape)
        else:
            array = rng.standard_normal(shape)
            special = rng.choice([0.0, -0.0, 1.0, -40.0, 300.0], shape)
            feed[value.name] = np.where(rng.random(shape) < 0.1, special, array).astype(np.float32)
    return feed


def pass_list(random: Random, names: Sequence[str]) -> str:
    """Choose a list of passes; ``simplify`` alone most often."""
    kind = random.random()
    if kind < 0.5:
        return "simplify"
    if kind < 0.6:
        return f"inline,{random.choice(names)}"
    if kind < 0.7:
        return f"convert_opset:to={random.choice(_TARGETS)},{random.choice(names)}"
    return ",".join(random.choice(names) for _ in range(random.choice((1, 2, 3))))
