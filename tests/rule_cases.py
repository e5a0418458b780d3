"""What the tests of ``eliminate``'s rules share: a graph from text and what is left of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from exact import check
from support import model_from_text, op_types

from passes import Eliminate

X = "float[N,4,6] x"


@dataclass(frozen=True)
class Case:
    """A graph from ONNX text and the operators that remain."""

    body: str
    left: str
    inputs: str = X
    outputs: str = "float y"
    opset: int = 17
    reason: str = ""
    constants: dict[str, Any] = field(default_factory=dict)


def run(case: Case) -> None:
    text = f"g ({case.inputs}) => ({case.outputs}) {{ {case.body} }}"
    constants = {name: np.asarray(data) for name, data in case.constants.items()}
    model = model_from_text(text, opset=case.opset, **constants)
    for output in model.graph.outputs:
        output.shape = None
    outcome = check(Eliminate(), model)
    assert op_types(model) == case.left.split()
    assert case.reason in "; ".join(skip.reason for skip in outcome.skipped)


def named(table: dict[str, Case]) -> list[Any]:
    return [pytest.param(case, id=name) for name, case in table.items()]
