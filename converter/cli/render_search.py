"""What ``sensitivity`` and ``debug`` found, as tables."""

from __future__ import annotations

import math
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
    return "equal" if value is None or math.isinf(value) else f"{value:.1f} dB"


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
    if name == "quantize" and data["whole"]["loss"] and data["whole"]["loss"] > 1e-4:
        bound = f"{data['whole']['loss'] / 2:.1g}"
        found.append(f"to find the smallest set for a loss, such as half of it: max_loss={bound}")
    return found


# --- debug ----------------------------------------------------------------------------------------

DEBUG_HEADS = ("node", "SQNR", "cosine", "max error", "local", "beyond")
_DEAD_HEADS = ("node", "died", "dead in both", "channels")


def debug_facts(data: Data) -> list[Row]:
    """Return where the models part first, and the layer that adds most."""
    known = {gap["value"]: gap for gap in data["values"]}
    facts: list[Row] = []
    for label, key, figure in (
        ("first to deviate", "first", "sqnr_db"),
        ("adds most by itself", "worst_layer", "local_sqnr_db"),
    ):
        gap = known.get(data[key])
        words = "none" if gap is None else f"{_where(gap)}: {decibels(gap[figure])}"
        facts.append((label, words))
    unmatched = f"{data['only_first']} in A, {data['only_second']} in B"
    return [*facts, ("values without a partner", unmatched)]


def debug_tables(data: Data) -> list[tuple[str, tuple[str, ...], list[Row]]]:
    """Return titles, heads and rows of what is worth showing."""
    top = data["top"]
    differing = [gap for gap in data["values"] if gap["broken"] or not gap["equal"]]
    layers = [gap for gap in data["values"] if gap["local_sqnr_db"] is not None]
    layers.sort(key=lambda gap: gap["local_sqnr_db"])
    clipped = sorted(
        (gap for gap in data["values"] if gap["saturated"]), key=lambda gap: -gap["saturated"]
    )
    dead = [gap for gap in data["values"] if gap["died"] or gap["dead"]]
    dead.sort(key=lambda gap: (-gap["died"], -gap["dead"]))
    tables: list[tuple[str, tuple[str, ...], list[Row]]] = [
        ("Accumulated, the worst first", DEBUG_HEADS, [_gap_row(x) for x in differing[:top]]),
        ("By itself, the worst first", DEBUG_HEADS, [_gap_row(x) for x in layers[:top]]),
        ("Beyond the grid", DEBUG_HEADS, [_gap_row(x) for x in clipped[:top]]),
        ("Dead channels", _DEAD_HEADS, [_dead_row(x) for x in dead[:top]]),
    ]
    return [table for table in tables if table[2]]


def _where(gap: Data) -> str:
    name: str = gap["layer"] or gap["node"] or gap["value"]
    return name


def _gap_row(gap: Data) -> Row:
    if gap["broken"]:
        return f"{_where(gap)}: BROKEN, {gap['broken']}", "-", "-", "-", "-", "-"
    return (
        f"{_where(gap)} ({gap['op_type']})",
        decibels(None if gap["equal"] else gap["sqnr_db"]),
        f"{gap['cosine']:.5f}",
        loss(gap["max_abs"]),
        "-" if gap["local_sqnr_db"] is None else decibels(gap["local_sqnr_db"]),
        _beyond(gap["saturated"]),
    )


def _beyond(share: float | None) -> str:
    if share is None:
        return "-"
    return "< 0.01 %" if 0 < share < 1e-4 else f"{share * 100:.2f} %"


def _dead_row(gap: Data) -> Row:
    return _where(gap), w.count(gap["died"]), w.count(gap["dead"]), w.count(gap["channels"])
