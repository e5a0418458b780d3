"""Standard output and error under all circumstances: odd names, and readers who left."""

from __future__ import annotations

import contextlib
import os
import sys


def harden_streams() -> None:
    """Let no file name and no model name break the output, whatever the terminal can show."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def silence_stdout() -> None:
    """Keep Python from complaining at exit that the reader of the output is gone."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
