"""Advice on the order of passes."""

from __future__ import annotations

import pytest

from converter.core import registry
from converter.core.spec import parse
from converter.pipeline.lint import unusual


@pytest.mark.parametrize(
    "text",
    [
        "",
        "simplify,quantize",
        "simplify,prune_channels:flops=0.6,prune:sparsity=0.5,reconstruct,quantize",
        "simplify,prune_channels:flops=0.6,quantize",
        "simplify,drop_layers,prune_channels:flops=0.5,prune,reconstruct,quantize,correct_bias",
        "simplify,prune,simplify,quantize,simplify,correct_bias",
        "prune,reconstruct",
    ],
)
def test_usual_orders_pass_in_silence(text: str) -> None:
    assert unusual(parse(text) if text else ()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("quantize,prune_channels:flops=0.5", "quantize runs before prune_channels"),
        ("prune,prune_channels:flops=0.5", "prune runs before prune_channels"),
        ("quantize,simplify", "quantize runs before simplify"),
        ("simplify,reconstruct,prune", "reconstruct fits weights"),
        ("correct_bias", "and none runs before it"),
    ],
)
def test_unusual_orders_are_told(text: str, words: str) -> None:
    assert any(words in note for note in unusual(parse(text)))


def test_passes_follow_passes_that_exist() -> None:
    names = set(registry.names())
    for name in sorted(names):
        assert registry.get(name).follows <= names - {name}, name
