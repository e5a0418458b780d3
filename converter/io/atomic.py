"""Replacing a file as a whole or not at all.

The new content goes to a temporary file in the same folder, is flushed to the disk, and takes the
place of the old file by one rename. Whatever happens in between, the old file stays as it was, and
the temporary one is removed, at the latest by the next write into that folder when the process was
killed.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import socket
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from converter.errors import UsageError, WriteError

logger = logging.getLogger(__name__)

_TEMPORARY = re.compile(
    r"\.(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8}(?P<suffix>\.onnxpress-(?:tmp|log))"
)
CONTENT = ".onnxpress-tmp"
"""Suffix of a file that is being written."""

JOURNAL = ".onnxpress-log"
"""Suffix of a file that says what is about to be published."""

_STALE_SECONDS = 24 * 3600
_USAGE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}
_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_target(path: Path) -> None:
    """Check that a file can be written or replaced at a path, before any work is done.

    Raises:
        UsageError: The folder is missing, is none or is not writable, or there is something at the
            path that is no regular file; a symbolic link is never written through.
    """
    folder = path.absolute().parent
    if not folder.exists():
        raise UsageError(
            "the output folder does not exist", where=shown(folder), hint="create it first"
        )
    if not folder.is_dir():
        raise UsageError("the output folder is not a folder", where=shown(folder))
    if path.name in {"", ".", ".."} or "\0" in path.name:
        raise UsageError("the output path names no file", where=shown(path))
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except OSError as error:
        raise _usage(path, error) from error
    for test, what in _KINDS:
        if test(mode):
            raise UsageError(
                f"the output path is {what}", where=shown(path), allowed="a new or a regular file"
            )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError("the output folder is not writable", where=shown(folder))


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing that takes the place of ``path`` when the block ends well.

    The mode of a replaced file is kept; a new file gets the default one.

    Raises:
        UsageError: See :func:`check_target`.
        WriteError: The disk is full or fails; nothing is left behind and an old file is untouched.
    """
    with temporary_file(path) as temporary:
        yield temporary.file
        temporary.publish(path)


class Temporary:
    """A file being written that has no name of its own yet.

    Attributes:
        file: Open for writing and reading.
        path: Where it lies now.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file = file
        self.path = path
        self._finished = False

    def finish(self) -> None:
        """Flush everything to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self._finished = True

    def publish(self, path: Path) -> None:
        """Rename it to ``path`` and make that durable."""
        if not self._finished:
            self.finish()
        with suppress(FileNotFoundError):
            os.fchmod(self.file.fileno(), stat.S_IMODE(path.lstat().st_mode))
        self.path.replace(path)
        _sync_folder(path.parent)


@contextmanager
def temporary_file(path: Path, suffix: str = CONTENT) -> Iterator[Temporary]:
    """Open a temporary file beside ``path``; it is removed at the end unless it was published.

    Raises:
        UsageError: See :func:`check_target`.
        WriteError: The disk is full or fails.
    """
    path = path.absolute()
    check_target(path)
    remove_stale(path.parent)
    name = f".{_host()}-{os.getpid()}-{secrets.token_hex(4)}{suffix}"
    place = path.parent / name
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(place, flags, 0o666)
    except OSError as error:
        raise _failure(path, error) from error
    try:
        with os.fdopen(descriptor, "w+b", buffering=1 << 18) as file:
            yield Temporary(file, place)
    except OSError as error:
        raise _failure(path, error) from error
    finally:
        with suppress(OSError):
            place.unlink()


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically.

    Raises:
        UsageError, WriteError: See :func:`replace_file`.
    """
    with replace_file(path) as file:
        file.write(content.encode("utf-8", "surrogatepass"))


def remove_stale(folder: Path) -> None:
    """Remove temporary files in a folder whose writer is gone."""
    for path in stale_files(folder, CONTENT):
        logger.info("removing the left-over file %s", path.name)
        with suppress(OSError):
            path.unlink()


def stale_files(folder: Path, suffix: str) -> list[Path]:
    """Return the temporary files in a folder whose writer is gone."""
    found: list[Path] = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None or match["suffix"] != suffix:
                continue
            if _is_stale(entry, match["host"], int(match["pid"])):
                found.append(Path(entry.path))
    return found


def _is_stale(entry: os.DirEntry[str], host: str, pid: int) -> bool:
    if host != _host():
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def shown(path: Path) -> str:
    """Return a path as one safe line for messages."""
    return repr(str(path))


def _usage(path: Path, error: OSError) -> UsageError:
    reason = error.strerror or str(error)
    return UsageError(f"the output path cannot be written: {reason}", where=shown(path))


def _failure(path: Path, error: OSError) -> UsageError | WriteError:
    if error.errno in _USAGE:
        return _usage(path, error)
    reason = error.strerror or str(error)
    full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    return WriteError(
        f"writing failed: {reason}",
        where=shown(path),
        hint="free some space or write to another folder" if full else "",
    )
