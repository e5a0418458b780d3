"""Progress bars: only for somebody who watches, and never left standing."""

from __future__ import annotations

import io
import sys

import pytest

from converter.cli.progress import Bars, watching
from converter.core.observe import Silent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_silence_without_a_terminal(capsys) -> None:
    with watching(quiet=False) as progress:
        assert isinstance(progress, Silent)
        progress.start("work", 3)
        progress.advance()
        progress.stop()
    assert capsys.readouterr() == ("", "")


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with watching(quiet=True) as progress:
        assert isinstance(progress, Silent)
    with watching(quiet=False) as progress:
        assert isinstance(progress, Bars)
        progress.start("outer \x1b[31m[red]", None)
        progress.start("inner", 3)
        progress.advance(2)
        progress.stop()
        progress.stop()
    text = sys.stderr.getvalue()
    assert "outer \\x1b[31m[red]" in text
    assert "\x1b[2K" in text[-20:]  # the last thing done is to erase the bar


def test_an_error_in_the_middle_gives_the_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")

    def work() -> None:
        with watching(quiet=False) as progress:
            progress.start("outer", None)
            progress.start("inner", None)
            raise ValueError("work failed")

    with pytest.raises(ValueError, match="work failed"):
        work()
    text = sys.stderr.getvalue()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # hidden as often as shown
