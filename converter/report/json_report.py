"""The report as strict JSON text."""

from __future__ import annotations

import json
from typing import Any

from converter.report.report import jsonable


def render(report: dict[str, Any]) -> str:
    """Return indented JSON, keys in the report's own order, ASCII only, one final newline.

    ASCII also means that names with control characters cannot reach a terminal.
    """
    return json.dumps(jsonable(report), indent=2, ensure_ascii=True, allow_nan=False) + "\n"
