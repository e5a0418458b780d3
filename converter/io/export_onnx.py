"""Writing ONNX models: streamed, atomic, with the tensors in the file or beside it."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from google.protobuf.message import EncodeError

from converter.core.tensors import FileTensor, MappedTensor, chunks, little_endian
from converter.errors import ConverterError, InvalidModelError, UsageError
from converter.io import meta, text, wire
from converter.io.atomic import Temporary, check_target, shown, temporary_file
from converter.io.limits import LoadLimits, open_model
from converter.io.skeleton import Placed, Skeleton, make_skeleton, set_external

if TYPE_CHECKING:
    import onnx_ir as ir

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = (1 << 31) - 1
"""protobuf's limit for one message, and so for a model in one file."""

AUTO_BYTES = 1_900_000_000
"""Above this, "auto" puts the tensors beside the model."""

_PAGE = 4096
_SMALL_ALIGNMENT = 64
_MAX_SIBLINGS = 200
_CHUNK = 4 << 20
_STEM_BYTES = 200
_SPECIAL = re.compile(r"[\x00-\x1f\x7f\\:\ud800-\udfff]")
_WORDS = ("auto", "yes", "no")


@dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        path: The model file.
        data_paths: External data files beside it.
        nbytes: Size of all of them together.
    """

    path: Path
    data_paths: tuple[Path, ...]
    nbytes: int


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


def save_onnx(
    model: ir.Model,
    path: Path,
    *,
    external_data: str = "auto",
    source: Path | None = None,
    in_place: bool = False,
) -> Saved:
    """Write a model; what was at ``path`` stays whole until the new file is complete.

    Args:
        model: The model; it is not changed.
        path: Output file; its suffix chooses the form.
        external_data: ``"no"``: one file; ``"yes"``: tensors above 1 KiB beside it; ``"auto"``: one
            file unless it would pass 1.9 GB or the input had external data.
        source: File that the model came from; default: what loading noted.
        in_place: ``path`` may be that file.

    Raises:
        UsageError: The path cannot be written, is the input, or the model does not fit the form.
        InvalidModelError: The model cannot be expressed as ONNX.
        WriteError: The disk is full or fails; nothing is left behind.
    """
    if external_data not in _WORDS:
        raise UsageError(
            f"external_data is {external_data!r}", allowed=", ".join(repr(w) for w in _WORDS)
        )
    path = path.absolute()
    noted = model.meta.get(meta.PATH)
    source = source or (Path(noted) if noted else None)
    data = [Path(name) for name in model.graph.meta.get(meta.DATA_FILES) or ()]
    check_output(path, source=source, in_place=in_place, data=data)
    skeleton = make_skeleton(model)
    form = text.form_of(path)
    if form is not None:
        return _save_text(skeleton, path, form)
    inside, beside = _distribute(skeleton, external_data, had_data=bool(data))
    return _save_binary(skeleton, path, inside, beside)


def _distribute(
    skeleton: Skeleton, external_data: str, *, had_data: bool
) -> tuple[list[Placed], list[Placed]]:
    """Divide the tensors into those in the model file and those beside it.

    Attributes stay in the model file, because runtimes read external data of initializers only.
    """
    base = skeleton.proto.ByteSize()
    total = base + sum(placed.tensor.nbytes + 16 for placed in skeleton.placed)
    external = external_data == "yes" or (
        external_data == "auto" and (had_data or total > AUTO_BYTES)
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


def _save_text(skeleton: Skeleton, path: Path, form: str) -> Saved:
    size = sum(placed.tensor.nbytes for placed in skeleton.placed)
    if size > text.MAX_BYTES[form]:
        raise UsageError(
            "the model is too large for a text form", where=shown(path), hint="write a .onnx file"
        )
    for placed in skeleton.placed:
        placed.proto.ClearField("external_data")
        placed.proto.ClearField("data_location")
        placed.proto.raw_data = placed.tensor.tobytes()
    content = text.render(skeleton.proto, form).encode()
    with temporary_file(path) as temporary:
        temporary.file.write(content)
        temporary.publish(path)
    return Saved(path, (), len(content))


def _save_binary(
    skeleton: Skeleton, path: Path, inside: list[Placed], beside: list[Placed]
) -> Saved:
    old = _own_data(path)
    with ExitStack() as stack:
        data_path, data_bytes = None, 0
        if beside:
            data = stack.enter_context(temporary_file(path))
            digest, data_bytes = _write_data(data.file, beside)
            data_path = path.parent / f"{_data_stem(path)}-{digest[:16]}.data"
            for placed in beside:
                entry = placed.proto.external_data[0]
                entry.value = data_path.name
            data.finish()
        file = stack.enter_context(temporary_file(path))
        nbytes = _write_model(file.file, skeleton, inside)
        file.finish()
        if beside and data_path is not None:
            stack.enter_context(_published(data, data_path, digest))
        file.publish(path)
    used = () if data_path is None else (data_path,)
    _remove_unused([name for name in old if path.parent / name not in used], path)
    return Saved(path, used, nbytes + data_bytes)


def _write_model(file: BinaryIO, skeleton: Skeleton, inside: list[Placed]) -> int:
    """Stream the model with the tensors of ``inside`` in it; returns its size."""
    tensors = {placed.proto.external_data[0].value: placed.tensor for placed in inside}
    sizes = {location: tensor.nbytes for location, tensor in tensors.items()}
    try:
        serialized = skeleton.proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise InvalidModelError(f"the model cannot be serialized: {error}") from error
    total = 0
    for piece in wire.splice(serialized, skeleton.token, sizes):
        if isinstance(piece, wire.Hole):
            _write_tensor(file, tensors[piece.location])
            total += piece.nbytes
        else:
            file.write(piece)
            total += len(piece)
    return total


def _write_data(file: BinaryIO, beside: list[Placed]) -> tuple[str, int]:
    """Write tensors one after the other, each shared one once; returns digest and size."""
    hashing = _Hashing(file)
    offsets: dict[int, int] = {}
    for placed in beside:
        tensor = placed.tensor
        if id(tensor) not in offsets:
            alignment = _PAGE if tensor.nbytes >= _PAGE else _SMALL_ALIGNMENT
            hashing.write(bytes(-hashing.nbytes % alignment))
            offsets[id(tensor)] = hashing.nbytes
            _write_tensor(hashing, tensor)
        set_external(placed.proto, "", offsets[id(tensor)], tensor.nbytes)
    return hashing.digest.hexdigest(), hashing.nbytes


class _Hashing:
    """Passes bytes on to a file and hashes them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.nbytes = 0

    def write(self, content: bytes) -> None:
        self._file.write(content)
        self.digest.update(content)
        self.nbytes += len(content)


class _Counting:
    """Passes bytes on to a file and counts them."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.nbytes = 0

    def write(self, content: bytes) -> None:
        self._file.write(content)
        self.nbytes += len(content)


def _write_tensor(file: Any, tensor: ir.TensorProtocol) -> None:
    """Write exactly the bytes that the tensor claims, a chunk at a time where that is possible."""
    counting = _Counting(file)
    if isinstance(tensor, FileTensor | MappedTensor):
        tensor.tofile(counting)
    elif tensor.dtype.bitwidth >= 8 and tensor.nbytes > _CHUNK:
        for _, chunk in chunks(tensor):
            counting.write(little_endian(chunk))
    else:
        counting.write(tensor.tobytes())
    if counting.nbytes != tensor.nbytes:
        raise InvalidModelError(
            f"a tensor gave {counting.nbytes} bytes where its type and shape need {tensor.nbytes}",
            where=f"tensor {tensor.name!r}",
        )


@contextmanager
def _published(data: Temporary, path: Path, digest: str) -> Iterator[None]:
    """Give the data file its name; take it back if the model file cannot follow.

    A file of that name with that content is left as it is: it may belong to the input.
    """
    check_target(path)
    if _digest(path) == digest:
        yield
        return
    existed = path.exists()
    data.publish(path)
    try:
        yield
    except BaseException:
        if not existed:
            with suppress(OSError):
                path.unlink()
        raise


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one.absolute() == other.absolute()


def _data_stem(path: Path) -> str:
    """Return the model's name in a form that every reader accepts as the start of a location."""
    plain = _SPECIAL.sub("_", path.stem)
    return plain.encode()[:_STEM_BYTES].decode(errors="ignore")


def _own_data(path: Path) -> list[str]:
    """Return the data files that earlier writes gave the model at ``path``, by our naming."""
    pattern = re.compile(re.escape(_data_stem(path)) + r"-[0-9a-f]{16}\.data")
    return [name for name in _locations(path) or () if pattern.fullmatch(name)]


def _locations(path: Path) -> set[str] | None:
    """Return the external data locations of a model file, or None if it cannot be read."""
    if not path.exists():
        return set()
    try:
        skeleton = wire.scan(open_model(path, LoadLimits())).skeleton
    except (ConverterError, OSError):
        return None
    return {m.decode("utf-8", "replace") for m in _LOCATION.findall(skeleton)}


_LOCATION = re.compile(rb"[^\x00-\x1f/\\]{1,200}?-[0-9a-f]{16}\.data")


def _remove_unused(names: list[str], path: Path) -> None:
    """Remove data files of the replaced model that no model in the folder refers to."""
    if not names:
        return
    with suppress(OSError), os.scandir(path.parent) as entries:
        others = [e for e in entries if e.name not in names and e.is_file()]
        models = [e for e in others if not e.name.endswith((".data", ".npz", ".onnxpress-tmp"))]
        if len(models) > _MAX_SIBLINGS:
            return
        for name in names:
            if not any(_mentions(Path(entry.path), name) for entry in models):
                logger.info("removing %s, which the replaced model used", name)
                (path.parent / name).unlink(missing_ok=True)


def _mentions(path: Path, name: str) -> bool:
    """Tell whether a file holds the name, or may hold it."""
    wanted = name.encode()
    try:
        return wanted in wire.scan(open_model(path, LoadLimits())).skeleton
    except ConverterError:
        return path.suffix == ".onnx" or path.stat().st_size > _CHUNK or wanted in path.read_bytes()
