"""The pipeline text: grammar, round trip, and where errors are."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_passes import Everything, Level, Method, Required, find

from converter.core.spec import format_pass, format_passes, parse
from converter.errors import ParameterError, SpecError, UnknownPassError

floats = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(exclude_characters="\0"), min_size=0, max_size=8)


@st.composite
def everything(draw: st.DrawFn) -> Everything:
    return Everything(
        flag=draw(st.booleans()),
        count=draw(st.integers(0, 10**30)),
        share=draw(st.floats(0, 1, exclude_max=True)),
        free=draw(floats),
        word=draw(words),
        place=draw(st.none() | words.filter(bool).map(Path)),
        method=draw(st.sampled_from(Method)),
        level=draw(st.sampled_from(Level)),
        scope=draw(st.sampled_from(["global", "local"])),
        bits=draw(st.sampled_from([4, 8])),
        limit=draw(st.none() | st.floats(0, 9, exclude_min=True)),
        label=draw(st.none() | st.just("none") | words),
        include=tuple(draw(st.lists(words, max_size=3))),
        sizes=tuple(draw(st.lists(st.integers(1, 99), max_size=3))),
        ratios=draw(st.none() | st.lists(floats, max_size=3).map(tuple)),
    )


@given(st.lists(everything(), max_size=3))
def test_text_round_trip(passes: list[Everything]) -> None:
    text = format_passes(passes)
    again = parse(text, find=find)
    assert again == tuple(passes)
    assert format_passes(again) == text


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_with_our_error(text: str) -> None:
    try:
        passes = parse(text, find=find)
    except (SpecError, UnknownPassError, ParameterError):
        return
    assert parse(format_passes(passes), find=find) == passes


def test_canonical_text_leaves_defaults_out() -> None:
    assert format_pass(Everything()) == "everything"
    assert format_pass(Everything(share=0.7, include=("a", "b c"))) == (
        'everything:share=0.7,include=a,include="b c"'
    )
    assert str(Required(amount=1)) == "required:amount=1.0"


def test_the_example_of_the_grammar() -> None:
    text = "required:amount=2,everything:flag,include=/head/*,include=onnx::Conv_12,share=0.25"
    required, made = parse(text, find=find)
    assert required == Required(amount=2.0)
    assert made == Everything(flag=True, include=("/head/*", "onnx::Conv_12"), share=0.25)


def test_white_space_around_items_and_empty_text() -> None:
    assert parse("", find=find) == ()
    assert parse(" \n", find=find) == ()
    assert parse(" everything , everything:flag ", find=find) == (
        Everything(),
        Everything(flag=True),
    )


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("everything,", 12, "missing"),
        (",everything", 1, "missing"),
        ("everything,,everything", 12, "missing"),
        ("share=0.5", 1, "before the first pass"),
        ("everything:", 12, "must follow"),
        ("everything:=1", 12, "must follow"),
        ("everything:a:b", 13, "second colon"),
        ("everything:include=a b", 22, "cannot stand here"),
        ('everything:include="a', 20, "never closed"),
        ('everything:include="a\\n"', 22, "backslash"),
        ("everything:include=a\\b", 21, "cannot stand here"),
        ('everything:include="a"b', 23, "cannot stand here"),
        ("everything{share=1}", 1, "is no name"),
        ("everything:0.5x", 12, "neither a parameter nor a flag"),
    ],
)
def test_grammar_errors_say_where(text: str, column: int, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        parse(text, find=find)
    assert f"column {column} " in caught.value.where
    assert caught.value.exit_code == 2


def test_a_value_without_a_name_is_answered_with_the_name() -> None:
    with pytest.raises(SpecError, match=r"write everything:share=0\.5"):
        parse("everything:0.5", find=find)
    with pytest.raises(SpecError, match=r"write everything:scope=local"):
        parse("everything:local", find=find)
    with pytest.raises(SpecError, match="needs a value"):
        parse("everything:share", find=find)


def test_a_flag_in_the_wrong_place_is_answered_with_its_long_form() -> None:
    with pytest.raises(UnknownPassError, match="write flag=true"):
        parse("everything:share=0.1,flag", find=find)


def test_problems_of_all_passes_come_together() -> None:
    text = "everything:share=2,required,everything:nme=1,share=0.1,share=0.2"
    with pytest.raises(ParameterError) as caught:
        parse(text, find=find)
    message = str(caught.value)
    assert "4 parameters are wrong" in message
    for path in (
        "passes[0].everything.share",
        "passes[1].required.amount",
        "passes[2].everything.nme",
        "passes[2].everything.share is given more than once",
    ):
        assert path in message
