"""Writing ONNX models: streamed, atomic, with the tensors in the file or beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from google.protobuf.message import EncodeError

from converter.errors import InvalidModelError, UsageError
from converter.io import compressed, export_data, meta, safetensors, strip, text, wire
from converter.io.atomic import check_target, shown, temporary_file
from converter.io.export_data import DataFile
from converter.io.layout import Layout
from converter.io.publish import (
    Ready,
    abandoned_data,
    data_stem,
    own_data,
    published,
    remove_unused,
)
from converter.io.skeleton import Placed, Skeleton, make_skeleton
from converter.io.sparsify import sparsified

if TYPE_CHECKING:
    import onnx_ir as ir

MAX_FILE_BYTES = (1 << 31) - 1
"""protobuf's limit for one message, and so for a model in one file."""

AUTO_BYTES = 1_900_000_000
"""Above this, "auto" puts the tensors beside the model."""

STRIPPED = (
    "the file was stripped of its weights, metadata and documentation: it shows the graph and "
    "computes nothing of use; nothing was verified after stripping"
)
_NO_DIGEST = "0" * 16
_ARRANGEMENTS = (
    (export_data.PAGE, wire.INLINE_BYTES),
    (64, wire.INLINE_BYTES),
    (1, wire.INLINE_BYTES),
    (1, 8 << 10),
    (1, 64 << 10),
    (1, 512 << 10),
)
"""Alignment of tensors beside the model, and the size up to which they stay in it, by size."""


@dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        path: The model file.
        data_paths: External data files beside it.
        nbytes: Size of all of them together.
        notes: What the reader of a report must know about them.
    """

    path: Path
    data_paths: tuple[Path, ...]
    nbytes: int
    notes: tuple[str, ...] = ()


def check_output(
    path: Path, *, source: Path | None = None, in_place: bool = False, data: Sequence[Path] = ()
) -> None:
    """Check an output path before any work is done.

    Args:
        path: Where a model is to be written.
        source: The model file that is converted.
        in_place: The output may replace the source.
        data: External data files of the source; they are never the output.

    Raises:
        UsageError: Nothing can be written there, or it would overwrite the input.
    """
    check_target(path)
    if not in_place and source is not None and _same_file(path, source):
        raise UsageError(
            "the output is the input",
            where=shown(path),
            hint="choose another name, or use --in-place (in_place=True)",
        )
    for file in data:
        if _same_file(path, file):
            raise UsageError(
                "the output would replace the external data of the input",
                where=shown(path),
                hint="choose another name",
            )


def check_model_output(
    model: ir.Model, path: Path, *, source: Path | None = None, in_place: bool = False
) -> Path | None:
    """Check an output path against the files that a model was loaded from; returns its file."""
    noted = model.meta.get(meta.PATH)
    source = source or (Path(noted) if noted else None)
    check_output(path, source=source, in_place=in_place, data=_data_files(model))
    return source


def _data_files(model: ir.Model) -> list[Path]:
    return [Path(name) for name in model.graph.meta.get(meta.DATA_FILES) or ()]


def save_onnx(
    model: ir.Model,
    path: Path,
    *,
    layout: Layout = Layout(),  # noqa: B008 - frozen
    source: Path | None = None,
    in_place: bool = False,
) -> Saved:
    """Write a model; what was at ``path`` stays whole until the new file is complete.

    Args:
        model: The model; it is not changed.
        path: Output file; its suffix chooses the form.
        layout: Files, container, with or without weights.
        source: File that the model came from; default: what loading noted.
        in_place: ``path`` may be that file.

    Raises:
        UsageError: The path cannot be written, is the input, or the model does not fit the form.
        InvalidModelError: The model cannot be expressed as ONNX.
        WriteError: The disk is full or fails; nothing is left behind.
    """
    path = path.absolute()
    source = check_model_output(model, path, source=source, in_place=in_place)
    form = text.form_of(path)
    if compressed.is_wanted(path):
        compressed.check_name(path)
        layout.check_single("a compressed file")
        layout = replace(layout, external_data="no")
    if form is not None:
        layout.check_single(f"a {path.suffix} file")
    told: tuple[str, ...] = ()
    if layout.sparse_initializers:
        model, told = sparsified(model)
    skeleton = make_skeleton(model)
    stripped = layout.strip_weights or strip.KEY in model.metadata_props
    if stripped:
        skeleton = _stripped(skeleton)
    if form is not None:
        saved = _save_text(skeleton, path, form, stripped=stripped)
    else:
        saved = _save_onnx(model, skeleton, path, layout, source)
    return replace(saved, notes=(*saved.notes, *told, *((STRIPPED,) if stripped else ())))


def _stripped(skeleton: Skeleton) -> Skeleton:
    strip.strip(skeleton.proto)
    return Skeleton(skeleton.proto, [], skeleton.token)


def _save_onnx(
    model: ir.Model, skeleton: Skeleton, path: Path, layout: Layout, source: Path | None
) -> Saved:
    if layout.weights_format == "safetensors":
        skeleton = safetensors.place_small(skeleton)
    data = _data_files(model)
    inside, beside = _distribute(skeleton, layout, had_data=bool(data))
    files: list[DataFile] = []
    if beside:
        bound = _bytes_of([source, *data]) if source is not None and data else None
        inside, beside, files = _arrange(skeleton, (inside, beside), path, layout, bound)
    return _save_binary(skeleton, path, inside, (beside, files, layout))


def _bytes_of(files: Sequence[Path]) -> int | None:
    try:
        return sum(file.stat().st_size for file in files)
    except OSError:
        return None


def _distribute(
    skeleton: Skeleton, layout: Layout, *, had_data: bool
) -> tuple[list[Placed], list[Placed]]:
    """Divide the tensors into those in the model file and those beside it.

    Attributes stay in the model file, because runtimes read external data of initializers only.
    """
    base = skeleton.proto.ByteSize()
    total = base + sum(placed.tensor.nbytes + 16 for placed in skeleton.placed)
    external = layout.beside or (
        layout.external_data == "auto" and (had_data or total > AUTO_BYTES)
    )
    inside = [placed for placed in skeleton.placed if placed.attribute or not external]
    beside = [placed for placed in skeleton.placed if not placed.attribute and external]
    size = base + sum(placed.tensor.nbytes + 16 for placed in inside)
    if size > MAX_FILE_BYTES:
        raise UsageError(
            f"the model needs {size} bytes in one file",
            allowed=f"at most {MAX_FILE_BYTES} bytes in one file",
            hint="use --external-data auto or yes" if not external else "",
        )
    return inside, beside


def _arrange(
    skeleton: Skeleton,
    split: tuple[list[Placed], list[Placed]],
    path: Path,
    layout: Layout,
    bound: int | None,
) -> tuple[list[Placed], list[Placed], list[DataFile]]:
    """Place the tensors beside the model so that nothing grows: the first way that fits is taken.

    A source may have packed its tensors without gaps, and have a shorter name than the target.
    """
    usual = (*split, export_data.plan(split[1], layout))
    if bound is None or layout.weights_format != "raw":
        return usual
    for alignment, inline in _ARRANGEMENTS:
        small = [one for one in split[1] if one.tensor.nbytes <= inline]
        inside = [*split[0], *small]
        beside = [one for one in split[1] if one.tensor.nbytes > inline]
        files = export_data.plan(beside, layout, alignment)
        names = export_data.names_of(data_stem(path), _NO_DIGEST, len(files), layout.weights_format)
        with export_data.referred(beside, files, names):
            size = sum(len(piece) for piece in _pieces(skeleton, inside))
        if size + sum(file.nbytes for file in files) <= bound:
            return inside, beside, files
    return usual


def _save_text(skeleton: Skeleton, path: Path, form: str, *, stripped: bool) -> Saved:
    size = sum(placed.tensor.nbytes for placed in skeleton.placed)
    if size > text.MAX_BYTES[form]:
        raise UsageError(
            "the model is too large for a text form",
            where=shown(path),
            allowed=f"at most {text.MAX_BYTES[form]} bytes of weights",
            hint="write a .onnx file, or leave the weights out with --strip-weights",
        )
    for placed in skeleton.placed:
        placed.proto.ClearField("external_data")
        placed.proto.ClearField("data_location")
        placed.proto.raw_data = placed.tensor.tobytes()
    rendered, notes = text.render(skeleton.proto, form, stripped=stripped)
    content = rendered.encode()
    old = own_data(path)
    with temporary_file(path) as temporary:
        temporary.file.write(content)
        temporary.publish(path)
    remove_unused(old, path)
    return Saved(path, (), len(content), notes)


def _save_binary(
    skeleton: Skeleton,
    path: Path,
    inside: list[Placed],
    outside: tuple[list[Placed], list[DataFile], Layout],
) -> Saved:
    """Write the data files under temporary names, then the model, then give all their names."""
    old = own_data(path)
    beside, files, layout = outside
    with ExitStack() as stack:
        ready = list(_write_data(stack, path, files, layout))
        export_data.refer(beside, files, [one.path.name for one in ready])
        file = stack.enter_context(temporary_file(path))
        nbytes = _write_model(file.file, skeleton, inside, squeeze=compressed.is_wanted(path))
        file.finish()
        stack.enter_context(published(ready))
        file.publish(path)
    if compressed.is_wanted(path):
        content, nbytes = nbytes, path.stat().st_size
        return Saved(path, (), nbytes, (compressed.note(nbytes, content),))
    used = tuple(one.path for one in ready)
    left = {*old, *abandoned_data(path.parent)}
    remove_unused(sorted(name for name in left if path.parent / name not in used), path)
    return Saved(path, used, nbytes + sum(one.nbytes for one in files))


def _write_data(
    stack: ExitStack, path: Path, files: Sequence[DataFile], layout: Layout
) -> Iterator[Ready]:
    """Write each data file under a temporary name; their names follow from all digests."""
    written = []
    for content in files:
        temporary = stack.enter_context(temporary_file(path))
        digest = export_data.write_file(temporary.file, content)
        temporary.finish()
        written.append((temporary, digest))
    if not written:
        return
    whole = export_data.digest_of([digest for _, digest in written])
    names = export_data.names_of(data_stem(path), whole, len(files), layout.weights_format)
    for name, (temporary, digest) in zip(names, written, strict=True):
        yield Ready(temporary, path.parent / name, digest)


def _write_model(file: BinaryIO, skeleton: Skeleton, inside: list[Placed], *, squeeze: bool) -> int:
    """Stream the model with the tensors of ``inside`` in it; returns its size."""
    tensors = {placed.proto.external_data[0].value: placed.tensor for placed in inside}
    pieces = _pieces(skeleton, inside)
    total = sum(len(piece) for piece in pieces)
    with compressed.compressing(file, total) if squeeze else nullcontext(file) as target:
        for piece in pieces:
            if isinstance(piece, wire.Hole):
                export_data.write_tensor(target, tensors[piece.location])
            else:
                target.write(piece)
    return total


def _pieces(skeleton: Skeleton, inside: list[Placed]) -> list[bytes | wire.Hole]:
    """Return the model file in pieces, with holes for the tensors of ``inside``."""
    sizes = {placed.proto.external_data[0].value: placed.tensor.nbytes for placed in inside}
    try:
        serialized = skeleton.proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise InvalidModelError(f"the model cannot be serialized: {error}") from error
    return wire.splice(serialized, skeleton.token, sizes)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one.absolute() == other.absolute()
