"""Atomic replacement of any file."""

from __future__ import annotations

import os
import time

import pytest

from converter.errors import UsageError
from converter.io import atomic


def test_text_replaces_a_file_as_a_whole(tmp_path):
    target = tmp_path / "report.json"
    atomic.write_text(target, "one")
    atomic.write_text(target, "zwei ü")
    assert target.read_text(encoding="utf-8") == "zwei ü"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_an_error_in_the_block_keeps_the_old_file(tmp_path):
    target = tmp_path / "a"
    atomic.write_text(target, "old")

    def fail() -> None:
        with atomic.replace_file(target) as file:
            file.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_bare_name_is_written_into_the_current_folder(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    atomic.write_text(Path("a.txt"), "x")
    assert (tmp_path / "a.txt").read_text() == "x"


def test_left_over_files_of_dead_writers_are_removed(tmp_path):
    dead = 2**22 + 12345
    here, there = atomic._host(), "00000000"
    names = {
        f".{here}-{dead}-00000001.onnxpress-tmp": False,
        f".{here}-{os.getpid()}-00000002.onnxpress-tmp": True,
        f".{there}-{dead}-00000003.onnxpress-tmp": True,
        f".{there}-{dead}-00000004.onnxpress-tmp": False,
        "mine.onnxpress-tmp": True,
    }
    for name in names:
        (tmp_path / name).write_bytes(b"")
    old = time.time() - 48 * 3600
    os.utime(tmp_path / f".{there}-{dead}-00000004.onnxpress-tmp", (old, old))
    atomic.write_text(tmp_path / "a", "x")
    assert {name for name in names if (tmp_path / name).exists()} == {
        name for name, kept in names.items() if kept
    }


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b"])
def test_names_that_are_none_are_refused(tmp_path, name):
    with pytest.raises(UsageError):
        atomic.write_text(tmp_path / name, "x")
