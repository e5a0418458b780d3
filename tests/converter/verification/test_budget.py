"""The grammar of budgets."""

from __future__ import annotations

import math

import pytest

from converter.errors import ParameterError
from converter.verification.budget import Budget


@pytest.mark.parametrize(
    ("text", "value", "ratio"),
    [
        ("size<=0.3x", 0.3, True),
        ("size<=30%", 0.3, True),
        ("size<=2MB", 2e6, False),
        (" size <= 2 MiB ", 2 << 20, False),
        ("accuracy>=0.99x", 0.99, True),
        ("accuracy>=0.93", 0.93, False),
        ("accuracy>=93%", 0.93, False),
        ("sqnr>=20", 20, False),
        ("sqnr>=20dB", 20, False),
        ("sqnr>=-3", -3, False),
        ("latency<=0.8x", 0.8, True),
        ("latency<=5ms", 0.005, False),
        ("latency<=250us", 250e-6, False),
        ("max_error<=1e-3", 1e-3, False),
        ("max_rel_error<=1%", 0.01, False),
        ("cosine>=.999", 0.999, False),
        ("flips<=1%", 0.01, False),
        ("agreement>=0.99", 0.99, False),
        ("nodes<=100", 100, False),
        ("params<=0.5x", 0.5, True),
        ("macs<=50%", 0.5, True),
        ("flops<=0.5x", 0.5, True),
        ("macs<=40M", 4e7, False),
    ],
)
def test_terms(text, value, ratio):
    (limit,) = Budget.parse([text]).limits
    assert limit.value == pytest.approx(value)
    assert limit.ratio is ratio
    assert str(limit) == text.replace(" ", "")
    assert Budget.parse(str(limit)).limits == (limit,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not of the form"),
        ("size", "not of the form"),
        ("size<=", "not of the form"),
        ("size<=x", "not of the form"),
        ("size<=0.3xx", "unit 'xx'"),
        ("size<=0.3x extra", "not of the form"),
        ("sise<=0.3x", "did you mean size"),
        ("size>=0.3x", "bounded with <="),
        ("size<0.3x", "bounded with <="),
        ("size=0.3x", "bounded with <="),
        ("accuracy<=0.9", "bounded with >="),
        ("size<=0.3", "no unit"),
        ("latency<=5", "no unit"),
        ("sqnr>=20x", "unit 'x'"),
        ("accuracy>=93", "outside 0 to 1"),
        ("flips<=150%", "outside 0 to 1"),
        ("max_error<=-1", "outside 0 to inf"),
        ("size<=-1x", "outside"),
        ("size<=nanx", "not of the form"),
        ("sqnr>=1e999", "outside"),
    ],
)
def test_wrong_terms(text, words):
    with pytest.raises(ParameterError, match=words) as caught:
        Budget.parse([text])
    assert caught.value.exit_code == 2


def test_all_errors_at_once():
    with pytest.raises(ParameterError, match=r"sice.*flips"):
        Budget.parse(["sice<=1x", "sqnr>=20", "flips>=1"])


def test_several_terms():
    assert len(Budget.parse("sqnr>=20,size<=0.3x").limits) == 2
    assert not Budget.parse(())
    budget = Budget.parse(["sqnr>=20"])
    assert budget.names("sqnr")
    assert not budget.names("size")
    (limit,) = budget.limits
    assert limit.holds(math.inf)
    assert limit.holds(20)
    assert not limit.holds(math.nan)
