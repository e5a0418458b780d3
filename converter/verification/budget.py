"""Budgets: terms such as ``size<=0.3x`` that decide whether a converted model is good enough.

term = metric ( "<=" | ">=" ) number [ unit ]

size          <=   x % B kB MB GB KiB MiB GiB    of the file with its external data
nodes, params <=   x % or a plain number
macs          <=   x %, K M G T or a number      multiply-accumulates of one sample (flops: alias)
latency       <=   x % us ms s                   median; x: median ratio of neighbouring runs
accuracy      >=   x % or 0..1                    needs labels; 0.99x: of the original's
agreement     >=   % or 0..1                      same best class as the original
flips         <=   % or 0..1                      another best class than the original
sqnr          >=   dB or a plain number           worst output
cosine        >=   -1..1                          worst output
max_error     <=   a plain number                 worst output, absolute
max_rel_error <=   % or a plain number            the same over the largest value of the output
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from converter.errors import ParameterError, UsageError

Relation = Literal["<=", ">="]
_RATIO = {"x": 0.0, "%": 0.0}
"""Units that relate to the original; their scale is not used."""
_BYTES = {
    "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
}  # fmt: skip
_COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_SHARE = {"": 1.0, "%": 0.01}
_TERM = re.compile(
    r"\s*(?P<metric>[A-Za-z_]\w*)\s*(?P<relation><=|>=|==|=|<|>)\s*"
    r"(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?P<unit>[A-Za-z%]*)\s*"
)


@dataclass(frozen=True)
class Metric:
    """One row of the table of metrics.

    Attributes:
        relation: The only direction that makes sense.
        units: Scale of each allowed unit; ``""`` stands for a plain number.
        low, high: Range of a value in the base unit.
        relative: ``x`` and, for things that are no share, ``%`` relate to the original.
        needs: What must be there to measure it, for messages.
    """

    relation: Relation
    units: dict[str, float]
    low: float = 0.0
    high: float = math.inf
    relative: bool = False
    needs: str = ""


METRICS: dict[str, Metric] = {
    "size": Metric("<=", {**_RATIO, **_BYTES}, relative=True),
    "nodes": Metric("<=", {**_RATIO, "": 1.0}, relative=True),
    "params": Metric("<=", {**_RATIO, "": 1.0}, relative=True),
    "latency": Metric("<=", {**_RATIO, **_SECONDS}, relative=True),
    "macs": Metric(
        "<=",
        {**_RATIO, **_COUNTS},
        relative=True,
        needs="sizes that are known for every layer",
    ),
    "accuracy": Metric(">=", {"x": 0.0, **_SHARE}, high=1.0, needs="labels"),
    "agreement": Metric(">=", _SHARE, high=1.0, needs="an output that looks like class scores"),
    "flips": Metric("<=", _SHARE, high=1.0, needs="an output that looks like class scores"),
    "sqnr": Metric(">=", {"": 1.0, "dB": 1.0}, low=-math.inf),
    "cosine": Metric(">=", {"": 1.0}, low=-1.0, high=1.0),
    "max_error": Metric("<=", {"": 1.0}),
    "max_rel_error": Metric("<=", _SHARE),
}


ALIASES = {"flops": "macs"}
"""Other names of metrics: shares of both are the same."""

STATIC = ("size", "nodes", "params")
"""Metrics that take no run of a model."""


@dataclass(frozen=True)
class Limit:
    """One term of a budget.

    Attributes:
        metric: Name in :data:`METRICS`.
        relation: ``<=`` or ``>=``.
        value: In the base unit (bytes, seconds, share, decibels), or a ratio.
        ratio: ``value`` is multiplied by the original's figure.
        text: The term as it was written.
    """

    metric: str
    relation: Relation
    value: float
    ratio: bool
    text: str

    def holds(self, measured: float) -> bool:
        """Compare a measured figure, a ratio where the limit is one; NaN never holds."""
        return measured <= self.value if self.relation == "<=" else measured >= self.value

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Budget:
    """All terms that a conversion must keep."""

    limits: tuple[Limit, ...] = ()

    @classmethod
    def parse(cls, terms: str | Iterable[str]) -> Budget:
        """Read terms; one string may hold several, separated by commas.

        Raises:
            ParameterError: Lists all terms that cannot be read, and why.
        """
        texts = [terms] if isinstance(terms, str) else list(terms)
        parts = [part for text in texts for part in str(text).split(",")]
        limits, wrong = [], []
        for part in parts:
            try:
                limits.append(_term(part))
            except ValueError as error:
                wrong.append(f"{part.strip()!r}: {error}")
        if wrong:
            raise ParameterError(
                "the budget cannot be read: " + "; ".join(wrong),
                where="--budget",
                allowed="METRIC<=NUMBER or METRIC>=NUMBER with a metric of " + ", ".join(METRICS),
                hint="for example size<=0.3x, accuracy>=0.99x, sqnr>=20, latency<=5ms, flips<=1%",
            )
        return cls(tuple(limits))

    def __bool__(self) -> bool:
        return bool(self.limits)

    def check_static(self) -> None:
        """Refuse metrics that take running the models.

        Raises:
            UsageError: Names them.
        """
        running = [limit.text for limit in self.limits if limit.metric not in STATIC]
        if running:
            raise UsageError(
                f"without verification {', '.join(running)} cannot be measured",
                where="--budget and --no-verify",
                allowed=f"with --no-verify: {', '.join(STATIC)}",
                hint="leave out --no-verify",
            )

    def names(self, metric: str) -> bool:
        """Tell whether a term is about this metric."""
        return any(limit.metric == metric for limit in self.limits)


def _term(text: str) -> Limit:
    """Read one term; ValueError says what is wrong with it."""
    found = _TERM.fullmatch(text)
    if found is None:
        raise ValueError("not of the form METRIC<=NUMBER[UNIT]")
    name, relation = ALIASES.get(found["metric"], found["metric"]), found["relation"]
    metric = METRICS.get(name)
    if metric is None:
        near = difflib.get_close_matches(name, METRICS, n=3, cutoff=0.5)
        also = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"unknown metric {name!r}{also}")
    if relation != metric.relation:
        raise ValueError(f"{name} is bounded with {metric.relation}")
    unit, number = found["unit"], float(found["number"])
    if unit not in metric.units:
        units = ", ".join(u or "none" for u in metric.units)
        raise ValueError(f"{'no unit' if not unit else f'unit {unit!r}'} ({name} takes {units})")
    ratio = unit == "x" or (metric.relative and unit == "%")
    value = number * (0.01 if unit == "%" else 1.0) if ratio else number * metric.units[unit]
    low, high = (0.0, math.inf) if ratio else (metric.low, metric.high)
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{found['number']}{unit} is outside {low:g} to {high:g}")
    return Limit(name, metric.relation, value, ratio, "".join(text.split()))
