"""A model cut at chosen nodes into pieces that run one after the other.

Between two pieces only the values live that a later piece reads. Constants, and what follows from
constants alone, belong to every piece that reads them; so does DequantizeLinear, which makes
integers the form in which a quantized value is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from converter.core import graph as g
from passes.tuning.store import Batches, Budget, Store

if TYPE_CHECKING:
    from converter.core.context import Arrays, RunSettings

Array = np.ndarray[Any, Any]
_RANDOM = ("RandomNormal", "RandomUniform")


class Pieces:
    """A model that advances from stop to stop, all batches at once.

    Args:
        model: Its constants may be replaced before the piece that reads them runs.
        stops: Nodes of the main graph in the order of the graph; a piece ends before each.
        feeds: The batches.
        settings: How models are run.
        folder: For temporary files.
        budget: Memory for values, shared with other models.

    Attributes:
        values: What lives at the present stop.
    """

    def __init__(
        self,
        model: ir.Model,
        stops: Sequence[ir.Node],
        feeds: Sequence[Arrays],
        settings: RunSettings,
        folder: Path,
        budget: Budget | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.values = Store(folder, budget or Budget())
        self._folder = folder
        self._nodes = list(model.graph)
        self._position = {node: i for i, node in enumerate(self._nodes)}
        self._bounds = [self._position[node] for node in stops]
        self._follows: dict[ir.Node, bool] = {}
        for node in self._nodes:
            self._follows[node] = self._repeated(node)
        self._outer = _outer_uses(self._nodes)
        self._last = self._last_uses()
        self._done = 0
        self._index = 0
        self._batches = len(feeds)
        for feed in feeds:
            for name, array in feed.items():
                self.values.lend(name, np.asarray(array))

    def advance(self) -> None:
        """Run up to the next stop, or to the end."""
        end = len(self._nodes)
        if self._index < len(self._bounds):
            end = self._bounds[self._index]
            self._index += 1
        nodes = [n for n in self._nodes[self._done : end] if not self._follows[n]]
        if nodes:
            self._run(nodes, end)
        self._done = end
        for value, last in self._last.items():
            if last < end:
                self.values.drop(value.name or "")

    def finish(self) -> None:
        """Run to the end; the outputs of the model are among the values then."""
        self._index = len(self._bounds)
        self.advance()
        missing = [v for v in self.model.graph.outputs if (v.name or "") not in self.values]
        if missing:  # a constant, or the other side of a DequantizeLinear
            self._execute(list(self._sources(missing)), [v.name or "" for v in missing])

    def outlook(self, batches: Sequence[int]) -> dict[str, list[Array]]:
        """Run the rest of some batches without advancing; returns the outputs of the model."""
        rest = [n for n in self._nodes[self._done :] if not self._follows[n]]
        outputs = [v for v in self.model.graph.outputs if (v.name or "") not in self.values]
        reads = [v for node in rest for v in self._reads(node)] + outputs
        nodes = [*dict.fromkeys(self._sources(reads)), *rest]
        names = [v.name or "" for v in outputs]
        made = list(self._computed(nodes, names, batches)) if nodes else []
        found = {name: [each[name] for each in made] for name in names}
        for value in self.model.graph.outputs:
            name = value.name or ""
            if name not in found:
                found[name] = [self.values[name][i] for i in batches]
        return found

    def ahead(self, node: ir.Node) -> Iterator[Array]:
        """Yield the first output of the node at the present stop by batch, without advancing."""
        name = node.outputs[0].name or ""
        nodes = [*dict.fromkeys(self._sources(list(self._reads(node)))), node]
        for made in self._computed(nodes, [name], range(self._batches)):
            yield made[name]

    def arrays(self, value: ir.Value) -> Iterator[tuple[Array, float, int]]:
        """Yield what lives of a value: per batch its numbers as ``scale * (array - zero point)``.

        Floats come with scale 1 and zero point 0.
        """
        producer = value.producer()
        if g.is_op(producer, "DequantizeLinear") and producer is not None:
            integers, scale, zero = producer.inputs[0], producer.inputs[1], producer.inputs[2]
            assert integers is not None
            step, middle = _number(scale), 0 if zero is None else int(_number(zero))
            for array in self.values[integers.name or ""]:
                yield array, step, middle
            return
        for array in self.values[value.name or ""]:
            yield array, 1.0, 0

    def _repeated(self, node: ir.Node) -> bool:
        """Tell whether every piece computes the node anew instead of keeping its results."""
        if g.is_op(node, "DequantizeLinear"):
            return True
        if any(True for _ in g.subgraphs(node)) or g.is_op(node, *_RANDOM):
            return False
        return all(
            v is None
            or v.is_initializer()
            or (v.producer() in self._follows and self._fixed(v.producer()))
            for v in node.inputs
        )

    def _fixed(self, node: ir.Node | None) -> bool:
        """Tell whether a repeated node depends on constants alone."""
        return node is not None and self._follows[node] and not any(self._real([node]))

    def _real(self, nodes: Iterable[ir.Node]) -> Iterator[ir.Value]:
        """Yield the values that nodes read which are kept, through repeated nodes."""
        for node in nodes:
            yield from self._kept([v for v in node.inputs if v is not None])

    def _kept(self, values: Iterable[ir.Value]) -> Iterator[ir.Value]:
        front = list(values)
        seen: set[ir.Value] = set()
        while front:
            value = front.pop()
            if value in seen or value.is_initializer():
                continue
            seen.add(value)
            producer = value.producer()
            if producer is not None and self._follows.get(producer):
                front += [v for v in producer.inputs if v is not None]
            else:
                yield value

    def _sources(self, values: Iterable[ir.Value]) -> Iterator[ir.Node]:
        """Yield the repeated nodes behind values."""
        front = list(values)
        seen: set[ir.Node] = set()
        while front:
            producer = front.pop().producer()
            if producer is None or producer in seen or not self._follows.get(producer):
                continue
            seen.add(producer)
            yield producer
            front += [v for v in producer.inputs if v is not None]

    def _reads(self, node: ir.Node) -> list[ir.Value]:
        return [v for v in node.inputs if v is not None] + self._outer.get(node, [])

    def _last_uses(self) -> dict[ir.Value, int]:
        """Return the position of the last node that reads each kept value."""
        last: dict[ir.Value, int] = {}
        for node in self._nodes:
            if not self._follows[node]:
                for value in self._kept(self._reads(node)):
                    last[value] = self._position[node]
        for value in self._kept(self.model.graph.outputs):
            last[value] = len(self._nodes)
        return last

    def _run(self, nodes: Sequence[ir.Node], end: int) -> None:
        made = [v for node in nodes for v in node.outputs if self._last.get(v, -1) >= end]
        reads = [v for node in nodes for v in self._reads(node)]
        extra = list(dict.fromkeys(self._sources(reads)))
        if made:
            self._execute([*extra, *nodes], [v.name or "" for v in made])

    def _execute(self, nodes: Sequence[ir.Node], outputs: Sequence[str]) -> None:
        for made in self._computed(nodes, outputs, range(self._batches)):
            for name in outputs:
                self.values.append(name, made[name])

    def _computed(
        self, nodes: Sequence[ir.Node], outputs: Sequence[str], batches: Sequence[int]
    ) -> Iterator[dict[str, Array]]:
        """Run nodes on batches; yields their outputs batch by batch."""
        from converter.execution.session import Session

        nodes = sorted(nodes, key=self._position.__getitem__)
        made = {v for node in nodes for v in node.outputs}
        reads = dict.fromkeys(v for node in nodes for v in self._reads(node) if v not in made)
        inputs = [v.name or "" for v in reads if not v.is_initializer()]
        proto = self._proto(nodes, reads, inputs, outputs)
        path = self._folder / "piece.onnx"
        path.write_bytes(proto.SerializeToString())
        session = Session(
            path,
            threads=self.settings.threads,
            custom_op_library=self.settings.custom_op_library,
        )
        for i in batches:
            yield session.run({name: self.values[name][i] for name in inputs}, outputs)

    def _proto(
        self,
        nodes: Sequence[ir.Node],
        reads: Iterable[ir.Value],
        inputs: Sequence[str],
        outputs: Sequence[str],
    ) -> onnx.ModelProto:
        whole = onnx.ModelProto(ir_version=self.model.ir_version, producer_name="converter")
        for domain, version in self.model.opset_imports.items():
            whole.opset_import.add(domain=domain, version=version)
        for function in self.model.functions.values():
            whole.functions.append(ir.serde.serialize_function(function))
        graph = whole.graph
        graph.name = "piece"
        graph.node.extend(ir.serde.serialize_node(node) for node in nodes)
        for value in reads:
            if value.is_initializer():
                graph.initializer.append(_tensor(value))
        bodies = any(True for node in nodes for _ in g.subgraphs(node))
        graph.input.extend(_described(name, self.values[name], sized=not bodies) for name in inputs)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return whole


def _outer_uses(nodes: Sequence[ir.Node]) -> dict[ir.Node, list[ir.Value]]:
    """Return what the sub-graphs of nodes read of the main graph."""
    found: dict[ir.Node, list[ir.Value]] = {}
    for node in nodes:
        inner = list(_inner(node))
        if not inner:
            continue
        own = {v for graph in inner for v in graph.inputs}
        own |= {v for graph in inner for v in graph.initializers.values()}
        own |= {v for graph in inner for n in graph for v in n.outputs}
        read = [v for graph in inner for n in graph for v in n.inputs if v is not None]
        read += [v for graph in inner for v in graph.outputs]
        found[node] = list(dict.fromkeys(v for v in read if v not in own))
    return found


def _inner(node: ir.Node) -> Iterator[ir.Graph]:
    for graph in g.subgraphs(node):
        yield graph
        for each in graph:
            yield from _inner(each)


def _tensor(value: ir.Value) -> onnx.TensorProto:
    tensor = value.const_value
    assert tensor is not None
    plain = ir.Tensor(tensor.numpy(), tensor.dtype, name=value.name)
    return ir.serde.serialize_tensor(plain)


def _described(name: str, batches: Batches, *, sized: bool) -> onnx.ValueInfoProto:
    """Return type and shape of a value; sizes that differ between batches are left open.

    All are left open where a branch that is never taken may forbid them (``sized`` False).
    """
    shapes = {part.shape for part in batches.parts}
    kind = onnx.helper.np_dtype_to_tensor_dtype(batches.parts[0].dtype)
    if len({len(shape) for shape in shapes}) > 1:
        return onnx.helper.make_tensor_value_info(name, kind, None)
    sizes = [
        s.pop() if sized and len(s := set(axis)) == 1 else None
        for axis in zip(*shapes, strict=True)
    ]
    return onnx.helper.make_tensor_value_info(name, kind, sizes)


def _number(value: ir.Value | None) -> float:
    array = g.constant_array(value)
    assert array is not None
    return float(array.reshape(-1)[0])
