"""Trying one file in a child process, as a careful program would."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hostile.builders import CANARY, FILE, Case

from converter.core.context import Limits
from converter.errors import ConverterError, LimitExceededError
from converter.execution import sandbox

LIMITS = Limits(seconds=10, memory_bytes=1 << 30)
OUTPUT = "out"


@dataclass(frozen=True)
class Result:
    """How an attempt ended.

    Attributes:
        verdict: ``accept``, ``reject``, or what must never be: ``crash``, ``limit``, ``foreign``.
        text: The message.
        code: Exit code of the error.
        leaked: The secret is in the output or in the message.
    """

    verdict: str
    text: str = ""
    code: int = 0
    leaked: bool = False


def prepare(case: Case, folder: Path) -> None:
    """Write a case into ``folder / "model"`` and the secret beside that."""
    (folder / "model").mkdir(parents=True)
    (folder / OUTPUT).mkdir()
    (folder / "secret.bin").write_bytes(CANARY * 8)
    case.make(folder / "model")


def attempt(folder: Path, use: Callable[[Path, Path], None], *, bare: bool) -> Result:
    """Use a prepared file, by its full path or by its bare name in the current folder.

    Args:
        folder: Of :func:`prepare`.
        use: Called in the child with the model's path and a path to write to.
        bare: Change into the folder and use the name alone.
    """
    here = folder / "model"
    target = folder / OUTPUT / f"{'bare' if bare else 'full'}.onnx"
    try:
        verdict, text, code = sandbox.call(_child, here, target, use, bare, limits=LIMITS)
    except LimitExceededError as error:
        verdict, text, code = "limit", str(error), 0
    except ConverterError as error:
        verdict, text, code = "crash", str(error), 0
    leaked = CANARY[:16].decode() in text or any(
        CANARY[:16] in path.read_bytes() for path in (folder / OUTPUT).iterdir()
    )
    return Result(verdict, text, code, leaked)


def _child(
    folder: Path, target: Path, use: Callable[[Path, Path], None], bare: bool
) -> tuple[str, str, int]:
    path = folder / FILE
    if bare:
        os.chdir(folder)
        path = Path(FILE)
    try:
        use(path, target)
    except ConverterError as error:
        return "reject", str(error), error.exit_code
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - exactly what must not happen
        return "foreign", f"{type(error).__name__}: {error}", 0
    return "accept", "", 0
