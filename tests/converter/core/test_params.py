"""Parameters: what is accepted, and how wrong values are told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from sample_passes import Everything, Level, Method, Required

from converter.core import params
from converter.core.params import Param
from converter.core.values import Quoted
from converter.errors import ParameterError


def text(**given: str) -> Everything:
    return params.build(Everything, given, text=True)


def test_fields_carry_type_default_help_and_bounds() -> None:
    fields = {f.name: f for f in params.fields_of(Everything)}
    share = fields["share"]
    assert (share.type_text, share.default_text) == ("number", "0.5")
    assert (share.help, share.bounds) == ("a number", "0 <= x < 1")
    assert fields["sizes"].type_text == "list of integer"
    assert fields["sizes"].bounds == ">= 1"
    assert fields["limit"].type_text == "number | none"
    assert fields["method"].type_text == "minmax | entropy"
    assert fields["level"].default_text == "low"
    assert fields["include"].default_text == "none"
    assert params.fields_of(Required)[0].required


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("flag", "true", True),
        ("flag", "false", False),
        ("count", "7", 7),
        ("count", "+7", 7),
        ("share", "0", 0.0),
        ("share", ".25", 0.25),
        ("share", "1e-3", 0.001),
        ("free", "-1E5", -1e5),
        ("word", "a=b", "a=b"),
        ("place", "a/b", Path("a/b")),
        ("place", "none", None),
        ("place", Quoted("none"), Path("none")),
        ("method", "entropy", Method.ENTROPY),
        ("level", "high", Level.HIGH),
        ("scope", "local", "local"),
        ("bits", "4", 4),
        ("limit", "none", None),
        ("label", "none", None),
        ("label", Quoted("none"), "none"),
        ("include", ("a", "b"), ("a", "b")),
        ("include", ("",), ()),
        ("include", (Quoted(""),), ("",)),
        ("sizes", ("3",), (3,)),
        ("ratios", ("none",), None),
        ("ratios", ("0.5",), (0.5,)),
    ],
)
def test_words_become_values(name: str, given: object, expected: object) -> None:
    found = getattr(params.build(Everything, {name: given}, text=True), name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("flag", "True"),
        ("flag", "1"),
        ("count", "1.0"),
        ("count", "1_000"),
        ("count", "\u0663"),
        ("count", "11" * 40),
        ("count", "9" * 5000),
        ("share", "1"),
        ("share", "-0.1"),
        ("share", "nan"),
        ("share", "inf"),
        ("share", "1e999"),
        ("share", "0x1"),
        ("share", " 1"),
        ("share", ""),
        ("share", ("0.1", "0.2")),
        ("word", ""),
        ("place", "a\0b"),
        ("method", "MinMax"),
        ("method", "MINMAX"),
        ("bits", "5"),
        ("limit", "0"),
        ("sizes", ("1", "0")),
        ("sizes", ("1", "x")),
    ],
)
def test_wrong_words_are_refused(name: str, given: object) -> None:
    with pytest.raises(ParameterError, match=name):
        params.build(Everything, {name: given}, text=True)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("flag", 1),
        ("flag", "true"),
        ("count", True),
        ("count", 3.0),
        ("count", "3"),
        ("share", "0.5"),
        ("share", True),
        ("share", math.nan),
        ("free", math.inf),
        ("free", 10**400),
        pytest.param("free", 10**5000, id="huge"),
        ("word", 3),
        ("bits", 8.0),
        ("bits", True),
        ("share", [0.5]),
        ("include", [1]),
        ("count", None),
    ],
)
def test_wrong_types_are_refused(name: str, given: object) -> None:
    with pytest.raises(ParameterError, match=name):
        params.build(Everything, {name: given})
    with pytest.raises(ParameterError, match=name):
        Everything(**{name: given})


def test_values_made_in_python_are_normalized() -> None:
    made = Everything(include=["a"], share=0, method="entropy", place="x")
    assert made.include == ("a",)
    assert isinstance(made.share, float)
    assert made.method is Method.ENTROPY
    assert made.place == Path("x")
    assert hash(made) == hash(
        Everything(include=("a",), share=0.0, method=Method.ENTROPY, place=Path("x"))
    )


def test_numbers_of_numpy_become_plain_ones() -> None:
    made = Everything(share=np.float32(0.25), count=np.int64(7), sizes=[np.int8(3)])
    assert made == Everything(share=0.25, count=7, sizes=(3,))
    assert (type(made.share), type(made.count)) == (float, int)


def test_all_problems_come_together_with_paths_and_nearest_names() -> None:
    with pytest.raises(ParameterError) as caught:
        params.build(
            Everything, {"shar": "1", "count": "x", "scope": "globl"}, path="passes[1].everything"
        )
    message = str(caught.value)
    assert "3 parameters are wrong" in message
    assert "passes[1].everything.shar is no parameter" in message
    assert 'perhaps "share" was meant' in message
    assert "passes[1].everything.count is 'x' (allowed: an integer)" in message
    assert 'perhaps "global" was meant' in message


def test_missing_and_mutually_exclusive_parameters() -> None:
    with pytest.raises(ParameterError, match=r"amount must be given"):
        params.build(Required, {})
    with pytest.raises(ParameterError, match=r"p\.percent: amount and percent exclude"):
        params.build(Required, {"amount": 1.0, "percent": 2.0}, path="p")


def test_long_values_are_shortened_in_messages() -> None:
    with pytest.raises(ParameterError) as caught:
        text(share="x" * 10_000)
    assert len(str(caught.value)) < 300


def test_a_type_that_no_parameter_can_have_is_a_defect_of_the_pass() -> None:
    @dataclass(frozen=True)
    class Broken:
        table: Annotated[dict[str, int] | None, Param("no")] = None

    with pytest.raises(TypeError, match="table"):
        params.fields_of(Broken)
