"""Recipes: reading, refusing, writing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sample_passes
from hypothesis import given
from hypothesis import strategies as st
from test_spec import everything

from converter.core import recipe as recipes
from converter.core.recipe import Recipe, RecipeData, RecipeOutput, parse_recipe, write_recipe
from converter.errors import ParameterError, RecipeError, UnknownPassError

TEXT = """
version = 1
seed = 4
[[pass]]
name = "everything"
share = 0.25
include = ["/head/*", "op:Conv"]
limit = "none"
[[pass]]
name = "everything"
[data]
path = "calib.npz"
samples = 32
[budget]
size = "<=0.3x"
sqnr = [">=20", "<= 200"]
[output]
external_data = "yes"
"""


@pytest.fixture(autouse=True)
def _sample_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.core.registry.get", sample_passes.find)


def test_reads_every_section() -> None:
    assert parse_recipe(TEXT) == Recipe(
        passes=(
            sample_passes.Everything(share=0.25, include=("/head/*", "op:Conv"), limit=None),
            sample_passes.Everything(),
        ),
        seed=4,
        data=RecipeData(path="calib.npz", samples=32),
        budget=("size<=0.3x", "sqnr>=20", "sqnr<= 200"),
        output=RecipeOutput(external_data="yes"),
    )


def test_writes_what_it_reads() -> None:
    made = parse_recipe(TEXT)
    assert parse_recipe(write_recipe(made)) == made
    assert write_recipe(parse_recipe(write_recipe(made))) == write_recipe(made)
    as_json = json.dumps(recipes.recipe_dict(made))
    assert parse_recipe(as_json, kind="json") == made


safe_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
@given(everything(), safe_text, st.integers(0, 2**70) | st.none())
def test_round_trip_of_any_pass(made: sample_passes.Everything, label: str, seed: int) -> None:
    if "none" in (made.label, str(made.place)):
        return  # TOML has no null: the word stands for it
    whole = Recipe(passes=(made,), seed=seed, data=RecipeData(labels=label))
    try:
        text = write_recipe(whole)
    except RecipeError as error:
        assert "Unicode" in str(error)  # noqa: PT017 - both ways are right
        return
    assert parse_recipe(text) == whole


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sed = 1", 'perhaps "seed" was meant'),
        ("seed = -1", "an integer from 0"),
        ("seed = true", "an integer from 0"),
        ("version = 2", "version is 2"),
        ("pass = 3", "pass is no list"),
        ("[[pass]]\nshare = 1", r"pass\[0\] has no name"),
        ("pass = [1]", r"pass\[0\] has no name"),
        ("[data]\nsample = 3", 'data.sample is no parameter.*perhaps "samples" was meant'),
        ("[data]\nsamples = 0", "data.samples is 0"),
        ("data = 3", "data is 3"),
        ("[output]\nexternal_data = 'maybe'", "auto or yes or no"),
        ("[budget]\nsqnr = 20", "budget.sqnr is 20"),
        ("[budget]\nsqnr = ''", "budget.sqnr is ''"),
        ("budget = []", "budget is"),
        ("seed = ", "no valid TOML"),
        ("a = " + "[" * 5000, "nested too deeply|no valid TOML"),
    ],
)
def test_wrong_recipes_are_refused(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        parse_recipe(text)
    assert caught.value.exit_code == 2


def test_all_parameters_of_all_passes_are_told_at_once() -> None:
    text = '[[pass]]\nname="everything"\nshare=2\n[[pass]]\nname="everything"\nscop="x"\ncount="3"'
    with pytest.raises(ParameterError) as caught:
        parse_recipe(text)
    for path in ("pass[0].everything.share", "pass[1].everything.scop", "pass[1].everything.count"):
        assert path in str(caught.value)
    with pytest.raises(UnknownPassError):
        parse_recipe('[[pass]]\nname = "everythin"')


def test_files(tmp_path: Path) -> None:
    (tmp_path / "calib.npz").write_bytes(b"")
    (tmp_path / "r.toml").write_text(TEXT)
    assert recipes.read_recipe(tmp_path / "r.toml").data.path == str(tmp_path / "calib.npz")
    (tmp_path / "r.json").write_text('{"seed": 3, "data": {"path": "module:function"}}')
    assert recipes.read_recipe(tmp_path / "r.json") == Recipe(
        seed=3, data=RecipeData(path="module:function")
    )


@pytest.mark.parametrize("kind", ["missing", "folder", "binary", "large", "list"])
def test_unreadable_files_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "r.json"
    contents = {"binary": b"\xff\xfe", "large": b"#" * (recipes.MAX_BYTES + 1), "list": b"[]"}
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(contents[kind])
    with pytest.raises(RecipeError) as caught:
        recipes.read_recipe(path)
    assert str(path) in str(caught.value)
