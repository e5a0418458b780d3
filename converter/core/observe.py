"""Observers of a pipeline run: timing, progress, dumps. Passes carry none of it themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.contract import Pass
    from converter.core.run import Step


class Observer(Protocol):
    """Called by the pipeline around every pass. Must not change the model."""

    def before(self, pass_: Pass, model: ir.Model) -> None:
        """Called before a pass runs."""

    def after(self, pass_: Pass, model: ir.Model, step: Step) -> None:
        """Called after a pass ran and its result was accepted."""

    def failed(self, pass_: Pass, model: ir.Model, error: Exception) -> None:
        """Called after a failed pass was rolled back; ``model`` is the one before it."""


class Progress(Protocol):
    """Receives the advance of long work. The default of every function is :class:`Silent`."""

    def start(self, task: str, total: int | None) -> None:
        """A task with ``total`` units of work (None: unknown) begins."""

    def advance(self, amount: int = 1) -> None:
        """``amount`` more units are done."""

    def stop(self) -> None:
        """The task has ended."""


class Silent:
    """A :class:`Progress` that shows nothing."""

    def start(self, task: str, total: int | None) -> None:
        """Ignore."""

    def advance(self, amount: int = 1) -> None:
        """Ignore."""

    def stop(self) -> None:
        """Ignore."""
