"""The rewrites: every module directly in this package is one pass; sub-packages are libraries.

``from passes import Prune`` works for every pass here; modules are imported on first use.
"""

from __future__ import annotations

from typing import Any

_HOMES = {
    "Cast": "cast",
    "ClusterWeights": "cluster_weights",
    "ConvertOpset": "convert_opset",
    "CorrectBias": "correct_bias",
    "Deduplicate": "deduplicate",
    "DropLayers": "drop_layers",
    "Eliminate": "eliminate",
    "Equalize": "equalize",
    "FixShapes": "fix_shapes",
    "FoldConstants": "fold_constants",
    "Freeze": "freeze",
    "Fuse": "fuse",
    "Inline": "inline",
    "Pack": "pack",
    "Prune": "prune",
    "PruneChannels": "prune_channels",
    "Quantize": "quantize",
    "QuantizeDynamic": "quantize_dynamic",
    "QuantizeWeights": "quantize_weights",
    "Reconstruct": "reconstruct",
    "Simplify": "simplify",
    "Smooth": "smooth",
    "Unpack": "unpack",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605 - made from the table so that the two cannot differ


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'passes' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"passes.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
