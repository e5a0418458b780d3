"""References to functions: how they are told from files, and where they are looked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from converter.core.factory import resolve, split_reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pkg.mod:function", ("pkg.mod", "function")),
        ("mod:Class.method", ("mod", "Class.method")),
        ("mod", None),
        ("mod:", None),
        (":function", None),
        ("folder/mod:function", None),
        ("model.onnx", None),
        ("a:b:c", None),
    ],
)
def test_a_reference_is_a_dotted_name_on_each_side(
    text: str, expected: tuple[str, str] | None
) -> None:
    assert split_reference(text) == expected


def test_a_file_of_that_name_is_no_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_reference("model:v2") is not None
    (tmp_path / "model:v2").touch()
    assert split_reference("model:v2") is None


def test_the_current_folder_is_searched_and_the_path_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_factory_module.py").write_text("class A:\n    make = staticmethod(int)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    before = list(sys.path)
    assert resolve("my_factory_module", "A.make") is int
    assert sys.path == before
    monkeypatch.delitem(sys.modules, "my_factory_module")
