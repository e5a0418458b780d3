"""Makes a failing model small: drops outputs, unused nodes, and what comes before the defect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from torture.judge import run_file

Feeds = list[dict[str, Any]]
Fails = Callable[[onnx.ModelProto, Feeds], bool]


def minimize(proto: onnx.ModelProto, feeds: Feeds, fails: Fails, folder: Path) -> tuple[Any, Feeds]:
    """Return a smaller model that still fails, and its feeds; ``folder`` is for scratch files."""
    proto, feeds = _shrink_outputs(proto, feeds, fails)
    for feed in feeds:
        if len(feeds) > 1 and fails(proto, [feed]):
            feeds = [feed]
            break
    progress = True
    while progress:
        progress = False
        for smaller, fewer in _cuts(proto, feeds, folder):
            if fails(smaller, fewer):
                proto, feeds, progress = smaller, fewer, True
                break
    return proto, feeds


def _shrink_outputs(proto: onnx.ModelProto, feeds: Feeds, fails: Fails) -> tuple[Any, Feeds]:
    for index in range(len(proto.graph.output)):
        copy = _copy(proto)
        keep = copy.graph.output[index]
        del copy.graph.output[:]
        copy.graph.output.append(keep)
        _drop_unused(copy)
        if fails(copy, feeds):
            return copy, feeds
    return proto, feeds


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def _names_read(node: onnx.NodeProto) -> set[str]:
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            names.update(o.name for o in attribute.g.output)
            names = names.union(*(_names_read(inner) for inner in attribute.g.node))
    return names


def _drop_unused(proto: onnx.ModelProto) -> None:
    used = {o.name for o in proto.graph.output}
    kept = []
    for node in reversed(proto.graph.node):
        if used.intersection(node.output):
            used |= _names_read(node)
            kept.append(node)
    nodes = [_message(node) for node in reversed(kept)]
    initializers = [i for i in proto.graph.initializer if i.name in used]
    inputs = [i for i in proto.graph.input if i.name in used]
    for field, values in (("node", nodes), ("initializer", initializers), ("input", inputs)):
        target = getattr(proto.graph, field)
        copies = [_message(value) for value in values]
        del target[:]
        target.extend(copies)
    del proto.graph.value_info[:]


def _message(value: Any) -> Any:
    copy = type(value)()
    copy.CopyFrom(value)
    return copy


def _cuts(proto: onnx.ModelProto, feeds: Feeds, folder: Path) -> Iterator[tuple[Any, Feeds]]:
    """Turn the outputs of one node after the other into inputs with their computed values."""
    outputs = {o.name for o in proto.graph.output}
    for place in range(len(proto.graph.node) - 1, -1, -1):
        node = proto.graph.node[place]
        if node.op_type == "Constant" or outputs.intersection(node.output):
            continue
        values = [name for name in node.output if name]
        arrays = _computed(proto, feeds, values, folder)
        if arrays is None:
            continue
        copy = _copy(proto)
        del copy.graph.node[place]
        for name in values:
            copy.graph.input.append(_port(name, [feed[name] for feed in arrays]))
        _drop_unused(copy)
        names = {i.name for i in copy.graph.input}
        joined = [{**feed, **more} for feed, more in zip(feeds, arrays, strict=True)]
        yield copy, [{n: v for n, v in feed.items() if n in names} for feed in joined]


def _port(name: str, arrays: list[np.ndarray]) -> onnx.ValueInfoProto:
    shapes = [array.shape for array in arrays]
    dims: list[Any] = [
        sizes[0] if len(set(sizes)) == 1 else f"{name}_{axis}"
        for axis, sizes in enumerate(zip(*shapes, strict=True))
    ]
    kind = helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
    return helper.make_tensor_value_info(name, kind, dims)


def _computed(
    proto: onnx.ModelProto, feeds: Feeds, names: list[str], folder: Path
) -> list[dict[str, Any]] | None:
    copy = _copy(proto)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    path = folder / "values.onnx"
    path.write_bytes(copy.SerializeToString())
    try:
        results = run_file(path, feeds)
    except Exception:  # noqa: BLE001 - then this cut cannot be tried
        return None
    found = [r for r in results if isinstance(r, list)]
    if len(found) != len(feeds):
        return None
    if not all(isinstance(value, np.ndarray) for row in found for value in row):
        return None
    if len({tuple(value.ndim for value in row) for row in found}) > 1:
        return None
    return [dict(zip(names, row, strict=True)) for row in found]
