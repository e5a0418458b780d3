"""Finding passes: without importing them, with one owner per name."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from converter.core import registry
from converter.core.declaration import NotStaticError, from_class, from_source
from converter.core.registry import Entry
from converter.errors import UnknownPassError


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts a distribution with one pass on the path."""

    def add(distribution: str, name: str, target: str, source: str = "") -> None:
        info = tmp_path / f"{distribution}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {target}\n")
        if source:
            (tmp_path / f"{target.partition(':')[0]}.py").write_text(source)

    monkeypatch.syspath_prepend(tmp_path)
    return add


def test_lists_the_modules_of_passes_and_nothing_else() -> None:
    folder = Path(__file__).resolve().parents[3] / "passes"
    expected = {p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")}
    own = {e.name for e in registry.entries().values() if e.owner == registry.OWNER}
    assert own == expected
    assert list(registry.names()) == sorted(registry.names())


def test_listing_imports_no_pass() -> None:
    code = (
        "import sys; from converter.core import registry; n = registry.names();"
        "[registry.describe(x) for x in n if registry.entry(x).owner == registry.OWNER];"
        "assert n; assert not [m for m in sys.modules if m.startswith('passes.')]"
        " , [m for m in sys.modules if m.startswith('passes.')];"
        "assert 'onnx_ir' not in sys.modules and 'numpy' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


@pytest.mark.parametrize("name", registry.names())
def test_source_and_class_say_the_same(name: str) -> None:
    entry = registry.entry(name)
    if entry.owner != registry.OWNER:
        pytest.skip("passes of others are not read from source")
    assert from_source(entry) == from_class(registry.get(name), entry)


@pytest.mark.parametrize("name", registry.names())
def test_every_pass_is_documented(name: str) -> None:
    found = registry.describe(name)
    assert found.summary
    assert found.details
    assert all(parameter.help for parameter in found.parameters)


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(UnknownPassError, match='perhaps "prune" was meant') as caught:
        registry.get("Prun")
    assert caught.value.exit_code == 2
    with pytest.raises(UnknownPassError):
        registry.get("prune.__init__")


def test_a_plugin_is_listed_unimported_and_found(plugin) -> None:
    plugin(
        "other-house",
        "frobnicate",
        "other_house:Frobnicate",
        "from converter.core.contract import Outcome, Pass\n"
        "class Frobnicate(Pass):\n"
        "    name = 'frobnicate'\n"
        "    summary = 'frobs'\n"
        "    def apply(self, model, context): return Outcome(False)\n",
    )
    assert registry.entry("frobnicate") == Entry(
        "frobnicate", "other-house", "other_house:Frobnicate"
    )
    assert "other_house" not in sys.modules
    assert registry.get("frobnicate").name == "frobnicate"
    assert registry.describe("frobnicate").summary == "frobs"
    del sys.modules["other_house"]


def test_two_owners_of_one_name_are_both_named(plugin) -> None:
    plugin("thief", "prune", "thief:Prune")
    for look in (registry.names, lambda: registry.get("prune")):
        with pytest.raises(UnknownPassError, match=r"passes\.prune of distribution onnxpress and"):
            look()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "cannot be imported"),
        ("import nothing_of_this_name\n", "nothing_of_this_name"),
        ("Broken = 3\n", "holds no pass"),
        (
            "from converter.core.contract import Pass\nclass Broken(Pass): name = 'other'\n",
            "named 'other'",
        ),
    ],
)
def test_broken_plugins_are_told_from_unknown_ones(plugin, source: str, words: str) -> None:
    plugin("broken-house", "broken", "broken_house:Broken", source)
    with pytest.raises(UnknownPassError, match=words):
        registry.get("broken")
    sys.modules.pop("broken_house", None)


SOURCE = '''
import enum
from typing import Literal
from converter.core.params import Param
_HALF = 0.5
Scope = Literal["a", "b"]
class Method(enum.Enum):
    ONE = "uno"
    TWO = 2
class _Base(Pass):
    include: Annotated[tuple[str, ...], Param("which")] = ()
class Made(_Base):
    """Do a thing.

    Attributes:
        hidden: Not shown.
    """
    name: ClassVar[str] = "made"
    summary = ("two " "parts")
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA, Need.LABELS})
    exact: ClassVar[bool] = True
    share: Annotated[float | None, Param(f"about {_HALF}", ge=0, lt=1)] = _HALF
    scope: Annotated[Scope, Param("scope")] = "a"
    method: Annotated[Method, Param("method")] = Method.TWO
    must: Annotated[int, Param("given", ge=-1)]
'''


def test_source_is_read_through_constants_aliases_enums_and_bases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "made_for_this_test.py"
    file.write_text(SOURCE)
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    found = from_source(Entry("made", "onnxpress", "passes.made_for_this_test"))
    assert (found.summary, found.details) == ("two parts", "Do a thing.")
    assert (found.needs, found.exact) == (("data", "labels"), True)
    rows = [(p.name, p.kind, p.default, p.help, p.bounds) for p in found.parameters]
    assert rows == [
        ("include", "list of text", "none", "which", ""),
        ("share", "number | none", "0.5", "about 0.5", "0 <= x < 1"),
        ("scope", "a | b", "a", "scope", ""),
        ("method", "uno | two", "two", "method", ""),
        ("must", "integer", "", "given", ">= -1"),
    ]


def test_computed_declarations_are_left_to_the_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "computed_for_this_test.py"
    file.write_text(SOURCE.replace("= _HALF", "= max(1, 2)"))
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(NotStaticError):
        from_source(Entry("made", "onnxpress", "passes.computed_for_this_test"))
