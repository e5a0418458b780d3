"""Cross-layer equalization: channels of neighbouring layers get ranges that 8 bits hold better."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np

from converter.core import graph as g
from converter.core.contract import Outcome, Pass, Skip
from converter.core.params import Param
from converter.core.select import Selection
from passes.equalization.absorb import absorb, ways
from passes.equalization.channels import trace
from passes.equalization.flow import Flow
from passes.equalization.layers import Array, scale_vector, scale_weight
from passes.equalization.limits import Limits
from passes.equalization.solve import movable, solve

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context

_WORTH = 0.1  # octaves: where no channel would move further, all are equal already


@dataclass(frozen=True)
class Equalize(Pass):
    """Divide a channel where it is made and multiply it where it is read, so that ranges get equal.

    The outputs stay equal up to rounding. Ranges of weights follow Nagel et al. 2019, arXiv
    1906.04721; chains and branches of layers are solved together until nothing moves. Where a
    Clip (ReLU6) lies between, samples tell how far a channel may be stretched before it would
    reach the clip. Zeros stay zero. It pays before quantization with one scale per tensor.
    """

    name: ClassVar[str] = "equalize"
    summary: ClassVar[str] = "equal ranges of channels from layer to layer, before quantization"
    reads_weights: ClassVar[bool] = True
    follows: ClassVar[frozenset[str]] = frozenset(
        {"simplify", "fuse", "prune", "prune_channels", "drop_layers"}
    )
    exact: ClassVar[bool] = True
    idempotent: ClassVar[bool] = False  # deep nets are left a bit before nothing moves at all

    absorb: Annotated[
        bool, Param("move the part of a bias that never reaches zero into the next layer's bias")
    ] = True
    include: Annotated[
        tuple[str, ...], Param("layers to change: name, glob or op:TYPE; all when empty")
    ] = ()
    exclude: Annotated[tuple[str, ...], Param("layers to leave as they are")] = ()

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Equalize every graph of the model; samples are used where there are any.

        Raises:
            ConverterError: The model cannot be run on the calibration data.
        """
        selection = Selection(self.include, self.exclude)
        nodes = list(g.walk(model))
        skipped = selection.misses(nodes)
        counts = {"layers_rescaled": 0.0, "channels_rescaled": 0.0, "largest_factor": 1.0}
        notes: list[str] = []
        for graph in g.graphs(model):
            flow = trace(graph, selection.__contains__)
            takes = ways(flow) if self.absorb and graph is model.graph else {}
            limits = Limits(model, flow, takes, context if graph is model.graph else None)
            factors = solve(flow, limits.low, limits.high)
            if np.abs(np.log2(factors)).max(initial=0.0) >= _WORTH:
                _rescale(flow, factors, counts)
            else:
                factors = np.ones_like(factors)
            shifted = absorb(takes, factors, limits.seen, counts)
            _rename(flow, factors, shifted, model)
            skipped += _left(flow)
            skipped += limits.skipped
            notes += limits.notes
        modified = bool(counts["layers_rescaled"] or counts.get("biases_absorbed"))
        return Outcome(modified, counts if modified else {}, tuple(skipped), tuple(notes))


def _rescale(flow: Flow, factors: Array, counts: dict[str, float]) -> None:
    """Write the factors into weights, biases and added constants."""
    made = {side.layer: side.ids for side in flow.writers}
    read = {side.layer: side.ids for side in flow.readers}
    for layer, ids in made.items():
        outputs = factors[ids]
        inputs = factors[read[layer]] if layer in read else np.ones(layer.inputs)
        if (inputs == 1.0).all() and (outputs == 1.0).all():
            continue
        scale_weight(layer, inputs, outputs)
        if layer.bias is not None:
            _divide(layer.bias, outputs)
        counts["layers_rescaled"] += 1
    for vector in flow.vectors:
        _divide(vector.value, factors[vector.ids])
    moved = factors[factors != 1.0]
    counts["channels_rescaled"] += moved.size
    largest = float(np.exp2(np.abs(np.log2(moved)).max(initial=0.0)))
    counts["largest_factor"] = max(counts["largest_factor"], largest)


def _rename(flow: Flow, factors: Array, shifted: Iterable[ir.Value], model: ir.Model) -> None:
    """Give values that hold other numbers now other names: nobody compares them with the old."""
    moved = {v: None for v, c in flow.channels.items() if (factors[c.ids] != 1.0).any()}
    moved.update(dict.fromkeys(shifted))
    names = g.Names(model) if moved else None
    for value in moved:
        if names is not None and value.name:
            value.name = names.fresh(f"{value.name}_equalized")


def _divide(value: ir.Value, divisors: Array) -> None:
    array = g.constant_array(value)
    if array is not None and array.any() and (divisors != 1.0).any():
        scale_vector(value, 1.0 / divisors)


def _left(flow: Flow) -> Iterator[Skip]:
    """Name the layers none of whose output channels could be scaled, each with one reason."""
    for node, reason in flow.refused:
        yield Skip(g.label(node), reason)
    free = movable(flow)
    why = {int(i): reason for ids, reason in reversed(flow.frozen) for i in ids}
    for side in flow.writers:
        if not free[side.ids].any():
            reason = next((why[int(i)] for i in side.ids if int(i) in why), "no layer reads it")
            yield Skip(g.label(side.layer.node), f"its output is {reason}", minor=True)
