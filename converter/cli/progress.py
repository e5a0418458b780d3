"""Progress bars on stderr; nothing at all when stderr is no terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from converter.core.observe import Progress, Silent
from converter.report.words import clean

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.contract import Pass
    from converter.core.run import Step


class Bars:
    """A :class:`converter.core.observe.Progress` with one bar per task; tasks may nest."""

    def __init__(self) -> None:
        self._live: Any = None
        self._tasks: list[Any] = []

    def start(self, task: str, total: int | None) -> None:
        """Show a bar; without a total it only pulses."""
        if self._live is None:
            from rich import progress
            from rich.console import Console

            self._live = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(bar_width=30),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._live.start()
        self._tasks.append(self._live.add_task(clean(task), total=total))

    def advance(self, amount: int = 1) -> None:
        """Move the innermost bar."""
        if self._tasks:
            self._live.advance(self._tasks[-1], amount)

    def stop(self) -> None:
        """Take the innermost bar away."""
        if self._tasks:
            self._live.remove_task(self._tasks.pop())
        if not self._tasks:
            self.close()

    def close(self) -> None:
        """Take everything away, also the bars of tasks that an error cut off."""
        self._tasks.clear()
        if self._live is not None:
            self._live.stop()
            self._live = None


class PassBars:
    """Shows which pass is running; an :class:`converter.core.observe.Observer`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def before(self, pass_: Pass, model: ir.Model) -> None:
        """Start a bar for the pass."""
        del model
        self._progress.start(str(pass_), None)

    def after(self, pass_: Pass, model: ir.Model, step: Step) -> None:
        """Take it away."""
        del pass_, model, step
        self._progress.stop()

    def failed(self, pass_: Pass, model: ir.Model, error: Exception) -> None:
        """Take it away."""
        del pass_, model, error
        self._progress.stop()


@contextlib.contextmanager
def watching(*, quiet: bool) -> Iterator[Progress]:
    """Give bars while somebody watches, else silence; the terminal is left clean in any case."""
    if quiet or not sys.stderr.isatty():
        yield Silent()
        return
    bars = Bars()
    try:
        yield bars
    finally:
        bars.close()
