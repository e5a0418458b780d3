"""Opening model and data files that nobody vouches for, and the bounds on what is in them.

Every check is made on the descriptor that is read afterwards, never on a name, so a file that is
swapped between check and use gains nothing. A location inside a model is walked component by
component below the folder of the model without following links.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from converter.core.tensors import FileHandle
from converter.errors import FormatError, InvalidModelError, LimitExceededError, ModelError

_OPEN = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
_HOLE_FROM = 4 << 30
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True)
class LoadLimits:
    """Bounds on a model that is loaded; the defaults leave room for every real model we know.

    Attributes:
        file_bytes: Size of the model file. protobuf, and with it onnxruntime, ends at 2 GiB.
        skeleton_bytes: Size of the model file less the bulk data of its tensors.
        tensor_bytes: Sum of the bytes that all tensors declare.
        nodes: Nodes of all scopes.
        expanded_nodes: Nodes after every call of a model function is replaced by its body.
        functions: Model functions.
        depth: Nesting of sub-graphs.
        attribute_bytes: One string or list of an attribute.
        name_length: Bytes of one name.
        dense_bytes: A sparse tensor written out.
        rank: Dimensions of one tensor.
        ratio: What one byte of a compressed file may turn into, beyond 64 MiB of content.
    """

    file_bytes: int = (1 << 31) - 1
    skeleton_bytes: int = 1 << 30
    tensor_bytes: int = 64 << 30
    nodes: int = 2_000_000
    expanded_nodes: int = 10_000_000
    functions: int = 100_000
    depth: int = 64
    attribute_bytes: int = 1 << 30
    name_length: int = 1 << 16
    dense_bytes: int = 2 << 30
    rank: int = 64
    ratio: int = 1000


DEFAULT_LIMITS = LoadLimits()


def open_model(
    path: str | os.PathLike[str],
    limits: LoadLimits = DEFAULT_LIMITS,
    allow_links: bool = False,  # noqa: FBT001, FBT002 - part of the agreed signature
) -> FileHandle:
    """Open the model file that the user named.

    The path itself may be a symbolic link or have further hard links: the user chose it. What the
    model refers to is held to :func:`open_beside`.

    Raises:
        ModelError: There is no such file, it cannot be read, or it is no regular file.
        FormatError: The file is empty.
        LimitExceededError: The file is larger than ``limits.file_bytes``.
    """
    del allow_links  # nothing to relax: a model file may always be a link
    shown = os.fspath(path)
    with _readable("the model file", shown):
        handle = _regular(os.open(shown, _OPEN), "the model file", shown)
    handle.path = str(Path(shown).absolute())
    if handle.nbytes == 0:
        raise FormatError("the model file is empty", where=quoted(shown))
    if handle.nbytes > limits.file_bytes:
        raise LimitExceededError(
            f"the model file has {handle.nbytes} bytes",
            where=quoted(shown),
            allowed=f"at most {limits.file_bytes} bytes in one file",
            hint="save the model with external data",
        )
    return handle


def data_folders(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return the folders where external data of the model at ``path`` may lie, absolute.

    The first is the folder of the path as given; when the model file is a symbolic link, the
    folder of the real file follows.
    """
    given = Path(path).absolute()
    real = Path(os.path.realpath(given)).parent
    same = os.path.realpath(given.parent) == str(real)
    return (given.parent,) if same else (given.parent, real)


def open_beside(
    folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    location: str,
    *,
    allow_links: bool = False,
    limits: LoadLimits = DEFAULT_LIMITS,
) -> FileHandle:
    """Open the external data file that a model refers to, below the model's folder.

    Args:
        folder: Folder of the model, or several (see :func:`data_folders`) of which the first that
            has the file is taken. Links in this path itself are the user's own and are followed.
        location: As written in the model.
        allow_links: Accept a hard-linked file, and a symbolic link whose target lies below one of
            the folders or, as in the cache of the Hugging Face hub, in the store next to them.
        limits: Bounds in force.

    Raises:
        InvalidModelError: The location is not a plain relative path below the folder, or it leads
            to a link or to something that is no regular file.
        ModelError: The file is missing or cannot be read.
        LimitExceededError: The file is larger than all tensors together may be, or it is a hole.
    """
    parts = check_location(location)
    folders = [folder] if isinstance(folder, (str, os.PathLike)) else list(folder)
    roots = [Path(each).absolute() for each in folders]
    for root in roots[:-1]:
        with suppress(_MissingError):
            return _below(root, parts, location, allow_links=allow_links, limits=limits)
    try:
        return _below(roots[-1], parts, location, allow_links=allow_links, limits=limits)
    except _MissingError as error:
        raise ModelError(
            "an external data file of the model is missing",
            where=quoted(location),
            allowed=f"a file below {quoted(str(roots[0]))}",
            hint="put the data file where the model expects it",
        ) from error


class DataFiles:
    """The external data files of one model; each is opened once, however many tensors use it.

    Args:
        path: The model file.
        allow_links: See :func:`open_beside`.
        limits: Bounds in force.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        allow_links: bool = False,
        limits: LoadLimits = DEFAULT_LIMITS,
    ) -> None:
        self._folders = data_folders(path)
        self._allow_links = allow_links
        self._limits = limits
        self._open: dict[str, FileHandle] = {}

    def open(self, location: str) -> FileHandle:
        """Return the shared handle of a location; see :func:`open_beside` for the errors."""
        handle = self._open.get(location)
        if handle is None:
            handle = open_beside(
                self._folders, location, allow_links=self._allow_links, limits=self._limits
            )
            self._open[location] = handle
        return handle


def quoted(text: str, length: int = 200) -> str:
    """Return text of a file as one safe line for messages: escaped, in quotes, shortened."""
    shown = text if len(text) <= length else text[:length] + "..."
    if shown.isascii() and shown.isprintable() and "\\" not in shown:
        return f"'{shown}'"
    return "'" + shown.encode("unicode_escape", "backslashreplace").decode("ascii") + "'"


class _MissingError(Exception):
    """There is no file of this name below this folder."""


def check_location(location: str) -> list[str]:
    """Split the location of external data into names below the model's folder.

    Raises:
        InvalidModelError: It is no plain relative path.
    """
    reason = ""
    parts = [part for part in location.split("/") if part not in {"", "."}]
    if not parts:
        reason = "is empty"
    elif "\0" in location:
        reason = "holds a NUL character"
    elif location.startswith("/"):
        reason = "is absolute"
    elif "\\" in location or (len(parts[0]) > 1 and parts[0][1] == ":"):
        reason = "is written for another system (backslash or drive letter)"
    elif ".." in parts:
        reason = "leaves the folder of the model"
    elif "_ORT_MEM_ADDR_" in location:
        reason = "is a memory address"
    if reason:
        raise InvalidModelError(
            f"the location of external data {reason}",
            where=quoted(location),
            allowed="a relative path below the folder of the model",
        )
    return parts


def _below(
    root: Path, parts: Sequence[str], location: str, *, allow_links: bool, limits: LoadLimits
) -> FileHandle:
    try:
        with _readable("the external data file", location):
            descriptor = _walk(root, parts)
    except _LinkError:
        if not allow_links:
            raise _link_refused("a symbolic link", location) from None
        descriptor = _linked(root, parts, location)
    handle = _regular(descriptor, "the external data file", location)
    handle.path = str(root.joinpath(*parts))
    status = os.fstat(descriptor)
    if status.st_nlink > 1 and not allow_links:
        raise _link_refused("a file with several hard links", location)
    _check_size(status, location, limits)
    return handle


class _LinkError(Exception):
    """A component of a location is a symbolic link."""


def _walk(root: Path, parts: Sequence[str]) -> int:
    """Open a file below ``root`` component by component and follow no link."""
    current = os.open(root, _OPEN | _DIRECTORY)
    try:
        for part in parts[:-1]:
            deeper = _step(current, part, _OPEN | _DIRECTORY)
            os.close(current)
            current = deeper
        return _step(current, parts[-1], _OPEN)
    finally:
        os.close(current)


def _step(folder: int, name: str, flags: int) -> int:
    try:
        return os.open(name, flags | _NOFOLLOW, dir_fd=folder)
    except OSError as error:
        # Linux says ELOOP for a link as the last component and ENOTDIR where a folder is wanted
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            with suppress(OSError):
                if stat.S_ISLNK(os.lstat(name, dir_fd=folder).st_mode):
                    raise _LinkError from error
        raise


def _linked(root: Path, parts: Sequence[str], location: str) -> int:
    """Open through symbolic links, if the file that is really opened lies where it may."""
    with _readable("the external data file", location):
        descriptor = os.open(root.joinpath(*parts), _OPEN)
    real = Path(os.path.realpath(root.joinpath(*parts)))
    status, named = os.fstat(descriptor), real.stat()
    same = (status.st_dev, status.st_ino) == (named.st_dev, named.st_ino)
    real_root = Path(os.path.realpath(root))
    if same and any(real.is_relative_to(allowed) for allowed in _stores(real_root)):
        return descriptor
    os.close(descriptor)
    raise _link_refused("a symbolic link that leaves the folder of the model", location)


def _stores(folder: Path) -> Iterator[Path]:
    """Yield where the target of a link may lie: below the folder, or in the hub's blob store."""
    yield folder
    for parent in folder.parents:
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            yield parent.parent / "blobs"


def _regular(descriptor: int, what: str, shown: str) -> FileHandle:
    """Take over a descriptor if it is a regular file, else close it and refuse."""
    handle = FileHandle(descriptor, shown)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no regular file")
        raise InvalidModelError(f"{what} is {kind}", where=quoted(shown), allowed="a regular file")
    return handle


@contextmanager
def _readable(what: str, shown: str) -> Iterator[None]:
    """Turn the errors of opening a file into ours."""
    try:
        yield
    except FileNotFoundError as error:
        if what == "the external data file":
            raise _MissingError from error
        raise ModelError(f"{what} does not exist", where=quoted(shown)) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"{what} cannot be opened: {reason}", where=quoted(shown)) from error


def _link_refused(what: str, location: str) -> InvalidModelError:
    return InvalidModelError(
        f"external data is {what}",
        where=quoted(location),
        allowed="regular files below the folder of the model",
        hint="use --allow-links (allow_links=True) if you trust the folder, or copy the file",
    )


def _check_size(status: os.stat_result, location: str, limits: LoadLimits) -> None:
    if status.st_size > limits.tensor_bytes:
        raise LimitExceededError(
            f"an external data file has {status.st_size} bytes",
            where=quoted(location),
            allowed=f"at most {limits.tensor_bytes} bytes",
        )
    stored = getattr(status, "st_blocks", status.st_size) * 512
    if status.st_size >= _HOLE_FROM and stored < status.st_size // 64:
        raise LimitExceededError(
            f"an external data file claims {status.st_size} bytes but stores only {stored}",
            where=quoted(location),
            allowed="a file whose bytes are really there",
        )
