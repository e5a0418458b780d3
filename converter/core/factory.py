"""Functions that the user names as ``module:function``: for samples and for PyTorch models."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def split_reference(text: str) -> tuple[str, str] | None:
    """Split ``module:function``; None for anything else, and for the name of a file."""
    module, colon, function = text.partition(":")
    if not colon or not _dotted(module) or not _dotted(function) or Path(text).exists():
        return None
    return module, function


def resolve(module: str, function: str) -> Any:
    """Import a module and return what it holds under a dotted name.

    Raises:
        Exception: Whatever the user's own code raises while it is imported.
    """
    with current_folder_importable():
        found: Any = importlib.import_module(module)
    for part in function.split("."):
        found = getattr(found, part)
    return found


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """Let imports find modules in the current folder, as ``python -m`` does and scripts do not."""
    folder = str(Path.cwd())
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _dotted(text: str) -> bool:
    return bool(text) and all(part.isidentifier() for part in text.split("."))
