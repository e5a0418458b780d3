"""Which word is a command, and what every end of the program becomes."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from converter.cli import entry
from converter.errors import (
    ConverterError,
    LimitExceededError,
    MissingDataError,
    SpecError,
    WriteError,
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("in.onnx out.onnx", ("convert", "in.onnx out.onnx")),
        ("inspect in.onnx", ("inspect", "in.onnx")),
        ("--debug inspect in.onnx", ("inspect", "--debug in.onnx")),
        ("-- inspect out.onnx", ("convert", "-- inspect out.onnx")),
        ("Inspect out.onnx", ("convert", "Inspect out.onnx")),
        ("--help", ("convert", "--help")),
        ("passes", ("passes", "")),
        ("", ("convert", "")),
    ],
)
def test_the_first_word_is_a_command_only_if_it_is_one(arguments: str, expected) -> None:
    name, rest = entry.split_command(arguments.split())
    assert (name, " ".join(rest)) == expected


def test_a_file_of_a_commands_name_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "inspect").write_bytes(b"")
    (tmp_path / "passes").mkdir()
    assert entry.split_command(["inspect", "out.onnx"])[0] == "convert"
    assert entry.split_command(["passes"])[0] == "passes"  # a folder is no model


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SpecError("no"), 2),
        (MissingDataError("no"), 5),
        (WriteError("no"), 8),
        (ConverterError("no"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 8),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 3),
        (ValueError("unforeseen\nthing\x1b[0m"), 1),
        (BrokenPipeError(), 0),
    ],
)
def test_every_error_is_one_paragraph_and_a_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(entry, "_dispatch", fail)
    monkeypatch.setattr(entry, "silence_stdout", lambda: None)
    assert entry.main(["a.onnx", "b.onnx"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == (0 if code == 0 else 1)
    assert "Traceback" not in captured.err
    assert "\x1b" not in captured.err


@pytest.mark.parametrize(
    ("cause", "code"), [(KeyboardInterrupt(), 130), (LimitExceededError("time is up"), 3)]
)
def test_what_an_import_made_of_an_interruption_is_seen_through(
    cause: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def fail(*_: object) -> int:
        try:
            raise cause
        except BaseException as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr(entry, "_dispatch", fail)
    assert entry.main(["a", "b"]) == code
    assert "internal error" not in capsys.readouterr().err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def fail(*_: object) -> int:
        raise SpecError("no")

    monkeypatch.setattr(entry, "_dispatch", fail)
    assert entry.main(["a", "b", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["only.onnx"], "Missing argument 'OUT'"),
        (["a", "b", "--pases", "x"], "--passes"),
        (["a", "b", "c"], "unexpected extra argument"),
        (["a", "b", "--samples", "0"], "--samples"),
        (["a", "b", "--samples", "many"], "--samples"),
        (["a", "b", "--check", "always"], "'end', 'each'"),
        (["a", "b", "--time-limit", "nan"], "--time-limit"),
        (["a", "b", "--time-limit", "0"], "--time-limit"),
        (["a", "b", "--seed", "-1"], "--seed"),
        (["a", "b", "--passes"], "requires an argument"),
        (["passes", "a", "b"], "more than one pass"),
        (["passes", "prun"], 'perhaps "prune" was meant'),
        (["verify", "a"], "Missing argument 'B'"),
        (["bench"], "Missing argument"),
    ],
)
def test_usage_errors(arguments: list[str], words: str, capsys) -> None:
    assert entry.main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("command", ["convert", "inspect", "verify", "bench", "passes"])
def test_every_command_has_help(command: str, capsys) -> None:
    arguments = ["--help"] if command == "convert" else [command, "--help"]
    assert entry.main(arguments) == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: ")
    assert max(map(len, text.splitlines())) <= 80
