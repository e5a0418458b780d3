"""Figures and names in words, for the terminal and for HTML; names are made harmless here."""

from __future__ import annotations

import math

_UNITS = ("B", "kB", "MB", "GB", "TB")


def clean(text: object) -> str:
    """Return text without anything a terminal would obey: escapes, newlines, direction marks."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in str(text)
    )


def size(nbytes: float | None) -> str:
    """Return bytes for people, e.g. ``12.3 MB`` (powers of 1000, as file managers show them)."""
    if nbytes is None:
        return "-"
    value = float(nbytes)
    for unit in _UNITS:
        if abs(value) < 999.5 or unit == _UNITS[-1]:
            digits = 0 if unit == "B" or abs(value) >= 99.95 else 1
            return f"{value:.{digits}f} {unit}"
        value /= 1000
    raise AssertionError("unreachable: the last unit takes everything")


def count(number: float | None) -> str:
    """Return a count with thin groups, e.g. ``12,345``; other numbers with four digits."""
    if number is None:
        return "-"
    return f"{int(number):,}" if float(number).is_integer() else f"{number:.4g}"


def amount(number: float | None) -> str:
    """Return a large count in a few digits, e.g. ``41.0 M`` multiply-accumulates."""
    if number is None:
        return "-"
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * scale:
            digits = number / scale
            return f"{digits:.{1 if digits >= 9.995 else 2}f} {unit}"
    return f"{number:.0f}"


def milliseconds(seconds: float | None) -> str:
    """Return a latency, e.g. ``3.21 ms`` or ``1,730 ms``."""
    if seconds is None:
        return "-"
    digits = f"{seconds * 1000:.3g}"
    return f"{float(digits):,.0f} ms" if float(digits) >= 1000 else f"{digits} ms"


def duration(seconds: float | None) -> str:
    """Return a time that a person waited, e.g. ``0.4 s`` or ``3 min 05 s``."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def ratio(after: float | None, before: float | None) -> str:
    """Return ``0.26x``; empty when it cannot be said."""
    return f"{after / before:.2f}x" if before and after is not None else ""


def factor(value: float | None, *, digits: int = 2) -> str:
    """Return a ratio, e.g. ``0.26x``."""
    return "-" if value is None else f"{value:.{digits}f}x"


def percent(share: float | None) -> str:
    """Return a share with two digits, e.g. ``97.25 %``."""
    return "-" if share is None else f"{share * 100:.2f} %"


def number(value: object) -> str:
    """Return a measured value with four digits; counts in full, text and None as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else clean(value)
    if math.isfinite(value) and float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def plural(amount: int, word: str) -> str:
    """Return ``1 node`` or ``2 nodes``."""
    return f"{amount:,} {word}" if amount == 1 else f"{amount:,} {word}s"
