"""Patterns of ``include=`` and ``exclude=``."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support import model_from_text

from converter.core.select import Selection
from converter.errors import ConverterError


@pytest.fixture
def nodes() -> list[ir.Node]:
    text = """g (float[1,4] x) => (float[1,4] y) {
        a = MatMul (x, large)
        b = Add (a, small)
        c = Relu (b)
        y = Gemm (c, large, small)
    }"""
    constants = {"large": np.ones((4, 4), np.float32), "small": np.ones(4, np.float32)}
    model = model_from_text(text, opset=17, **constants)
    found = list(model.graph)
    for node, name in zip(found, ("head[0]", "head[1]", "body/relu", ""), strict=True):
        node.name = name
    return found


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("head[0]", "a"),
        ("b", "b"),
        ("body/*", "c"),
        ("op:MatMul", "a"),
        ("op:*e*", "cy"),
        (r"re:head\[\d\]", "ab"),
        ("re:head", ""),
        ("re:.*/relu|y", "cy"),
        ("size<16", "b"),
        ("size<=16", "aby"),
        ("size>4", "ay"),
        ("size>=4", "aby"),
        ("size=4", ""),
    ],
)
def test_patterns(pattern: str, chosen: str, nodes: list[ir.Node]) -> None:
    found = {n.outputs[0].name for n in nodes if n in Selection(include=(pattern,))}
    assert found == set(chosen)
    rest = {n.outputs[0].name for n in nodes if n in Selection(exclude=(pattern,))}
    assert rest == set("abcy") - found
    assert Selection((pattern,)).unmatched(nodes) == (() if chosen else (pattern,))


def test_exclude_wins(nodes: list[ir.Node]) -> None:
    selection = Selection(include=("op:*",), exclude=("size>4",))
    assert [n.outputs[0].name for n in nodes if n in selection] == ["b", "c"]


def test_a_broken_expression_is_refused_with_advice() -> None:
    with pytest.raises(ConverterError, match="not a regular expression") as caught:
        Selection(include=("re:(",))
    assert "Python regular expression" in (caught.value.hint or "")
