"""Provenance stays below 2 KB, whatever was asked for."""

from __future__ import annotations

import json

import pytest
from support import model_from_text

from converter.core import params, registry
from converter.core.spec import parse
from converter.pipeline.provenance import KEY, stamp, versions

DIGEST = "0" * 64


def stamped(recipe: str) -> dict[str, object]:
    model = model_from_text("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    record = {"seed": 1 << 63, "source": DIGEST, "data": DIGEST, "versions": versions()}
    stamp(model, {**record, "recipe": recipe})
    text = model.metadata_props[KEY]
    assert len(KEY) + len(text.encode()) < 2048
    found: dict[str, object] = json.loads(text)
    assert {name: found[name] for name in record} == record
    return found


def all_passes() -> str:
    """Every pass with every parameter that has a value to write."""
    specs = []
    for name in registry.names():
        fields = params.fields_of(registry.get(name))
        texts = {f.name: f.default_text for f in fields if f.default_text not in {"", "none"}}
        specs.append(name + "".join(f",{k}={v}" for k, v in texts.items()).replace(",", ":", 1))
    return ",".join(specs)


def test_every_pass_with_its_parameters_fits_whole():
    recipe = all_passes()
    assert len(recipe) > 150
    assert stamped(recipe)["recipe"] == recipe


@pytest.mark.parametrize("letter", ["a", "\u00e9", '"', "\U0001f600"])
def test_a_longer_recipe_is_cut_and_says_so(letter):
    recipe = ",".join(f"prune:exclude=/{letter * 40}/{i}" for i in range(100))
    found = stamped(recipe)
    assert found["recipe_cut"] is True
    start = str(found["recipe"])
    assert start.endswith("...")
    assert recipe.startswith(start[:-3])
    assert len(start) > 100
    assert len(str(found["recipe_sha256"])) == 64


def test_a_short_recipe_says_nothing_of_cutting():
    text = "simplify,prune:sparsity=0.5"
    assert parse(text)
    assert "recipe_cut" not in stamped(text)
