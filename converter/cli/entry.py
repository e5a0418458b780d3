"""The program ``convert``: finds the command, runs it, and turns every end into an exit code.

A conversion needs no command word: ``convert in.onnx out.onnx``. The first word is a command only
if it is exactly one and no file has that name; ``--`` ends the options.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converter.cli.streams import harden_streams, silence_stdout
from converter.errors import ConverterError

DEFAULT = "convert"
COMMANDS = ("inspect", "verify", "bench", "sensitivity", "debug", "passes")
INTERRUPTED = 130
_SHARED = ("--debug", "--quiet")
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see :mod:`converter.errors` for the codes)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    harden_streams()
    program = _program()
    name, rest = split_command(arguments)
    try:
        code = _dispatch(program, name, rest)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        silence_stdout()
        return 0
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback for users
        cause = _root(error)
        words = program if name == DEFAULT else f"{program} {name}"
        code = INTERRUPTED
        if not isinstance(cause, KeyboardInterrupt):
            code = _explain(program, cause, debug="--debug" in arguments, words=words)
    if code == INTERRUPTED:  # typer catches Ctrl-C too and returns the code
        _complain(program, "interrupted", prefix="")
    return code


def split_command(arguments: list[str]) -> tuple[str, list[str]]:
    """Find the command in the arguments.

    Switches that every command has may stand before it. Anything that is no command is the default
    one: a conversion.
    """
    leading = 0
    while leading < len(arguments) and arguments[leading] in _SHARED:
        leading += 1
    first = arguments[leading] if leading < len(arguments) else ""
    if first in COMMANDS and not Path(first).is_file():
        return first, [*arguments[:leading], *arguments[leading + 1 :]]
    return DEFAULT, arguments


def _dispatch(program: str, name: str, rest: list[str]) -> int:
    if name == DEFAULT and not rest:
        rest = ["--help"]
    if "--debug" in rest:
        logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
        for package in ("converter", "passes"):
            logging.getLogger(package).setLevel(logging.DEBUG)
    # Modules and models are a million objects that stay: looking for garbage among them at the
    # usual pace takes a fifth of the time.
    gc.set_threshold(100_000, 50, 50)
    from converter.cli.app import command
    from converter.cli.late import import_late

    import_late()
    words = program if name == DEFAULT else f"{program} {name}"
    result: Any = command(name).main(rest, prog_name=words, standalone_mode=False)
    return result if isinstance(result, int) else 0


def _program() -> str:
    """The name under which the program was called: ``convert``, ``onnxpress`` or the module."""
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "convert"
    return "python -m converter" if name == "__main__.py" else name.removesuffix(".exe")


def _root(error: BaseException) -> BaseException:
    """Find what really stopped the program.

    Ctrl-C and the time limit can strike in the middle of an import, where C code turns them into an
    ImportError of its own.
    """
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, ConverterError | KeyboardInterrupt):
            return current
        current = current.__cause__ or current.__context__
    return error


def _explain(program: str, error: BaseException, *, debug: bool, words: str) -> int:
    """Print one paragraph about an error and return its exit code."""
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, ConverterError):
        _complain(program, str(error))
        return error.exit_code
    if hasattr(error, "format_message"):  # usage errors of the command-line library
        hint = f"Try: {words} --help"
        _complain(program, f"{error.format_message().rstrip('.')}. {hint}")
        return 2
    if isinstance(error, MemoryError):
        _complain(program, "there is not enough memory. What to do: use a machine with more.")
        return 3
    if isinstance(error, OSError) and error.errno in _WRITE_ERRORS:
        _complain(program, f"writing failed: {error.strerror}. Where: {error.filename}.")
        return 8
    _complain(
        program,
        f"internal error: {type(error).__name__}: {error}. What to do: this is a defect of the "
        "program; run again with --debug and report what it prints.",
    )
    return 1


def _complain(program: str, message: str, *, prefix: str = "error: ") -> None:
    from converter.report.words import clean

    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{program}: {prefix}{clean(message)}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
