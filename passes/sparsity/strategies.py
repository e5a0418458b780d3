"""The strategies by name: each turns a problem into numbers of zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from passes.sparsity import adaptive, genetic, safe, sensitivity, simple
from passes.sparsity.problem import Strategy

Name = Literal[
    "lamp",
    "global",
    "local",
    "erk",
    "linear",
    "polynomial",
    "sensitivity",
    "genetic",
    "adaptive",
    "safe",
]
STRATEGIES: Mapping[Name, Strategy] = {
    "lamp": simple.lamp,
    "global": simple.global_,
    "local": simple.local,
    "erk": simple.erk,
    "linear": simple.linear,
    "polynomial": simple.polynomial,
    "sensitivity": sensitivity.sensitivity,
    "genetic": genetic.genetic,
    "adaptive": adaptive.adaptive,
    "safe": safe.safe,
}
BOUNDED: frozenset[Name] = frozenset({"adaptive", "safe"})
"""These find the share themselves; the one that is given is the most they may reach."""
