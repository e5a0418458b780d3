"""What is left of the weights makes up for those that went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from converter.coupling.shapes import observe_shapes
from converter.measure.macs import sum_macs
from passes.reconstruction.fit import Method, Recipe
from passes.reconstruction.walk import reconstruct
from passes.removal.mirrored import with_copies
from passes.removal.samples import per_run, samples_for

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Batch, Context
    from passes.reconstruction.repair import Repair
    from passes.sparsity.counted import Counted
    from passes.sparsity.patterns import Pattern
    from passes.sparsity.problem import Recovery


class Recoverer:
    """Fits pruned models to one original.

    Args:
        teacher: The original; left as it is.
        context: Data and settings.
        method: How; not "none".

    Attributes:
        said: About the samples.
    """

    def __init__(self, teacher: ir.Model, context: Context, method: Recovery) -> None:
        self._teacher = teacher
        self._context = context
        self._method = method
        self._macs = sum_macs(teacher, observe_shapes(teacher, context))[0] / per_run(context)
        self._samples, self.said = samples_for(teacher, context, self._macs)

    def __call__(
        self,
        student: ir.Model,
        counted: Sequence[Counted],
        samples: Sequence[Batch] | None = None,
        *,
        choose: Pattern | None = None,
    ) -> Repair:
        """Fit a pruned model in place.

        Args:
            student: The model.
            counted: Its layers.
            samples: To fit on; None: all.
            choose: Which weights are zero is decided anew, layer by layer, in such units.
        """
        found = self._samples if samples is None else samples
        if self._method != "moments":
            found = with_copies(found, self._macs)
        method = self._method
        assert method != "none"
        return reconstruct(
            self._teacher.clone(),
            student,
            {},
            found,
            self._context.settings,
            recipe=_recipe(method, counted, choose),
            progress=self._context.progress,
        )


def _recipe(method: Method, counted: Sequence[Counted], choose: Pattern | None) -> Recipe:
    if choose is None:
        return Recipe(method=method)
    return Recipe(method=method, zeros=_zeros(counted), pattern=choose)


def _zeros(counted: Sequence[Counted]) -> Mapping[str, int]:
    """Return zeros by the name of what a layer makes, of tensors that one layer alone reads."""
    return {
        each.layer.nodes[0].outputs[0].name or "": each.after
        for each in counted
        if len(each.layer.nodes) == 1
    }
