"""Giving a model and its data files their names, data first, and clearing away what it replaced.

The names of data files come from their content. So the files of a new model never take the place of
those that the old one needs, and whatever happens between two renames, the model file at the path
finds its own data.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from converter.errors import ConverterError
from converter.io import wire
from converter.io.atomic import CONTENT, JOURNAL, Temporary, check_target, stale_files
from converter.io.atomic import temporary_file as journal_file
from converter.io.limits import LoadLimits, open_model

logger = logging.getLogger(__name__)

_MAX_SIBLINGS = 200
_STEM_BYTES = 200
_SMALL = 4 << 20
_SPECIAL = re.compile(r"[\x00-\x1f\x7f\\:\ud800-\udfff]")
_TAIL = r"-[0-9a-f]{16}(?:-[0-9]{5}-of-[0-9]{5})?\.(?:data|safetensors)"
_OURS = re.compile(r"[^\x00-\x1f/\\]{1,200}" + _TAIL)
_NO_MODELS = (".data", ".safetensors", ".npz", CONTENT, JOURNAL)
_JOURNAL_BYTES = 1 << 20


@dataclass(frozen=True)
class Ready:
    """A data file that is complete but for its name.

    Attributes:
        file: Where it lies now.
        path: Where it is to lie.
        digest: SHA-256 of its content as hex.
    """

    file: Temporary
    path: Path
    digest: str


@contextmanager
def published(ready: Sequence[Ready]) -> Iterator[None]:
    """Give data files their names; take them back if the model file cannot follow.

    A file of that name with that content is left as it is: it may belong to the input. A journal
    names the files while the model does not refer to them yet, for the case of a crash.
    """
    for one in ready:
        check_target(one.path)
    wanted = [one for one in ready if _digest(one.path) != one.digest]
    made = [one.path for one in wanted if not one.path.exists()]
    with ExitStack() as stack:
        if made:
            journal = stack.enter_context(journal_file(made[0], JOURNAL))
            journal.file.write("\n".join(path.name for path in made).encode())
            journal.finish()
        try:
            for one in wanted:
                one.file.publish(one.path)
            yield
        except BaseException:
            for path in made:
                with suppress(OSError):
                    path.unlink()
            raise


def abandoned_data(folder: Path) -> list[str]:
    """Return the data files that a crash left without a model, and forget about it."""
    names: set[str] = set()
    for journal in stale_files(folder, JOURNAL):
        with suppress(OSError), journal.open("rb") as file:
            lines = file.read(_JOURNAL_BYTES).decode("utf-8", "replace").split("\n")
            names.update(name for name in lines if _OURS.fullmatch(name))
        with suppress(OSError):
            journal.unlink()
    return sorted(name for name in names if (folder / name).is_file())


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def data_stem(path: Path) -> str:
    """Return the model's name in a form that every reader accepts as the start of a location."""
    plain = _SPECIAL.sub("_", path.stem)
    return plain.encode()[:_STEM_BYTES].decode(errors="ignore")


def own_data(path: Path) -> list[str]:
    """Return the data files that earlier writes gave the model at ``path``, by our naming."""
    if not path.exists():
        return []
    pattern = re.compile(re.escape(data_stem(path)).encode() + _TAIL.encode())
    try:
        skeleton = wire.scan(open_model(path, LoadLimits())).skeleton
    except (ConverterError, OSError):
        return []
    return sorted({found.decode() for found in pattern.findall(skeleton)})


def remove_unused(names: Sequence[str], path: Path) -> None:
    """Remove data files of the replaced model that no model in the folder refers to."""
    if not names:
        return
    with suppress(OSError), os.scandir(path.parent) as entries:
        others = [e for e in entries if e.name not in names and e.is_file()]
        models = [e for e in others if not e.name.endswith(_NO_MODELS)]
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
        opaque = path.suffix in {".onnx", ".zst"}
        return opaque or path.stat().st_size > _SMALL or wanted in path.read_bytes()
