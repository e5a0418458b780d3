"""Random models with sub-graphs, functions, views, types and layers, through random pass lists."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from properties.random_models.model import build, pass_list
from torture.judge import exact_passes, judge, subject

GROUPS, CASES = 6, 60
FIRST = 1_000_000
"""Seeds that the long run of benchmarks/differential.py does not begin with."""


def complaints_of(random: Random) -> tuple[list[str], int]:
    """Return what is wrong with one case, and how many feeds onnxruntime could run."""
    made = build(random)
    text = pass_list(random, exact_passes())
    with subject(made.proto, made.feeds) as model:
        ran = sum(not isinstance(row, Exception) for row in model.expected or ())
        return judge(model, text), ran


@pytest.mark.parametrize("group", range(GROUPS))
def test_random_models_keep_everything(group: int) -> None:
    runs = 0
    for seed in range(FIRST + group * CASES, FIRST + (group + 1) * CASES):
        complaints, ran = complaints_of(Random(seed))
        assert complaints == [], f"seed {seed}"
        runs += ran
    assert runs > 2 * CASES, "nearly all models have to run, or nothing was compared"


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(random=st.randoms(use_true_random=False))
def test_drawn_models_keep_everything(random: Random) -> None:
    complaints, _ = complaints_of(random)
    assert complaints == []
