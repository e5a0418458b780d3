"""The main graph of a model by the names of its values, and new models put together from pieces.

Weights stay in one file: every piece refers to its place in it, so a hundred pieces of a model cost
no more space than the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import external_data_helper, helper, numpy_helper

Array = np.ndarray[Any, Any]
OTHER = "other/"
"""Put before every name of the second model, so that nodes of both fit into one graph."""


class TangledError(Exception):
    """Two models compute in different orders, so a piece of one does not fit into the other."""


@dataclass
class Wiring:
    """One main graph.

    Attributes:
        nodes: In topological order.
        constants: Initializers by name; their bytes may lie in a file beside the model.
        inputs: Names of the inputs that must be fed.
        outputs: Names of the outputs.
        opsets: Version by domain.
        folder: Where the model and its weights lie.
        maker: Index of the node that makes a value.
        readers: Indices of the nodes that read a value, in order.
        reads: Names that each node reads, with those that its sub-graphs take from outside.
        kinds: Element types of values, where they are known.
    """

    nodes: list[onnx.NodeProto]
    constants: dict[str, onnx.TensorProto]
    inputs: dict[str, onnx.ValueInfoProto]
    outputs: list[str]
    opsets: dict[str, int]
    folder: Path
    maker: dict[str, int] = field(default_factory=dict)
    readers: dict[str, list[int]] = field(default_factory=dict)
    reads: list[tuple[str, ...]] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, node in enumerate(self.nodes):
            names = tuple(dict.fromkeys(_reads(node)))
            self.reads.append(names)
            for name in names:
                self.readers.setdefault(name, []).append(index)
            self.maker.update((name, index) for name in node.output if name)
        self.constants |= {
            node.output[0]: attribute.t
            for node in self.nodes
            if node.op_type == "Constant" and not node.domain
            for attribute in node.attribute
            if attribute.name == "value"
        }

    def producer(self, name: str) -> onnx.NodeProto | None:
        """Return the node that makes a value; None for inputs and initializers."""
        index = self.maker.get(name)
        return None if index is None else self.nodes[index]

    def consumers(self, name: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a value."""
        return [self.nodes[index] for index in self.readers.get(name, ())]

    def array(self, name: str) -> Array | None:
        """Return a constant, read from its file; None for any other value."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor, str(self.folder))

    def back(
        self, target: str, stops: Container[str], through: str = ""
    ) -> tuple[list[int], list[str]]:
        """Walk from a value to those it is computed from.

        Args:
            target: The value; it is walked through although it may be among ``stops``.
            stops: Values that are not looked behind.
            through: One of them that is looked behind all the same.

        Returns:
            Indices of the nodes between, ascending, and the stops and inputs reached, sorted.
        """
        found: set[int] = set()
        reached: set[str] = set()
        waiting = [self.maker[target]] if target in self.maker else []
        while waiting:
            index = waiting.pop()
            if index in found:
                continue
            found.add(index)
            for name in self.reads[index]:
                if name in self.constants:
                    if name in self.maker:
                        found.add(self.maker[name])
                elif (name in stops and name != through) or name not in self.maker:
                    reached.add(name)
                else:
                    waiting.append(self.maker[name])
        return sorted(found), sorted(reached)


def read_wiring(path: Path, prefix: str = "", fed: Iterable[str] = ()) -> Wiring:
    """Read the graph of a model file without its weights.

    Args:
        path: The file, with its weights beside it.
        prefix: Put before every name of the main graph.
        fed: Inputs with a default that are fed all the same.
    """
    proto = onnx.load(str(path), load_external_data=False)
    proto.graph.initializer.extend(map(_dense, proto.graph.sparse_initializer))
    proto.graph.ClearField("sparse_initializer")
    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    typed = list(_typed(proto))
    graph = proto.graph
    if prefix:
        _rename(graph, prefix)
    given = {prefix + name for name in fed}
    constants = {t.name: t for t in graph.initializer if t.name not in given}
    return Wiring(
        nodes=list(graph.node),
        constants=constants,
        inputs={v.name: v for v in graph.input if v.name not in constants},
        outputs=[v.name for v in graph.output],
        opsets={"" if o.domain == "ai.onnx" else o.domain: o.version for o in proto.opset_import},
        folder=path.parent,
        kinds={
            prefix + v.name: v.type.tensor_type.elem_type
            for v in typed
            if v.type.HasField("tensor_type")
        },
    )


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """Write a sparse initializer out: pieces refer to whole tensors."""
    values, where = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(list(sparse.dims), values.dtype)
    flat = where if where.ndim == 1 else np.ravel_multi_index(tuple(where.T), dense.shape)
    dense.reshape(-1)[flat] = values
    return numpy_helper.from_array(dense, sparse.values.name)


def _typed(proto: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    """Yield every value whose type is declared or can be inferred; names without the prefix."""
    found = proto.graph
    with contextlib.suppress(onnx.shape_inference.InferenceError):  # what is declared must do
        found = onnx.shape_inference.infer_shapes(proto).graph
    yield from (*found.input, *found.value_info, *found.output)


def converting(wanted: Mapping[str, tuple[str, int]]) -> Wiring:
    """Return a graph of Cast nodes: ``{result: (source, element type)}``."""
    nodes = [
        helper.make_node("Cast", [source], [name], name=name, to=kind)
        for name, (source, kind) in wanted.items()
    ]
    return Wiring(nodes, {}, {}, [], {}, Path())


@dataclass(frozen=True)
class Assembly:
    """What a new model is put together from.

    Attributes:
        parts: Graphs whose names do not overlap.
        instead: Per graph: what its nodes read in place of a name.
        given: Values that are fed: element type and shape; None: known to one of the graphs.
    """

    parts: Sequence[Wiring]
    instead: Sequence[Mapping[str, str]]
    given: Mapping[str, tuple[int, Sequence[int | str | None] | None] | None]

    def side(self, name: str) -> int:
        """Return which graph a name belongs to.

        Raises:
            TangledError: None has it.
        """
        for index, part in enumerate(self.parts):
            if name in part.maker or name in part.constants or name in part.inputs:
                return index
        raise TangledError(name)

    def resolve(self, name: str, side: int | None = None) -> str:
        """Return the value that stands for a name."""
        return self.instead[self.side(name) if side is None else side].get(name, name)


def assemble(plan: Assembly, outputs: Sequence[str]) -> tuple[onnx.ModelProto, list[str]]:
    """Put a model together that computes values from given ones.

    Returns:
        The model, its weights being references; and the names of its outputs, in order.

    Raises:
        TangledError: The pieces read each other in a circle.
    """
    ends = [plan.resolve(name) for name in outputs]
    nodes: list[onnx.NodeProto] = []
    used: dict[str, onnx.TensorProto] = {}
    fed: dict[str, None] = {}
    done: dict[tuple[int, int], bool] = {}  # True once it is in ``nodes``
    made: set[str] = set()
    waiting = [_task(plan, name) for name in reversed(ends)]
    while waiting:
        name, key = waiting[-1]
        if key is None:
            waiting.pop()
            _leaf(plan, name, used, fed)
            continue
        if done.get(key):
            waiting.pop()
            continue
        side, index = key
        reads = [plan.resolve(n, side) for n in plan.parts[side].reads[index]]
        if key in done:
            waiting.pop()
            done[key] = True
            nodes.append(_rewired(plan.parts[side].nodes[index], plan.instead[side]))
            made.update(nodes[-1].output)
            continue
        done[key] = False
        for task in map(lambda n: _task(plan, n), reversed(reads)):  # noqa: C417 - reads better
            if task[1] is not None and done.get(task[1]) is False:
                raise TangledError(name)
            waiting.append(task)
    names = _end(nodes, ends, made)
    model = _model(plan, nodes, used, (list(fed), names))
    taking = {key[0] for key in done} or {0}
    model.opset_import.extend(_opsets([plan.parts[side] for side in sorted(taking)]))
    return model, names


def _task(plan: Assembly, name: str) -> tuple[str, tuple[int, int] | None]:
    if name in plan.given:
        return name, None
    side = plan.side(name)
    index = plan.parts[side].maker.get(name)
    return name, None if index is None else (side, index)


def _leaf(
    plan: Assembly, name: str, used: dict[str, onnx.TensorProto], fed: dict[str, None]
) -> None:
    part = plan.parts[plan.side(name)]
    if name not in plan.given and name in part.constants:
        used[name] = part.constants[name]
    else:
        fed[name] = None


def _end(nodes: list[onnx.NodeProto], ends: Sequence[str], made: set[str]) -> list[str]:
    """Give every output a name of its own that a node makes."""
    names: list[str] = []
    for position, name in enumerate(ends):
        if name in made and name not in names:
            names.append(name)
            continue
        copy = f"end/{position}"
        nodes.append(helper.make_node("Identity", [name], [copy], name=copy))
        names.append(copy)
    return names


def _model(
    plan: Assembly,
    nodes: list[onnx.NodeProto],
    used: Mapping[str, onnx.TensorProto],
    ports: tuple[list[str], list[str]],
) -> onnx.ModelProto:
    inputs = [_port(plan, name) for name in ports[0]]
    graph = helper.make_graph(
        nodes, "piece", inputs, [onnx.ValueInfoProto(name=name) for name in ports[1]]
    )
    graph.initializer.extend(used.values())
    model = helper.make_model(graph, ir_version=10)
    model.ClearField("opset_import")
    return model


def _opsets(parts: Iterable[Wiring]) -> list[onnx.OperatorSetIdProto]:
    """Return the operator sets of the graphs that a model takes nodes from."""
    newest: dict[str, int] = {}
    for part in parts:
        for domain, version in part.opsets.items():
            newest[domain] = max(version, newest.get(domain, 0))
    return [helper.make_opsetid(domain, version) for domain, version in newest.items()]


def _port(plan: Assembly, name: str) -> onnx.ValueInfoProto:
    given = plan.given.get(name)
    if given is None:
        return plan.parts[plan.side(name)].inputs[name]
    shape = None if given[1] is None else list(given[1])
    return helper.make_tensor_value_info(name, given[0], shape)


def _rewired(node: onnx.NodeProto, instead: Mapping[str, str]) -> onnx.NodeProto:
    if not any(name in instead for name in _reads(node)):
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    _replace_reads(copy, lambda name: instead.get(name, name))
    return copy


# --- names ----------------------------------------------------------------------------------------


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that are attributes of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _own(graph: onnx.GraphProto) -> set[str]:
    names = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    return names | {name for node in graph.node for name in node.output}


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads; from inside its sub-graphs only what they take from outside."""
    yield from filter(None, node.input)
    for graph in subgraphs(node):
        own = _own(graph)
        yield from (v.name for v in graph.output if v.name not in own)
        for inner in graph.node:
            yield from (name for name in _reads(inner) if name not in own)


def _replace_reads(node: onnx.NodeProto, new: Any) -> None:
    """Rename what a node and its sub-graphs read from outside."""
    for position, name in enumerate(node.input):
        if name:
            node.input[position] = new(name)
    for graph in subgraphs(node):
        own = _own(graph)

        def outer(name: str, own: set[str] = own) -> str:
            return name if name in own else str(new(name))

        for inner in graph.node:
            _replace_reads(inner, outer)
        for value in graph.output:
            value.name = outer(value.name)


def _rename(graph: onnx.GraphProto, prefix: str) -> None:
    for node in graph.node:
        _replace_reads(node, lambda name: prefix + name)
        for position, name in enumerate(node.output):
            if name:
                node.output[position] = prefix + name
        if node.name:
            node.name = prefix + node.name
    for named in (*graph.input, *graph.output, *graph.initializer):
        named.name = prefix + named.name


def same_constant(a: tuple[Wiring, str], b: tuple[Wiring, str]) -> bool:
    """Tell whether two constants are equal, reading them only if type and shape are."""
    first, second = a[0].constants[a[1]], b[0].constants[b[1]]
    if first.data_type != second.data_type or list(first.dims) != list(second.dims):
        return False
    return _content(first, a[0].folder) == _content(second, b[0].folder)


def _content(tensor: onnx.TensorProto, folder: Path) -> bytes:
    if external_data_helper.uses_external_data(tensor):
        where = external_data_helper.ExternalDataInfo(tensor)
        with (folder / where.location).open("rb") as file:
            file.seek(where.offset or 0)
            return file.read(where.length or -1)
    return numpy_helper.to_array(tensor).tobytes()
