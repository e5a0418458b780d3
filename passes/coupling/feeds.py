"""Inputs on which a cut model is compared with its masked original."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from converter.data.ports import Port, ports_of
from converter.data.synthetic import Recipe, Synthetic, make_synthetic
from converter.errors import ConverterError

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.context import Arrays, Batch, Context

_BATCHES = (1, 3)
_SAMPLES = 2
_LARGER = {8: 12, 224: 256, 512: 768}
"""Sizes of the second made-up input, by those of the first; see ``make_synthetic``."""


def feeds_for(model: ir.Model, context: Context) -> list[Arrays]:
    """Return inputs that the model takes: real samples, and made up ones in two sizes.

    Args:
        model: Left as it is.
        context: Runs the model; its data, if any, is used, too.
    """
    feeds: list[Arrays] = []
    data = context.dataset
    if data is not None and not data.synthetic:
        batch = next(iter(data), None)
        if batch is not None:
            feeds.append(_few(batch, model))
    sizes: list[dict[str, tuple[int, ...]]] = []
    for made in _made_up(model, context.seed):
        shapes = {name: array.shape for name, array in made.items()}
        if shapes not in sizes and _runs(model, made, context):
            feeds.append(made)
        sizes.append(shapes)
    return feeds


def _few(batch: Batch, model: ir.Model) -> Arrays:
    """Return the first samples of a batch, where the model takes any number of them."""
    ports = ports_of(model)
    per_sample = [
        array.ndim > 0 and len(array) == batch.samples and ports[name].fixed is None
        for name, array in batch.inputs.items()
    ]
    if batch.samples <= _SAMPLES or not all(per_sample):
        return batch.inputs
    return {name: array[:_SAMPLES] for name, array in batch.inputs.items()}


def _made_up(model: ir.Model, seed: int) -> list[Arrays]:
    try:
        ports = ports_of(model)
        one, other = (
            make_synthetic(model, ports, batch=batch, samples=batch, seed=seed + batch)
            for batch in _BATCHES
        )
    except ConverterError:
        return []
    larger = Synthetic(
        tuple(_larger(recipe) for recipe in other.recipes), other.samples, other.batch, other.seed
    )
    return [next(iter(data)).inputs for data in (one, other, larger)]


def _larger(recipe: Recipe) -> Recipe:
    """Let sizes that are free be larger, all but that of the batch."""
    shape = tuple(
        size if axis == 0 or _is_fixed(recipe.port, axis) else _LARGER.get(size, size + 4)
        for axis, size in enumerate(recipe.shape)
    )
    return replace(recipe, shape=shape)


def _is_fixed(port: Port, axis: int) -> bool:
    return port.shape is not None and isinstance(port.shape[axis], int)


def _runs(model: ir.Model, feed: Arrays, context: Context) -> bool:
    try:
        context.run(model, [feed])
    except ConverterError:
        return False
    return True
