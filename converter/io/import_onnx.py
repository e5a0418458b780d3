"""Loading ONNX models: weights stay in their files, nothing is dropped, nothing is trusted."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from onnx_ir import serde

from converter.core.graph import graphs, subgraphs
from converter.core.tensors import FileHandle
from converter.errors import FormatError, InvalidModelError, ModelError
from converter.io import compressed, meta, sniff, text, wire
from converter.io.adapt import Adapter
from converter.io.bulk import Bulk
from converter.io.legacy import hide_defaults
from converter.io.limits import DataFiles, LoadLimits, open_model, quoted
from converter.io.skeleton import root_cause, to_skeleton
from converter.io.validate import validate

logger = logging.getLogger(__name__)


def load_onnx(
    path: Path,
    *,
    limits: LoadLimits = LoadLimits(),  # noqa: B008 - frozen
    allow_links: bool = False,
) -> ir.Model:
    """Load a model in the binary form or, by suffix or content, in a text form.

    Large tensors stay in the file and are read when they are used. ``model.meta`` holds the
    absolute path (:data:`converter.io.meta.PATH`) and notes about what had to be changed
    (:data:`converter.io.meta.NOTES`).

    Raises:
        ModelError: The file is missing, is no ONNX model, is broken or exceeds the limits.
    """
    path = path.absolute()
    handle, told = _open(path, limits, allow_links=allow_links)
    try:
        proto, places = _parse(handle, path, limits)
    except OSError as error:
        raise ModelError(
            f"the model file cannot be read: {error.strerror or error}", where=quoted(str(path))
        ) from error
    if not proto.HasField("graph"):
        raise FormatError(
            "the file holds no ONNX graph, perhaps a model of another framework",
            where=quoted(str(path)),
            hint="export the model to ONNX first",
        )
    validate(proto, limits)
    bulk = Bulk(handle, places, DataFiles(path, allow_links=allow_links, limits=limits), limits)
    adapter = Adapter(bulk)
    adapter.notes += told
    with _no_collection():
        adapter.prepare(proto)
        model = _to_ir(proto, path)
        adapter.settle(model)
        hide_defaults(model)
    if _sort(model):
        adapter.notes.append("nodes were not in topological order and were sorted")
        validate(to_skeleton(model)[0], limits)  # sorted, more types are known to it
    model.meta[meta.PATH] = str(path)
    model.meta[meta.NOTES] = adapter.notes
    if told:
        model.meta[meta.CONTENT] = handle.nbytes
    model.graph.meta[meta.DATA_FILES] = tuple(bulk.files)
    for note in adapter.notes:
        logger.info("%s: %s", path, note)
    return model


def _open(
    path: Path, limits: LoadLimits, *, allow_links: bool
) -> tuple[FileHandle, tuple[str, ...]]:
    """Open a model file; of a compressed one its content, with a note."""
    handle = open_model(path, limits, allow_links)
    if not compressed.is_compressed(handle.read(0, min(handle.nbytes, 4))):
        return handle, ()
    content = compressed.decompress(handle, str(path), limits)
    if not content.nbytes:
        raise FormatError("the compressed file holds nothing", where=quoted(str(path)))
    return content, (f"read from {handle.nbytes} compressed bytes; the model has {content.nbytes}",)


def _parse(
    handle: FileHandle, path: Path, limits: LoadLimits
) -> tuple[onnx.ModelProto, dict[str, wire.Place]]:
    """Read the file into a proto; large tensors of the binary form stay where they are."""
    shown = str(path)
    head = handle.read(0, min(handle.nbytes, sniff.HEAD_BYTES))
    sniff.refuse_known(head, shown)
    form = text.form_in(compressed.bare(path), head)
    if form is not None:
        size = min(handle.nbytes, text.MAX_BYTES[form] + 1)
        return text.parse(handle.read(0, size), form, shown), {}
    scan = wire.scan(handle, max_bytes=limits.skeleton_bytes)
    try:
        proto = onnx.ModelProto.FromString(scan.skeleton)
        _strict_model().FromString(scan.skeleton)
    except DecodeError as error:
        raise FormatError(
            "the file is damaged or not an ONNX model",
            where=quoted(shown),
            hint="download or export the model again",
        ) from error
    return proto, scan.places


@cache
def _strict_model() -> Any:
    """Return a twin of ``ModelProto`` that refuses text which is not UTF-8.

    ONNX uses the second version of protobuf's language, whose classes hand such names out as bytes;
    the third checks them while parsing, at no cost worth measuring.
    """
    file = descriptor_pb2.FileDescriptorProto()
    onnx.ModelProto.DESCRIPTOR.file.CopyToProto(file)
    file.name, file.syntax = "converter/strict_onnx.proto", "proto3"
    package, file.package = f".{file.package}.", "converter.strict"
    messages = list(file.message_type)
    for message in messages:
        messages.extend(message.nested_type)
        message.ClearField("extension_range")
        for field in message.field:
            field.ClearField("default_value")
            if field.type_name:
                field.type_name = field.type_name.replace(package, f".{file.package}.", 1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("converter.strict.ModelProto")
    )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from looking for cycles while a million objects are made that all stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _to_ir(proto: onnx.ModelProto, path: Path) -> ir.Model:
    try:
        return ir.from_proto(proto)
    except (serde.SerdeError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise InvalidModelError(
            f"the model cannot be represented: {root_cause(error)}", where=quoted(str(path))
        ) from error


def _sort(model: ir.Model) -> bool:
    """Sort the graphs whose nodes come before what they use; returns whether there were any."""
    unsorted = [graph for graph in graphs(model) if not _is_sorted(graph)]
    for graph in unsorted:
        try:
            graph.sort()
        except ValueError as error:
            raise InvalidModelError(
                "the graph has a cycle", where=quoted(graph.name or "")
            ) from error
    return bool(unsorted)


def _is_sorted(graph: ir.Graph) -> bool:
    """Tell whether every node comes after those that make its inputs, captured ones included."""
    seen: set[ir.Node] = set()
    for node in graph:
        nested = [node]
        for user in nested:
            for value in user.inputs:
                producer = None if value is None else value.producer()
                if producer is not None and producer.graph is graph and producer not in seen:
                    return False
            nested.extend(inner for body in subgraphs(user) for inner in body)
        seen.add(node)
    return True
