"""What ``sensitivity`` and ``debug`` found, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.report import words as w

Data = Mapping[str, Any]
Row = tuple[object, ...]
SENSITIVITY_HEADS = ("layer", "loss alone", "SQNR", "agree", "saves", "runs")


def loss(value: float | None) -> str:
    """Three digits, whatever the size; a dash where nothing was measured."""
    return "-" if value is None else f"{value:.3g}"


def decibels(value: float | None) -> str:
    """Signal to noise; None stands for no error."""
    return "equal" if value is None else f"{value:.1f} dB"


def layer_rows(data: Data) -> list[Row]:
    """Return one row per layer."""
    return [_layer_row(layer) for layer in data["layers"]]


def _layer_row(layer: Data) -> Row:
    alone = layer["alone"]
    known = alone is not None
    agreement = alone["agreement"] if known else None
    return (
        f"{layer['name']} ({layer['op_type']})",
        loss(alone["loss"] if known else None),
        decibels(alone["sqnr_db"]) if known else "-",
        "-" if agreement is None else w.percent(agreement),
        loss(layer["saved"]),
        w.count(alone["samples"]) if known else "-",
    )


def headline(data: Data) -> str:
    """Say what was examined and what all layers together cost."""
    whole = data["whole"]
    parts = [f"loss {loss(whole['loss'])} ({whole['measure']})", decibels(whole["sqnr_db"])]
    if whole["agreement"] is not None:
        parts.append(f"agreement {w.percent(whole['agreement'])}")
    if whole["accuracy"] is not None and data["accuracy"] is not None:
        parts.append(f"accuracy {w.percent(data['accuracy'])} -> {w.percent(whole['accuracy'])}")
    runs = w.plural(data["samples"], "run")
    return (
        f"all {len(data['layers'])} layers together: {', '.join(parts)}; {runs} of {data['data']}"
    )


def advice(data: Data) -> list[str]:
    """Say what the columns mean and what to do with the first rows."""
    layers = [layer for layer in data["layers"] if layer["alone"] is not None]
    if not layers:
        return []
    found = [
        "loss alone: only this layer is compressed; saves: what leaving it alone takes off the "
        "loss of all; runs: few for most layers, all for the worst"
    ]
    helpful = [layer for layer in layers if (layer["saved"] or 0) > 0.1 * data["whole"]["loss"]]
    best = sorted(helpful, key=lambda layer: -layer["saved"])[:3]
    name = data["passes"].rpartition(",")[2].partition(":")[0]
    if best:
        words = ",".join(f"exclude={layer['name']}" for layer in best)
        found.append(f"to leave the most harmful ones alone: {name}:{words}")
    return found
