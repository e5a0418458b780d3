"""Random graphs with dead and equal channels: what goes changes no output."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from coupling_mixtures import mixture
from exact import context, feed_for
from support import run

from converter.coupling.couple import couple
from converter.coupling.shapes import observe_shapes
from passes.coupling.cut import cut
from passes.coupling.lossless import find_exact


def spoil(model, coupling, seed):
    """Set a sixth of all channels to zero and make a sixth equal to others, in all constants."""
    rng = np.random.default_rng(seed)
    for component in coupling.components:
        atoms = component.atoms
        picked = rng.choice(atoms, max(1, atoms.size // 3), replace=False)
        others = rng.choice(atoms, picked.size)
        made = {(node, position, axis) for node, position, axis in component.producers}
        for (node, position), axes in coupling.uses.items():
            tensor = node.inputs[position].const_value if node.inputs[position] else None
            if tensor is None or tensor.dtype != ir.DataType.FLOAT:
                continue
            array = tensor.numpy().copy()
            for axis, labels in enumerate(axes):
                if labels is None or (array.ndim > 1 and (node, position, axis) not in made):
                    continue
                rows = np.moveaxis(array, axis, 0)
                for k, (atom, other) in enumerate(zip(picked, others, strict=True)):
                    if k % 2 and (labels == atom).sum() == (labels == other).sum():
                        rows[labels == atom] = rows[labels == other]
                    elif not k % 2 and array.ndim > 1:
                        rows[labels == atom] = 0
            node.inputs[position].const_value = ir.tensor(array, name=node.inputs[position].name)


def test_outputs_stay():
    removed = 0
    for seed in range(8):
        model = mixture(seed)
        shapes = observe_shapes(model, context())
        spoil(model, couple(model, shapes), seed)
        before = model.clone()
        found = find_exact(model, lambda m, known=shapes: couple(m, known))
        edited = model.clone()
        cut(model, found.coupling, found.alive)
        feed = feed_for(before, seed, 2)
        expected = run(before, feed)
        for after in (edited, model):
            given = run(after, feed)
            for name, array in expected.items():
                largest = max(1e-6, float(np.abs(array).max()))
                assert np.abs(given[name] - array).max() <= 1e-4 * largest, (seed, name)
        removed += found.removed
    assert removed > 8


def test_nothing_goes_from_an_empty_graph():
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 17}), ir_version=8)
    found = find_exact(model, lambda m: couple(m, {}))
    assert found.removed == 0
    assert found.notes == ()
