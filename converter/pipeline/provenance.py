"""Where a model came from: one metadata entry with recipe, versions and digests, below 2 KB."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

import converter
from converter.core.graph import META_PREFIX

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

KEY = META_PREFIX + "provenance"
_MAX_BYTES = 2000
_ELLIPSIS = "..."
_TOOLS = ("onnxpress", "onnx", "onnx-ir", "onnxruntime", "numpy")


@cache
def versions() -> dict[str, str]:
    """Versions of this tool and of what its results depend on."""
    found = {}
    for name in _TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    found["onnxpress"] = converter.__version__  # also where it runs without being installed
    return found


def digest_files(paths: list[Path]) -> str:
    """SHA-256 over the contents of the files in the order given, as hex; "" for no files."""
    if not paths:
        return ""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def stamp(model: ir.Model, record: dict[str, Any]) -> None:
    """Write the record into the model's metadata, replacing an earlier one.

    A recipe too long for the 2 KB is cut, says so, and has its digest; the report keeps it in full.
    """
    text = _text(record)
    recipe = str(record.get("recipe", ""))
    if len(text) > _MAX_BYTES:
        digest = hashlib.sha256(recipe.encode()).hexdigest()
        cut = {**record, "recipe": "", "recipe_cut": True, "recipe_sha256": digest}
        room = _MAX_BYTES - len(_text(cut)) - len(_ELLIPSIS)
        cut["recipe"] = _fitting(recipe, room) + _ELLIPSIS
        text = _text(cut)
    model.metadata_props[KEY] = text


def _text(record: dict[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"))  # ASCII: a byte a letter


def _fitting(text: str, room: int) -> str:
    """Return as much of a text as takes so many bytes in JSON."""
    for index, letter in enumerate(text):
        room -= len(json.dumps(letter)) - 2
        if room < 0:
            return text[:index]
    return text
