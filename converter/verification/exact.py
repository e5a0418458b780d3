"""A quick comparison of a model before and after a pass on few samples, as it is written down.

onnxruntime's own optimizations are off, so that they cannot hide what a pass did; very large graphs
are the exception, and packed ones: their decoders take far more memory than what they decode.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.core.context import Batch
from converter.core.packed import is_packed
from converter.execution import sandbox
from converter.execution.runner import materialize
from converter.measure.difference import OutputDifference
from converter.verification.compare import Work, compare

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import RunSettings

MOST_BATCHES = 4
TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference over the largest value of an output that still counts as equal.

Folding a BatchNorm or another order of a sum moves float32 outputs of deep models by up to 1e-4 of
their size; a wrong rewrite moves them by far more than ten times that.
"""
_LOOSEST = 2e-1
_LARGE_GRAPH = 5000
"""Nodes from which on onnxruntime may optimize: without, it plans memory in quadratic time."""
NEAR_TIES = 1e-3
"""Share of elements of an integer or boolean output that may differ.

Class maps and 8-bit outputs are decisions about floating-point numbers: the same rounding that the
tolerance above allows can tip one that is nearly tied. A wrong rewrite changes far more of them.
"""


@dataclass(frozen=True)
class Difference:
    """The distance between two models.

    Attributes:
        max_abs: Largest absolute difference of any output.
        max_rel: The same divided by the largest value of its output; the largest of all outputs.
        equal: Within :data:`TOLERANCE`, and nothing broken.
        broken: An output has another shape or type, or NaN or infinity where there was none.
        worst_output: Name of the output that is furthest off, or empty.
        detail: One phrase for messages.
    """

    max_abs: float
    max_rel: float
    equal: bool
    broken: bool
    worst_output: str
    detail: str


def compare_models(
    before: ir.Model,
    after: ir.Model,
    dataset: Iterable[Batch | Mapping[str, Any]],
    *,
    settings: RunSettings,
) -> Difference:
    """Run both models on the first few batches in a child process.

    Args:
        before: The model to hold against.
        after: The changed model.
        dataset: A data set, or plain feeds.
        settings: Limits, threads, folder for temporary files.

    Raises:
        VerificationError: ``after`` has other inputs or outputs, or cannot be run.
        ModelError: ``before`` cannot be run.
    """
    import onnxruntime  # noqa: F401 - imported here, every child has it

    with tempfile.TemporaryDirectory(prefix="exact-", dir=settings.workspace) as folder:
        large = max(before.graph.num_nodes(), after.graph.num_nodes()) > _LARGE_GRAPH
        work = Work(
            materialize(before, Path(folder)),
            materialize(after, Path(folder)),
            settings,
            optimize=large or is_packed(before) or is_packed(after),
            most_batches=MOST_BATCHES,
        )
        found = sandbox.call(
            _compare,
            work,
            dataset,
            limits=settings.limits,
            on_progress=lambda _: None,
            task="comparing the models",
        )
    return summarize([OutputDifference(**o) for o in found["outputs"]])


def _compare(
    work: Work,
    dataset: Iterable[Batch | Mapping[str, Any]],
    *,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    batches = (item if isinstance(item, Batch) else Batch(item) for item in dataset)
    return compare(work, batches, progress=progress)


def summarize(outputs: list[OutputDifference]) -> Difference:
    """Decide whether outputs are equal enough."""
    compared = [o for o in outputs if not o.random]
    wrong = [o for o in outputs if o.broken or not _close(o)]
    worst = max(wrong or compared, key=lambda o: (bool(o.broken), o.max_rel), default=None)
    return Difference(
        max_abs=max((o.max_abs for o in compared), default=0.0),
        max_rel=max((o.max_rel for o in compared), default=0.0),
        equal=not wrong,
        broken=any(o.broken for o in compared),
        worst_output=worst.name if worst else "",
        detail=_words(worst) if worst else "no output could be compared by value",
    )


def _close(output: OutputDifference) -> bool:
    if output.random or not output.unequal:
        return True
    if _is_decision(output):
        return output.unequal <= NEAR_TIES * output.elements
    return output.max_rel <= TOLERANCE.get(output.dtype, _LOOSEST)


def _is_decision(output: OutputDifference) -> bool:
    """Whole numbers, booleans and text, also inside sequences and maps."""
    return output.kind == "exact" or (output.kind == "other" and "float" not in output.dtype)


def _words(output: OutputDifference) -> str:
    if output.broken:
        return f"output {output.name!r}: {output.broken}"
    if _is_decision(output):
        return f"output {output.name!r}: {output.unequal} of {output.elements} elements differ"
    allowed = TOLERANCE.get(output.dtype, _LOOSEST)
    return (
        f"output {output.name!r} differs by up to {output.max_abs:.3g}, {output.max_rel:.2g} of "
        f"its largest value (allowed {allowed:g})"
    )
