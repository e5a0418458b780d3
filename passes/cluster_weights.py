"""Non-uniform weight quantization: each weight becomes an entry of a small table of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np

from converter.core import graph as g
from converter.core.contract import Outcome, Pass, Skip
from converter.core.params import Param
from converter.core.select import Selection
from passes.encoding.build import Builder, owner
from passes.encoding.cluster import cluster
from passes.encoding.fit import Fit, assign, fit
from passes.encoding.packed import OLDEST_OPSET
from passes.encoding.palette import ELEMENTS_OPSET, Palette, nbytes, write_palette
from passes.encoding.weights import Weight, find

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context
    from passes.encoding.inputs import Inputs

_GAIN = 0.95


@dataclass(frozen=True)
class ClusterWeights(Pass):
    """Store weights as indices into tables of ``2^bits`` numbers that suit them (k-means).

    A table follows the distribution of the weights, so it is more exact than a grid of as many
    integers. onnxruntime looks the numbers up once, while it loads the file, and runs at the speed
    of float weights. With calibration data the indices are chosen so that the outputs of each layer
    stay what they were.
    """

    name: ClassVar[str] = "cluster_weights"
    summary: ClassVar[str] = "store weights as indices into small tables of numbers"
    reads_weights: ClassVar[bool] = True
    follows: ClassVar[frozenset[str]] = frozenset(
        {"simplify", "fuse", "fold_constants", "prune", "prune_channels", "drop_layers"}
    )

    bits: Annotated[Literal[2, 4, 8], Param("width of an index", search=(4, 8))] = 4
    per: Annotated[
        Literal["tensor", "channel", "group"],
        Param(
            "what shares a table: all channels, each with a scale; a channel; or a group of them"
        ),
    ] = "tensor"
    group: Annotated[int, Param("channels of a group, for per=group", ge=1, le=65536)] = 16
    include: Annotated[tuple[str, ...], Param("nodes to take: name, glob or op:TYPE")] = ()
    exclude: Annotated[tuple[str, ...], Param("nodes to leave in float")] = ()

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Store every weight anew that becomes smaller by it.

        Raises:
            ConverterError: The model cannot be run on the calibration data.
        """
        weights, skipped = find(model, Selection(self.include, self.exclude))
        chosen: list[Weight] = []
        for weight in weights:
            reason = self._obstacle(weight, g.opset(model))
            if reason:
                skipped.append(Skip(weight.label, reason))
            else:
                chosen.append(weight)
        if not chosen:
            return Outcome(modified=False, skipped=tuple(skipped))

        def round_one(weight: Weight, inputs: Inputs | None) -> Palette:
            return cluster(weight.rows(), self.bits, self._tables(weight), inputs)

        if context.dataset is not None:
            found = fit(model, chosen, round_one, context)
        else:
            found = Fit({w.name: round_one(w, None) for w in chosen})
        counts: dict[str, float] = {
            "weights_clustered": len(chosen),
            "bytes_before": sum(w.tensor.nbytes for w in chosen),
            "bytes_after": sum(self._nbytes(w) for w in chosen),
        }
        _write(model, chosen, found)
        return Outcome(
            modified=True,
            counts=counts,
            skipped=tuple(skipped),
            notes=(_told(chosen, found, context),),
        )

    def _tables(self, weight: Weight) -> int:
        """Return the number of tables; groups are made a little smaller until they divide."""
        rows = weight.view.rows
        if self.per == "tensor":
            return 1
        size = 1 if self.per == "channel" else min(self.group, rows)
        while rows % size:
            size -= 1
        return rows // size

    def _nbytes(self, weight: Weight) -> int:
        tables = self._tables(weight)
        return nbytes(weight, tables, self.bits, scaled=tables < weight.view.rows)

    def _obstacle(self, weight: Weight, opset: int) -> str:
        tables = self._tables(weight)
        if opset < (OLDEST_OPSET if tables == 1 else ELEMENTS_OPSET):
            return f"opset {opset} is too old for the tables: raise it with convert_opset"
        if self._nbytes(weight) > _GAIN * weight.tensor.nbytes:
            return "too small: the file would not shrink"
        if not np.isfinite(weight.tensor.numpy()).all():
            return "the weight holds NaN or infinity"
        return ""


def _write(model: ir.Model, weights: list[Weight], found: Fit) -> None:
    names = g.Names(model)
    assign(model, found.biases)
    for weight in weights:
        palette = found.codes[weight.name]
        assert isinstance(palette, Palette)
        build = Builder(owner(weight.value, model), names, g.opset(model))
        write_palette(build, weight, palette)


def _told(weights: list[Weight], found: Fit, context: Context) -> str:
    if context.dataset is None:
        return "no data: tables and indices make the error of the weights themselves small"
    seen = len(weights) - len(found.unseen)
    without = f"; without: {len(found.unseen)}" if found.unseen else ""
    return (
        f"weights rounded with what their layers see of {context.dataset.samples} samples: "
        f"{seen}{without}"
    )
