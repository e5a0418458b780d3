"""Modules that start up late: a third of a second that almost no run of the program needs."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

LATE = frozenset({"sympy", "onnx_ir._symbolic_shapes"})
"""onnx_ir imports sympy for arithmetic with names of dimensions, which conversions do without."""


class _LateFinder:
    """Finds the modules of :data:`LATE` and executes them when one of their names is read."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in LATE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


def import_late() -> None:
    """Let the modules of :data:`LATE` wait until they are used; for programs, not for libraries."""
    if not any(isinstance(finder, _LateFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LateFinder())
