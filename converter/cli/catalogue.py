"""The passes as data for listing: read without importing what they need."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from converter.core import registry


def list_passes() -> list[dict[str, Any]]:
    """Return name, owner and summary of every pass; plugins are not imported for it."""
    rows = []
    for name, entry in registry.entries().items():
        own = entry.owner == registry.OWNER
        summary = registry.summary_of(entry) if own else f"from {entry.owner}"
        rows.append({"name": name, "owner": entry.owner, "summary": summary})
    return rows


def describe(name: str) -> dict[str, Any]:
    """Return one pass with all its parameters.

    Raises:
        UnknownPassError: There is no such pass.
    """
    found = asdict(registry.describe(name))
    found["parameters"] = list(found["parameters"])
    found["needs"] = list(found["needs"])
    return found
