"""A folder from which a failure can be repeated: recipe, seed, model without its weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converter.core.graph import graphs
from converter.errors import WriteError
from converter.pipeline.provenance import versions

if TYPE_CHECKING:
    from converter.core.recipe import Recipe

_KEEP_BELOW = (
    64  # elements; smaller tensors are shapes, axes and scalars that the graph needs as they are
)


def write_reproducer(
    folder: Path,
    model: ir.Model,
    recipe: Recipe,
    *,
    error: Exception,
    weights: bool = False,
) -> None:
    """Write ``model.onnx``, ``recipe.toml`` and ``failure.json``.

    Args:
        folder: Made when missing.
        model: The model as it was loaded.
        recipe: What was asked for. Samples stay out of the folder: made-up ones take their place.
        error: What went wrong.
        weights: Keep the real weights. By default float tensors of 64 elements or more become
            seeded noise of the same type, shape, mean and standard deviation, so that the folder
            can be handed on.

    Raises:
        WriteError: The folder cannot be written.
    """
    from converter.core.recipe import RecipeData, write_recipe
    from converter.io.atomic import write_text
    from converter.io.formats import save

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise WriteError(
            f"the reproducer folder cannot be made: {problem.strerror}", where=str(folder)
        ) from problem
    seed = recipe.seed or 0
    save(model if weights else without_weights(model, seed), folder / "model.onnx")
    shared = replace(recipe, data=RecipeData(path="synthetic", batch=recipe.data.batch))
    write_text(folder / "recipe.toml", write_recipe(shared))
    record: dict[str, Any] = {
        "error": str(error),
        "kind": type(error).__name__,
        "seed": seed,
        "versions": versions(),
        "weights": "real" if weights else "replaced by seeded noise",
        "repeat": "convert model.onnx out.onnx --recipe recipe.toml",
    }
    write_text(folder / "failure.json", json.dumps(record, indent=2, sort_keys=True) + "\n")


def without_weights(model: ir.Model, seed: int) -> ir.Model:
    """Return a clone whose large float tensors are noise of the same mean and spread."""
    clone = model.clone()
    rng = np.random.default_rng(seed)
    for graph in graphs(clone):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _noise(value.const_value, rng)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
                    node.attributes[name] = ir.AttrTensor(name, _noise(attribute.as_tensor(), rng))
    return clone


def _noise(tensor: ir.TensorProtocol, rng: np.random.Generator) -> ir.TensorProtocol:
    if not tensor.dtype.is_floating_point() or tensor.size < _KEEP_BELOW:
        return tensor
    array = tensor.numpy()
    values = array.astype(np.float64)
    mean, spread = float(values.mean()), float(values.std())
    if not np.isfinite(mean) or not np.isfinite(spread):
        mean, spread = 0.0, 1.0
    made = rng.normal(mean, spread, array.shape)
    if (values >= 0).all():
        made = np.abs(made)  # a variance must stay positive
    return ir.tensor(made.astype(array.dtype), name=tensor.name)
