"""How far two sets of outputs are apart, gathered batch by batch in constant memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_CHUNK = 1 << 20


@dataclass(frozen=True)
class OutputDifference:
    """The distance between two outputs of one name over all samples.

    Attributes:
        name: Name of the output.
        kind: ``float``, ``exact`` (whole numbers, booleans, text: equal or not) or ``other``.
        max_abs: Largest absolute difference.
        max_rel: Largest absolute difference divided by the largest absolute value of the original:
            an element-wise ratio would only measure values near zero.
        sqnr_db: Power of the original over power of the difference, in decibels; infinite for
            equal outputs.
        cosine: Cosine of the angle between both outputs, seen as one long vector.
        magnitude: Largest absolute value of the original.
        elements: Elements compared.
        unequal: Elements that are not equal.
        broken: What is wrong with the output as such: other shape, other type, NaN or infinity
            where the original has none; empty when nothing is.
        random: The output is random by nature; only shape and type were compared.
        dtype: Element type, empty for what is no tensor.
    """

    name: str
    kind: str
    max_abs: float
    max_rel: float
    sqnr_db: float
    cosine: float
    magnitude: float
    elements: int
    unequal: int
    broken: str = ""
    random: bool = False
    dtype: str = ""

    @property
    def equal(self) -> bool:
        """True when every element is equal and nothing is broken."""
        return not self.unequal and not self.broken


@dataclass
class DifferenceMeter:
    """Adds up the distance between two outputs of one name.

    Numbers are compared as float64. Places where both are the same infinity or both NaN are equal.
    """

    name: str
    random: bool = False
    kind: str = "float"
    max_abs: float = 0.0
    magnitude: float = 0.0
    signal: float = 0.0
    other: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    elements: int = 0
    unequal: int = 0
    dtype: str = ""
    broken: list[str] = field(default_factory=list)

    def update(self, expected: Any, actual: Any) -> None:
        """Compare one output of the original with one of the converted model."""
        if isinstance(expected, np.ndarray) and isinstance(actual, np.ndarray):
            self._arrays(expected, actual)
            return
        self.kind = "other"
        if self.random:
            return
        for old, new in _leaves(expected, actual, self):
            DifferenceMeter._arrays(self, old, new)

    def _arrays(self, expected: Array, actual: Array) -> None:
        if expected.dtype != actual.dtype and not (_is_text(expected) and _is_text(actual)):
            self._break(f"its type is {actual.dtype} instead of {expected.dtype}")
            return
        if expected.shape != actual.shape:
            self._break(f"its shape is {actual.shape} instead of {expected.shape}")
            return
        self.dtype = str(expected.dtype)
        if self.random:
            return
        self.elements += expected.size
        floating = expected.dtype.kind in "fc" or _is_small_float(expected)
        if not floating and self.kind == "float":
            self.kind = "exact"
        if _is_text(expected):
            self.unequal += int(np.count_nonzero(expected != actual))
            return
        old, new = expected.reshape(-1), actual.reshape(-1)
        for start in range(0, old.size, _CHUNK):
            self._numbers(_wide(old[start : start + _CHUNK]), _wide(new[start : start + _CHUNK]))

    def _numbers(self, old: Array, new: Array) -> None:
        finite = np.isfinite(old)
        if not (finite.all() and np.isfinite(new).all()):
            same = (old == new) | (np.isnan(old) & np.isnan(new))
            new_finite = np.isfinite(new)
            self.unequal += int(np.count_nonzero(~same & ~(finite & new_finite)))
            if bool((finite & ~new_finite).any()):
                self._break("it holds NaN or infinity where the original has none")
            elif bool((~finite & ~same).any()):
                self._break("it is finite where the original is NaN or infinite, or the reverse")
            both = finite & new_finite
            old, new = old[both], new[both]
        if not old.size:
            return
        gap = new - old
        absolute = np.abs(gap)
        self.unequal += int(np.count_nonzero(absolute))
        self.max_abs = max(self.max_abs, float(absolute.max()))
        self.magnitude = max(self.magnitude, float(np.abs(old).max()))
        self.signal += float(np.vdot(old, old).real)
        self.other += float(np.vdot(new, new).real)
        self.product += float(np.vdot(old, new).real)
        self.noise += float(np.vdot(gap, gap).real)

    def _break(self, words: str) -> None:
        if words not in self.broken and len(self.broken) < 3:
            self.broken.append(words)

    def result(self) -> OutputDifference:
        """Return the figures of everything compared so far."""
        return OutputDifference(
            name=self.name,
            kind=self.kind,
            max_abs=self.max_abs,
            max_rel=_ratio(self.max_abs, self.magnitude),
            sqnr_db=_decibels(self.signal, self.noise),
            cosine=_cosine(self.signal, self.other, self.product) if self.noise else 1.0,
            magnitude=self.magnitude,
            elements=self.elements,
            unequal=self.unequal,
            broken="; ".join(self.broken),
            random=self.random,
            dtype=self.dtype,
        )


def _ratio(part: float, whole: float) -> float:
    if not part:
        return 0.0
    return part / whole if whole else math.inf


def _decibels(signal: float, noise: float) -> float:
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _cosine(signal: float, other: float, product: float) -> float:
    if not signal and not other:
        return 1.0
    if not signal or not other:
        return 0.0
    return min(1.0, max(-1.0, product / (math.sqrt(signal) * math.sqrt(other))))


def _is_text(array: Array) -> bool:
    return array.dtype.kind in "OUS"


def _is_small_float(array: Array) -> bool:
    return array.dtype.type.__module__ == "ml_dtypes" and "int" not in array.dtype.name


def _wide(array: Array) -> Array:
    """Return 64-bit floating-point numbers; whole numbers beyond 2**53 lose their last digits."""
    if array.dtype.kind == "c":
        return array.astype(np.complex128)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        return array.astype(np.longdouble)
    return array.astype(np.float64)


def _leaves(old: Any, new: Any, meter: DifferenceMeter) -> list[tuple[Array, Array]]:
    """Pair the arrays of two sequences or maps; differing structure breaks the output."""
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        return [(old, new)]
    if old is None and new is None:
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping) and old.keys() == new.keys():
        return [pair for key in old for pair in _leaves(old[key], new[key], meter)]
    lists = isinstance(old, Sequence) and isinstance(new, Sequence)
    if lists and not isinstance(old, str) and len(old) == len(new):
        return [p for a, b in zip(old, new, strict=True) for p in _leaves(a, b, meter)]
    if isinstance(old, int | float | str) and type(old) is type(new):
        kind = np.float32 if isinstance(old, float) else None  # ZipMap makes float32
        return [(np.asarray(old, kind), np.asarray(new, kind))]
    meter.broken.append("it has other parts than the original's")
    return []
