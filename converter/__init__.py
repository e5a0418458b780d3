"""onnxpress: make a trained model small, fast and safe to ship.

    import converter

    artifact = converter.convert("in.onnx", "out.onnx", passes="simplify,prune:sparsity=0.5")
    print(artifact.report.to_dict()["verdict"])

Names are imported on first use, so that ``import converter`` and ``convert --help`` stay quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converter.api import (
        Artifact,
        bench,
        convert,
        inspect,
        load,
        save,
        sensitivity,
        verify,
    )
    from converter.pipeline.pipeline import Pipeline

__version__ = "0.1.0"
__all__ = [
    "Artifact",
    "Pipeline",
    "__version__",
    "bench",
    "convert",
    "inspect",
    "load",
    "save",
    "sensitivity",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'converter' has no attribute {name!r}")
    import importlib

    home = "converter.pipeline.pipeline" if name == "Pipeline" else "converter.api"
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return list(__all__)
