"""Facts about values against what operators really return, over onnx's own cases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from backend.cases import Case, originals, variants

from passes.rewriting.facts import Dim, Dims, Facts
from passes.rewriting.scopes import scopes_of
from passes.rewriting.shapes import answer
from passes.rewriting.symbols import Size

Environment = Mapping[Dim, int]


def value_of(size: Size, environment: Environment) -> int | None:
    """Return the number that a size stands for in one run, or None if nothing says it."""
    if isinstance(size, int):
        return size
    if size.terms is None:
        return environment.get(size)
    total = 0
    for monomial, coefficient in size.terms.items():
        if any(dim not in environment for dim in monomial):
            return None
        total += coefficient * math.prod(environment[dim] for dim in monomial)
    return total


def values_of(sizes: Dims, environment: Environment) -> list[int | None]:
    return [value_of(size, environment) for size in sizes]


def fits(expected: list[int | None], actual: list[Any]) -> bool:
    pairs = zip(expected, actual, strict=False)
    return len(expected) == len(actual) and all(e is None or e == a for e, a in pairs)


def wrong(case: Case, *, dynamic: bool) -> str:
    """Return what a fact says that is not so, or nothing."""
    model = ir.from_proto(case.model)
    opsets = {s.graph: s.opset for s in scopes_of(model)}
    facts = Facts(set(model.graph.inputs), opsets, answer)
    environment: dict[Dim, int] = {}
    for value in model.graph.inputs:
        array = case.feed.get(value.name or "")
        if not isinstance(array, np.ndarray):
            continue
        value.shape = ir.Shape([None] * array.ndim if dynamic else array.shape)
        sizes = facts.of(value).dims or ()
        pairs = zip(sizes, array.shape, strict=True)
        environment.update((size, n) for size, n in pairs if isinstance(size, Dim))
    for value, actual in zip(model.graph.outputs, case.expected, strict=False):
        if not isinstance(actual, np.ndarray):
            continue
        value.type = None
        fact = facts.of(value)
        if fact.dtype is not None and fact.dtype.numpy() != actual.dtype:
            return f"{fact.dtype} is {actual.dtype}"
        if fact.dims is not None:
            dims = values_of(fact.dims, environment)
            if not fits(dims, list(actual.shape)):
                return f"{dims} is {actual.shape}"
        if fact.content is not None:
            content = values_of(fact.content, environment)
            if not fits(content, actual.reshape(-1).tolist()):
                return f"{content} is {actual}"
    return ""


@pytest.mark.parametrize("dynamic", [False, True])
def test_no_fact_is_wrong(dynamic: bool) -> None:
    checked, found = 0, {}
    for case in originals():
        if any(isinstance(v, np.ndarray) and v.dtype == object for v in case.expected):
            continue
        for variant in variants(case):
            checked += 1
            problem = wrong(variant, dynamic=dynamic)
            if problem:
                found[variant.name] = problem
    assert found == {}
    assert checked > 1000
