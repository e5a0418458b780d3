"""The report as strict JSON text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from converter.report.report import jsonable

if TYPE_CHECKING:
    from converter.report.report import Report


def to_json(report: Report) -> str:
    """Return the report as JSON text; see :func:`render`."""
    return render(report.to_dict())


def render(data: Any) -> str:
    """Return indented JSON, keys in their given order, ASCII only, one final newline.

    ASCII also means that names with control characters cannot reach a terminal.
    """
    return json.dumps(jsonable(data), indent=2, ensure_ascii=True, allow_nan=False) + "\n"
