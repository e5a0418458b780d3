"""Proof that onnxruntime makes the same of two models: the graphs that it would run are compared.

Both models are opened at the levels basic and all, and what onnxruntime has made of each is written
to a file. Every value of these graphs gets a digest of the expression that computes it: operator,
attributes, digests of what it reads, contents of constants. Equal digests of all outputs mean that
the same operators run on the same bits, so results and run time are the same by construction.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto

from converter.errors import ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context, RunSettings

_Level = Literal["basic", True]
LEVELS: tuple[_Level, ...] = ("basic", True)
"""Levels of optimisation that a packed model is proven at; True: everything."""
_ROUNDS = 3
_FREE_INITIALIZERS = 4
"""IR version from which callers may override initializers that are listed as inputs."""
_PIECE = 1 << 20
_INNER = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
_Digest = bytes


@dataclass(frozen=True)
class Proof:
    """What the comparison of two models has shown.

    Attributes:
        equal: Both graphs are the same at all levels.
        left: Names of nodes that stay in the graph that is run, of those asked about.
        seconds: CPU time for opening the first and the second model, everything optimized.
    """

    equal: bool
    left: tuple[str, ...]
    seconds: tuple[float, float]


def prove(plain: ir.Model, packed: ir.Model, added: Sequence[str], context: Context) -> Proof:
    """Compare what onnxruntime makes of two models, in the child process.

    Args:
        plain: The model with ordinary constants.
        packed: The same with decoders.
        added: Names of nodes that should be gone when the model is open.
        context: Says how models are run.

    Raises:
        ConverterError: onnxruntime cannot open a model.
    """
    import onnxruntime  # noqa: F401 - imported here, every child has it

    from converter.execution import sandbox
    from converter.execution.runner import materialize

    settings = context.settings
    with tempfile.TemporaryDirectory(
        prefix="proof-", dir=settings.workspace, ignore_cleanup_errors=True
    ) as folder:
        paths = [materialize(model.clone(), Path(folder)) for model in (plain, packed)]
        found: dict[str, Any] = sandbox.call(
            _compare,
            paths,
            frozenset(added),
            settings=settings,
            limits=settings.limits,
            on_progress=lambda _: None,
            task="comparing the packed model with the plain one",
        )
    return Proof(found["equal"], tuple(found["left"]), tuple(found["seconds"]))


def _compare(
    paths: Sequence[Path],
    added: frozenset[str],
    *,
    settings: RunSettings,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    equal = True
    left: set[str] = set()
    for level in LEVELS:
        digests = []
        for path in paths:
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                target = Path(folder) / "optimized.onnx"
                _open(path, settings, level, target)
                graph = _Graph(target)
                digests.append(graph.digest())
                left |= added & graph.nodes
            progress(1)
        equal = equal and digests[0] == digests[1]
    seconds: list[list[float]] = [[], []]
    for _ in range(_ROUNDS):
        for times, path in zip(seconds, paths, strict=True):
            start = time.process_time()
            _open(path, settings, LEVELS[-1], None)
            times.append(time.process_time() - start)
            progress(1)
    return {"equal": equal, "left": sorted(left), "seconds": [min(t) for t in seconds]}


def _open(path: Path, settings: RunSettings, level: _Level, target: Path | None) -> None:
    from converter.execution.session import Session

    Session(
        path,
        threads=settings.threads,
        optimize=level,
        custom_op_library=settings.custom_op_library,
        optimized=target,
    )


class _Graph:
    """The graph that onnxruntime has written, and its digest.

    Attributes:
        nodes: Names of all nodes.
    """

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        self._proto = onnx.load(path, load_external_data=False)
        self._versions = {o.domain: o.version for o in self._proto.opset_import}
        self.nodes: set[str] = set()

    def digest(self) -> _Digest:
        """Return a digest of what the graph computes, names of inner values aside."""
        return self._of(self._proto.graph, {}, names=True)

    def _of(self, graph: onnx.GraphProto, outer: Mapping[str, _Digest], *, names: bool) -> _Digest:
        known = dict(outer)
        known[""] = b""
        for at, value in enumerate(graph.input):
            known[value.name] = _join(b"input", value.name.encode() if names else b"%d" % at)
        for tensor in graph.initializer:
            content = self._tensor(tensor)
            free = names and tensor.name in known and self._proto.ir_version >= _FREE_INITIALIZERS
            known[tensor.name] = _join(known[tensor.name], content) if free else content
        for sparse in graph.sparse_initializer:
            known[sparse.values.name] = self._dense(sparse)
        for node in graph.node:
            self.nodes.add(node.name)
            key = _join(
                node.domain.encode(),
                node.op_type.encode(),
                *(known.get(name, name.encode()) for name in node.input),
                *self._attributes(node, known),
            )
            known.update((o, _join(key, b"%d" % at)) for at, o in enumerate(node.output) if o)
        ends = [(v.name.encode() if names else b"") + known[v.name] for v in graph.output]
        return _join(b"graph", *ends)

    def _attributes(self, node: onnx.NodeProto, known: Mapping[str, _Digest]) -> Iterator[_Digest]:
        """Yield digests of attributes; one at its default may be written or not."""
        defaults = _defaults(node.op_type, node.domain, self._versions.get(node.domain, 1))
        for attribute in sorted(node.attribute, key=lambda a: a.name):
            if attribute.type in _INNER:
                graphs = [attribute.g] if attribute.type == _INNER[0] else attribute.graphs
                for graph in graphs:
                    yield attribute.name.encode() + self._of(graph, known, names=False)
            elif attribute.type == AttributeProto.TENSOR:
                yield attribute.name.encode() + self._tensor(attribute.t)
            else:
                copy = AttributeProto()
                copy.CopyFrom(attribute)
                copy.doc_string = ""
                text = copy.SerializeToString(deterministic=True)
                if text != defaults.get(attribute.name):
                    yield _join(text)

    def _tensor(self, tensor: TensorProto) -> _Digest:
        state = hashlib.blake2b(digest_size=16)
        state.update(repr((tensor.data_type, tuple(tensor.dims))).encode())
        if tensor.data_location == TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in tensor.external_data}
            start, length = int(where.get("offset", 0)), int(where["length"])
            self._external(where["location"], start, length, state.update)
        elif tensor.HasField("raw_data"):
            state.update(tensor.raw_data)
        elif tensor.data_type == TensorProto.STRING:
            state.update(repr(list(tensor.string_data)).encode())
        else:
            state.update(onnx.numpy_helper.to_array(tensor).tobytes())
        return state.digest()

    def _dense(self, sparse: onnx.SparseTensorProto) -> _Digest:
        """Return the digest of a tensor that the file stores sparse: onnxruntime runs it dense."""
        read = onnx.numpy_helper.to_array
        values = read(sparse.values, str(self._folder))
        at = read(sparse.indices, str(self._folder)).astype(np.int64)
        shape = tuple(sparse.dims)
        flat = at if at.ndim == 1 else np.ravel_multi_index(tuple(at.T), shape)
        dense = np.zeros(math.prod(shape), values.dtype)
        dense[flat] = values
        made = TensorProto(data_type=sparse.values.data_type, dims=shape, raw_data=dense.tobytes())
        return self._tensor(made)

    def _external(
        self, location: str, start: int, length: int, update: Callable[[bytes], None]
    ) -> None:
        with (self._folder / location).open("rb") as file:
            file.seek(start)
            while length:
                part = file.read(min(length, _PIECE))
                if not part:
                    raise ModelError("a file of weights ends too early", where=location)
                update(part)
                length -= len(part)


def _defaults(op_type: str, domain: str, version: int) -> dict[str, bytes]:
    """Return by name, as bytes, the attributes that an operator has where they are not written."""
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return {}
    found = {}
    for name, attribute in schema.attributes.items():
        value = attribute.default_value
        if value.name:
            found[name] = value.SerializeToString(deterministic=True)
    return found


def _join(*parts: bytes) -> _Digest:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()
