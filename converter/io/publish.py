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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from converter.errors import ConverterError
from converter.io import wire
from converter.io.atomic import Temporary, check_target
from converter.io.limits import LoadLimits, open_model

logger = logging.getLogger(__name__)

_MAX_SIBLINGS = 200
_STEM_BYTES = 200
_SMALL = 4 << 20
_SPECIAL = re.compile(r"[\x00-\x1f\x7f\\:\ud800-\udfff]")
_TAIL = r"-[0-9a-f]{16}(?:-[0-9]{5}-of-[0-9]{5})?\.(?:data|safetensors)"
_LOCATION = re.compile(rb"[^\x00-\x1f/\\]{1,200}?" + _TAIL.encode())
_NO_MODELS = (".data", ".safetensors", ".npz", ".onnxpress-tmp")


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

    A file of that name with that content is left as it is: it may belong to the input.
    """
    made: list[Path] = []
    try:
        for one in ready:
            check_target(one.path)
            if _digest(one.path) == one.digest:
                continue
            if not one.path.exists():
                made.append(one.path)
            one.file.publish(one.path)
        yield
    except BaseException:
        for path in made:
            with suppress(OSError):
                path.unlink()
        raise


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
    pattern = re.compile(re.escape(data_stem(path)) + _TAIL)
    return sorted(name for name in _locations(path) or () if pattern.fullmatch(name))


def _locations(path: Path) -> set[str] | None:
    """Return the external data locations of a model file, or None if it cannot be read."""
    if not path.exists():
        return set()
    try:
        skeleton = wire.scan(open_model(path, LoadLimits())).skeleton
    except (ConverterError, OSError):
        return None
    return {m.decode("utf-8", "replace") for m in _LOCATION.findall(skeleton)}


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
        return path.suffix == ".onnx" or path.stat().st_size > _SMALL or wanted in path.read_bytes()
