"""Rounding the weights of a model one after the other, each on the inputs it will really get.

A few stages of consecutive layers: for each, the float model and the one whose earlier weights are
rounded already run side by side over the samples (:mod:`passes.encoding.inputs`), then the weights
of the stage are rounded, and so on. Where a layer has a constant bias, the bias takes up what the
means of the outputs moved by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from converter.core import graph as g
from passes.affine.eligible import bias_add
from passes.encoding.inputs import Inputs, Source, collect, source
from passes.rounding.gptq import MOST_COLUMNS

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Context
    from passes.encoding.weights import Weight

Array = np.ndarray[Any, Any]

STAGES = 12
_MOST_GRAM_BYTES = 256 << 20
"""Of one stage, in the child and here."""


class Chosen(Protocol):
    """What a weight becomes."""

    def numbers(self) -> Array:
        """Return float32 (rows, columns)."""


Choose = Callable[["Weight", Inputs | None], Chosen]


@dataclass
class Fit:
    """What was found.

    Attributes:
        codes: By name of the weight.
        biases: New biases by name of the old one.
        unseen: Weights whose inputs could not be looked at, or are too many.
    """

    codes: dict[str, Chosen] = field(default_factory=dict)
    biases: dict[str, Array] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)


def fit(model: ir.Model, weights: Sequence[Weight], choose: Choose, context: Context) -> Fit:
    """Choose the codes of every weight, in the order of the model.

    Args:
        model: The float model; left as it is.
        weights: Weights of it.
        choose: Gives the codes of one weight for the sums over its inputs; None: not known.
        context: Has the samples.

    Raises:
        ConverterError: The model cannot be run on the samples.
    """
    student = model.clone()
    found = Fit()
    context.progress.start("rounding weights", len(weights))
    for stage in _stages(model, weights):
        seen = _inputs(model, student, stage, context)
        changed: dict[str, Array] = {}
        for weight, inputs in zip(stage, seen, strict=True):
            if inputs is None:
                found.unseen.append(weight.name)
            bias = None if inputs is None else _bias(weight)
            prepared = _prepared(inputs, centre=bias is not None)
            chosen = choose(weight, prepared)
            found.codes[weight.name] = chosen
            rows = chosen.numbers()
            changed[weight.name] = _whole(weight, rows)
            if bias is not None and prepared is not None:
                moved = _moved(weight, rows, prepared)
                found.biases[bias.name or ""] = changed[bias.name or ""] = _with(bias, moved)
            context.progress.advance(1)
        assign(student, changed)
    context.progress.stop()
    return found


def assign(model: ir.Model, arrays: dict[str, Array]) -> None:
    """Give constants of the main graph, by name, new elements of their own type."""
    for name, array in arrays.items():
        value = model.graph.initializers.get(name)
        if value is not None and value.const_value is not None:
            g.set_constant(value, array.astype(value.const_value.dtype.numpy()))


def _stages(model: ir.Model, weights: Sequence[Weight]) -> Iterator[list[Weight]]:
    """Cut the weights, in the order of their first users, into runs of about equal length."""
    place = {node: at for at, node in enumerate(model.graph)}
    ranked = sorted(weights, key=lambda w: place.get(w.uses[0][0], -1))
    most = max(1, -(-len(ranked) // STAGES))
    stage: list[Weight] = []
    nbytes = 0
    for weight in ranked:
        size = 16 * weight.view.summed**2
        if stage and (len(stage) >= most or nbytes + size > _MOST_GRAM_BYTES):
            yield stage
            stage, nbytes = [], 0
        stage.append(weight)
        nbytes += size
    if stage:
        yield stage


def _inputs(
    model: ir.Model, student: ir.Model, stage: Sequence[Weight], context: Context
) -> list[Inputs | None]:
    """Return the sums over the inputs of every weight of a stage."""
    sources = [_sources(model, weight) for weight in stage]
    wanted = list(dict.fromkeys(s for several in sources for s in several))
    if not wanted:
        return [None] * len(stage)
    seen = dict(zip(wanted, collect(model, student, wanted, context), strict=True))
    return [
        _matching(weight, _sum(seen[s] for s in several))
        for weight, several in zip(stage, sources, strict=True)
    ]


def _sources(model: ir.Model, weight: Weight) -> list[Source]:
    """Return where the inputs of all users come from; none when one of them is not known."""
    if weight.embedding or not weight.value.is_initializer():
        return []
    if weight.view.summed > MOST_COLUMNS:
        return []
    if len({use.node for use in weight.value.uses()}) != len({node for node, _ in weight.uses}):
        return []
    found = []
    for node, port in weight.uses:
        at = source(node, port, weight.shape) if node.graph is model.graph else None
        if at is None:
            return []
        found.append(at)
    return found


def _sum(several: Iterable[Inputs | None]) -> Inputs | None:
    total: Inputs | None = None
    for each in several:
        if each is None:
            return None
        if total is None:
            total = each
        elif total.gram.shape == each.gram.shape:
            total = Inputs(*(getattr(total, name) + getattr(each, name) for name in vars(each)))
        else:
            return None
    return total


def _matching(weight: Weight, inputs: Inputs | None) -> Inputs | None:
    if inputs is None:
        return None
    groups, columns = inputs.sums.shape
    fits = columns == weight.view.summed and weight.view.rows % groups == 0
    return inputs if fits else None


def _prepared(inputs: Inputs | None, *, centre: bool) -> Inputs | None:
    """Return sums per row; centred where a bias takes up the means."""
    if inputs is None:
        return None
    if centre:
        return inputs.centred()
    count = max(1, inputs.count)
    return Inputs(
        inputs.count,
        inputs.gram / count,
        inputs.cross / count,
        inputs.sums / count,
        inputs.expected / count,
    )


def _bias(weight: Weight) -> ir.Value | None:
    """Return the constant bias that is added to the outputs of this weight alone."""
    node, port = weight.uses[0]
    if len(weight.uses) != 1 or port != 1:
        return None
    value = None
    if g.is_op(node, "Conv", "Gemm") and len(node.inputs) > 2:
        same = node.attributes.get_float("alpha", 1.0) == node.attributes.get_float("beta", 1.0)
        value = node.inputs[2] if same == 1.0 else None
    elif g.is_op(node, "MatMul"):
        add = bias_add(node)
        value = None if add is None else add[0].inputs[add[1]]
    if value is None or not value.is_initializer() or g.constant(value) is None:
        return None
    alone = len(list(value.uses())) == 1 and not value.is_graph_output()
    array = g.constant_array(value)
    fits = array is not None and array.size == weight.view.rows
    return value if alone and fits and value.graph is node.graph else None


def _moved(weight: Weight, rows: Array, inputs: Inputs) -> Array:
    """Return by how much the mean of every output has to be raised: float64 (rows,)."""
    groups, columns = inputs.sums.shape
    exact = weight.rows().astype(np.float64).reshape(groups, -1, columns)
    rounded = rows.astype(np.float64).reshape(groups, -1, columns)
    wanted = exact @ inputs.expected[:, :, None] - rounded @ inputs.sums[:, :, None]
    return np.asarray(wanted.reshape(-1))


def _with(bias: ir.Value, moved: Array) -> Array:
    array = g.constant_array(bias)
    assert array is not None
    return np.asarray(array.astype(np.float64) + moved.reshape(array.shape))


def _whole(weight: Weight, rows: Array) -> Array:
    return weight.view.to_cube(rows).reshape(weight.shape)
