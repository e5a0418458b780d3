"""onnxpress: make a trained model small, fast and safe to ship.

    import converter

    artifact = converter.convert("in.onnx", "out.onnx", passes="simplify,prune:sparsity=0.5")
    print(artifact.report.to_dict()["verdict"])

Names are imported on first use, so that ``import converter`` and ``convert --help`` stay quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converter.api import Artifact, bench, convert, inspect, load, save, verify
    from converter.examination import debug, sensitivity
    from converter.pipeline.pipeline import Pipeline

__version__ = "0.1.0"
__all__ = [
    "Artifact",
    "Pipeline",
    "__version__",
    "bench",
    "convert",
    "debug",
    "inspect",
    "load",
    "save",
    "sensitivity",
    "verify",
]

_HOMES = {
    "Pipeline": "converter.pipeline.pipeline",
    "debug": "converter.examination",
    "sensitivity": "converter.examination",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'converter' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES.get(name, "converter.api")), name)


def __dir__() -> list[str]:
    return list(__all__)
