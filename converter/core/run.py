"""What a run of a pipeline leaves behind: one step per pass, with before and after."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.contract import Outcome
    from converter.core.graph import Footprint


@dataclass(frozen=True)
class Step:
    """One pass of a run.

    Attributes:
        spec: Canonical text of the pass.
        seconds: Wall time, with the checks after it.
        outcome: What the pass reported; None when it failed and was rolled back.
        before, after: Size of the model before and after.
        error: Message of the failure that was skipped (``--on-failure skip``), else "".
        checked: What was checked after it: ``"structure"`` or ``"structure and outputs"``.
        max_difference: Largest absolute difference of an output to the model before the pass, or
            None when the outputs were not compared.
        interface_changes: Changes of inputs, outputs, opset or IR version that the pass declared.
    """

    spec: str
    seconds: float
    outcome: Outcome | None
    before: Footprint
    after: Footprint
    error: str = ""
    checked: str = "structure"
    max_difference: float | None = None
    interface_changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """The result of :meth:`Pipeline.run`.

    Attributes:
        model: The converted model.
        steps: One entry per pass.
        models: The model after each step; they share their tensors, so keeping them costs little.
    """

    model: ir.Model
    steps: tuple[Step, ...] = ()
    models: tuple[ir.Model, ...] = field(default=(), repr=False)
