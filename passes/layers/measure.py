"""What blocks do to what they are given, and what the model's outputs lose without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converter.core import graph as g
from converter.measure.damage import Damage, DamageMeter
from passes.equalization.reduction import reduce
from passes.layers.blocks import Block, Sizes

if TYPE_CHECKING:
    from converter.core.context import Batch, Context

Array = np.ndarray[Any, Any]
_SLIGHT = 0.02
"""Power of the mean over that of what is left, below which giving it back is not worth a node."""
_BY_CHANNEL = ("Conv", "ConvTranspose", "BatchNormalization", "MaxPool", "AveragePool")


@dataclass(frozen=True, eq=False)
class Effect:
    """What a block does to its input.

    Attributes:
        error: Power of output minus input, less its mean by channel, over the output's power.
        mean: Of output minus input, float64 (channels,); zeros where it is too small to matter.
        axis: Of the channels, negative.
    """

    error: float
    mean: Array
    axis: int


def effects(
    model: ir.Model,
    blocks: Sequence[Block],
    sizes: Sizes,
    context: Context,
    batches: Sequence[Batch],
) -> dict[tuple[str, int], Effect]:
    """Run the model once over the samples and return the effect of every block, by its key.

    Raises:
        ConverterError: The model cannot be run on the samples.
    """
    probe = _Probe(model, sizes)
    for block in blocks:
        probe.add(block)
    feeds = [batch.inputs for batch in batches]
    found = context.run(probe.model, feeds, probe.names)
    weights = np.asarray([batch.samples for batch in batches], np.float64)
    return {block.key: probe.read(block, found, weights / weights.sum()) for block in blocks}


class _Probe:
    """A copy of a model whose outputs are the moments of blocks."""

    def __init__(self, model: ir.Model, sizes: Sizes) -> None:
        self.model = model.clone()
        self.names: list[str] = []
        self._sizes = sizes
        self._used = g.Names(self.model)
        self._nodes = {node.outputs[0].name: node for node in self.model.graph if node.outputs}
        self._parts: dict[tuple[str, int], tuple[str, str, str]] = {}
        self.model.graph.outputs.clear()

    def add(self, block: Block) -> None:
        node = self._nodes[block.key[0]]
        given, made = node.inputs[block.position], node.outputs[0]
        assert given is not None
        rank = len(self._sizes[made.name or ""])
        axis = rank + channel_axis(block, rank)
        made, given = self._float(made), self._float(given)
        change = self._node("Sub", [made, given])
        everywhere = list(range(rank))
        others = [i for i in everywhere if i != axis]
        means = [
            reduce(self.model, change, "ReduceMean", others, self._used),
            self._power(change, everywhere),
            self._power(made, everywhere),
        ]
        self.model.graph.outputs.extend(means)
        names = [value.name or "" for value in means]
        self.names += names
        self._parts[block.key] = (names[0], names[1], names[2])

    def read(self, block: Block, found: Sequence[Mapping[str, Array]], weights: Array) -> Effect:
        mean, change, power = (
            sum(w * row[name].astype(np.float64) for w, row in zip(weights, found, strict=True))
            for name in self._parts[block.key]
        )
        rank = len(self._sizes[block.key[0]])
        vector = np.atleast_1d(np.asarray(mean))
        left = max(0.0, float(change) - float(np.mean(vector**2)))
        if float(np.mean(vector**2)) <= _SLIGHT * left:
            vector, left = np.zeros_like(vector), float(change)
        error = left / float(power) if float(power) > 0 else float(left > 0)
        return Effect(error, vector, channel_axis(block, rank))

    def _power(self, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        square = self._node("Mul", [value, value])
        return reduce(self.model, square, "ReduceMean", axes, self._used)

    def _float(self, value: ir.Value) -> ir.Value:
        if value.dtype in {None, ir.DataType.FLOAT}:
            return value
        made = self._node("Cast", [value])
        producer = made.producer()
        assert producer is not None
        producer.attributes.add(ir.AttrInt64("to", ir.DataType.FLOAT))
        return made

    def _node(self, op_type: str, inputs: Sequence[ir.Value]) -> ir.Value:
        output = ir.Value(
            name=self._used.fresh(f"{inputs[0].name}_{op_type}"),
            type=ir.TensorType(ir.DataType.FLOAT),
        )
        self.model.graph.append(ir.Node("", op_type, inputs, outputs=[output], name=output.name))
        return output


def channel_axis(block: Block, rank: int) -> int:
    """Return the axis of the channels of what a block makes, counted from the end.

    Convolutions have it behind the batch; of everything else it is the last one.
    """
    convolution = rank > 3 or any(g.is_op(node, *_BY_CHANNEL) for node in block.nodes)
    if rank > 3 and any(g.is_op(n, "MatMul", "LayerNormalization") for n in block.nodes):
        convolution = False
    return 1 - rank if convolution else -1


@dataclass(frozen=True, eq=False)
class Outputs:
    """The outputs of the original, which changed models are held against.

    Attributes:
        context: Runs models.
        batches: What models are run on.
        expected: Outputs of the original.
    """

    context: Context
    batches: Sequence[Batch]
    expected: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, context: Context, model: ir.Model, batches: Sequence[Batch]) -> Outputs:
        """Run the original.

        Raises:
            ConverterError: It cannot be run.
        """
        return cls(context, batches, _run(context, model, batches))

    def damage(self, model: ir.Model) -> Damage:
        """Run a changed model and compare.

        Raises:
            ConverterError: It cannot be run.
        """
        meter = DamageMeter()
        actual = _run(self.context, model, self.batches)
        for batch, old, new in zip(self.batches, self.expected, actual, strict=True):
            meter.update(old, new, batch.targets, batch.samples)
        return meter.result()


def _run(context: Context, model: ir.Model, batches: Sequence[Batch]) -> list[dict[str, Any]]:
    names = [value.name or "" for value in model.graph.outputs]
    return context.run(model, [batch.inputs for batch in batches], names)
